//! What each operation costs, alone: `cargo bench --bench operations [-- FILTER]`.
//!
//! One thread, calls back to back, so caches are warm. What a figure is worth beside others is `make bench`'s question.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput};
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};
use sae::Result;
use sae::backend::{Order, Pool, Run};
use sae::features::Features;
use sae::sae::{Architecture, Matrix, Sae, Spec, Weights};
use sae::session::{Session, SessionOptions, Steer};
use sae::steering::{Edit, EditOp};
use sae::tensor::{DType, Tensor, TensorMut};
use sae::training::{TrainOptions, Trainer};

/// d, n, k, and how many tokens a call has.
const SHAPES: [(usize, usize, usize, &[usize]); 2] = [(768, 32768, 32, &[1, 16, 256]), (2304, 16384, 64, &[1, 256])];
const TRAINING: (usize, usize, usize, usize) = (768, 16384, 32, 512);

/// `rows` unit vectors in random directions.
fn directions(rows: usize, d: usize, seed: u64) -> Vec<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut values: Vec<f32> = (0..rows * d).map(|_| normal(&mut random)).collect();
    for row in values.chunks_exact_mut(d) {
        let norm = row.iter().map(|v| v * v).sum::<f32>().sqrt();
        row.iter_mut().for_each(|v| *v /= norm);
    }
    values
}

/// Tokens of norm √d, as if normally distributed.
fn tokens(rows: usize, d: usize) -> Vec<f32> {
    directions(rows, d, 2).iter().map(|v| v * (d as f32).sqrt()).collect()
}

/// Irwin and Hall's approximation, which is normal enough here.
fn normal(random: &mut ChaCha8Rng) -> f32 {
    (0..12).map(|_| (random.next_u32() >> 8) as f32 / (1 << 24) as f32).sum::<f32>() - 6.0
}

/// Pre-activations are about standard normal; this threshold lets k of n pass on average.
fn threshold_for(k: usize, n: usize) -> f32 {
    let tail = |t: f64| 0.5 * libm::erfc(t / std::f64::consts::SQRT_2);
    let share = k as f64 / n as f64;
    (0..10_000).map(|i| f64::from(i) * 1e-3).find(|&t| tail(t) < share).unwrap_or(10.0) as f32
}

fn model(architecture: Architecture, dtype: DType, d: usize, n: usize, k: usize) -> Result<Arc<Sae>> {
    let matrix = Matrix::from_f32(&directions(n, d, 1), n, d)?.to_dtype(dtype)?;
    let mut weights = Weights::new(matrix.clone(), vec![0.0; n], matrix, vec![0.0; d]);
    if architecture == Architecture::JumpRelu {
        weights.threshold = Some(vec![threshold_for(k, n); n]);
    }
    Ok(Arc::new(Sae::new(Spec::new(architecture, d, n), weights)?))
}

fn inference(criterion: &mut Criterion) {
    for (d, n, k, token_counts) in SHAPES {
        shape(criterion, d, n, k, token_counts).expect("the shapes are sound");
    }
}

fn shape(criterion: &mut Criterion, d: usize, n: usize, k: usize, token_counts: &[usize]) -> Result<()> {
    let (width, name) = (4 * k, format!("{d}x{n}"));
    let top_k = Architecture::TopK { k };
    let encoders = [
        ("TopK", model(top_k, DType::F32, d, n, k)?, Order::Value),
        ("TopK bf16", model(top_k, DType::BF16, d, n, k)?, Order::Value),
        ("JumpReLU", model(Architecture::JumpRelu, DType::F32, d, n, k)?, Order::Value),
        ("BatchTopK", model(Architecture::JumpRelu, DType::F32, d, n, k)?, Order::Index),
    ];
    for &rows in token_counts {
        let input = tokens(rows, d);
        let x = Tensor::new(&input, &[rows, d])?;
        let mut features = Features::new(rows, width, 0);
        let mut group = criterion.benchmark_group(format!("encode {name}"));
        group.throughput(Throughput::Elements(rows as u64));
        for (what, model, order) in &encoders {
            let options = SessionOptions { max_tokens: rows, max_width: width, ..SessionOptions::default() };
            let mut session = Session::new(Arc::clone(model), options)?;
            group.bench_function(BenchmarkId::new(*what, rows), |bench| {
                bench.iter(|| {
                    let run = Run { order: *order, ..Run::default() };
                    session.encode(run, x.into(), features.view_mut()).expect("encodes");
                    black_box(&features.values);
                });
            });
        }
        group.finish();

        let mut features = Features::new(rows, k, 0);
        let mut out = vec![0.0; rows * d];
        let mut group = criterion.benchmark_group(format!("decode {name}"));
        group.throughput(Throughput::Elements(rows as u64));
        for (what, model, _) in &encoders[..2] {
            let options = SessionOptions { max_tokens: rows, ..SessionOptions::default() };
            let mut session = Session::new(Arc::clone(model), options)?;
            session.encode(Run::default(), x.into(), features.view_mut())?;
            group.bench_function(BenchmarkId::new(*what, rows), |bench| {
                bench.iter(|| {
                    let out = TensorMut::new(black_box(&mut out), &[rows, d]).expect("a sound shape");
                    session.decode(Run::default(), features.view(), None, out).expect("decodes");
                });
            });
        }
        group.finish();

        let options = SessionOptions { max_tokens: rows, ..SessionOptions::default() };
        let mut session = Session::new(Arc::clone(&encoders[0].1), options)?;
        let edits: Vec<Edit> = (0..16).map(|i| Edit::new(i * 997, EditOp::Add, 0.1)).collect();
        session.set_edits(0, &edits)?;
        criterion.bench_function(&format!("steer {name}/add 16 features/{rows}"), |bench| {
            bench.iter(|| {
                let out = TensorMut::new(black_box(&mut out), &[rows, d]).expect("a sound shape");
                session.steer(Run::default(), x.into(), Steer::default(), out).expect("steers");
            });
        });
    }
    Ok(())
}

fn training(criterion: &mut Criterion) {
    let (d, n_latents, k, rows) = TRAINING;
    let mut step = || -> Result<()> {
        let options = TrainOptions { d, n_latents, k, max_batch_tokens: rows, ..TrainOptions::default() };
        let mut trainer = Trainer::new(&options, Pool::serial())?;
        let input = tokens(rows, d);
        let x = Tensor::new(&input, &[rows, d])?;
        trainer.init_from(&x)?;
        let mut group = criterion.benchmark_group(format!("train step {d}x{n_latents}"));
        group.throughput(Throughput::Elements(rows as u64)).sample_size(10);
        group.bench_function(BenchmarkId::new("TopK", rows), |bench| {
            bench.iter(|| black_box(trainer.step(&x.into()).expect("trains")));
        });
        group.finish();
        Ok(())
    };
    step().expect("the shape is sound");
}

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    inference(&mut criterion);
    training(&mut criterion);
    criterion.final_summary();
}
