//! What operations take on the device, beside what reading the weights takes at the bandwidth that a copy shows.

use std::sync::Arc;

use half::bf16;
use sae::backend::cuda::CudaModel;
use sae::backend::{Run, Stream as On};
use sae::features::FeaturesMut;
use sae::sae::{Architecture, Matrix, Sae, Spec, Weights};
use sae::session::{Session, SessionOptions, Steer};
use sae::steering::{Edit, EditOp};
use sae::tensor::DType;
use serde_json::json;

use crate::device::{Buffer, Stream};
use crate::say;

/// d, n, k: those of docs/performance.md.
const SHAPES: [(usize, usize, usize); 5] =
    [(768, 32768, 32), (768, 131072, 32), (2304, 16384, 64), (2304, 65536, 64), (4096, 131072, 64)];
const TOKENS: [usize; 4] = [1, 16, 256, 8192];
/// What one measurement takes, about, after as much to warm up.
const SECONDS: f64 = 0.1;

pub fn run(quick: bool) -> bool {
    let stream = Stream::new();
    let bandwidth = bandwidth(&stream, if quick { 1 << 16 } else { 1 << 30 });
    say(json!({ "bytes_per_second": bandwidth }), "timing");
    let (shapes, tokens): (&[_], &[_]) = if quick { (&[(64, 2048, 8)], &[1, 16]) } else { (&SHAPES, &TOKENS) };
    for &(d, n, k) in shapes {
        let model = CudaModel::new(Arc::new(sae(d, n, k)), 0).unwrap();
        for &rows in tokens {
            let mut measured = operations(&stream, &model, (d, n, k), rows, if quick { 0.0 } else { SECONDS });
            measured["read_w"] = json!(2.0 * (n * d) as f64 / bandwidth);
            say(measured, "timing");
        }
    }
    true
}

/// Bytes read and written a second by a copy.
fn bandwidth(stream: &Stream, bytes: usize) -> f64 {
    let zeros = vec![0f32; bytes / 4];
    let (from, to) = (Buffer::new(true, &zeros), Buffer::new(true, &zeros));
    2.0 * bytes as f64 / repeated(stream, SECONDS, || stream.copy(to.at(), from.at(), bytes))
}

/// Seconds that `work` takes, once it is warm.
fn repeated(stream: &Stream, seconds: f64, mut work: impl FnMut()) -> f64 {
    work();
    let once = stream.seconds(&mut work).max(1e-6);
    let times = (seconds / once).clamp(1.0, 1000.0) as usize;
    (0..times / 4).for_each(|_| work());
    stream.seconds(|| (0..times).for_each(|_| work())) / times as f64
}

fn uniform(len: usize, seed: u64) -> impl Iterator<Item = f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..len).map(move |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    })
}

/// Of random directions; the decoder is the encoder.
fn sae(d: usize, n: usize, k: usize) -> Sae {
    let scale = (3.0 / d as f32).sqrt();
    let values: Vec<f32> = uniform(n * d, 1).map(|v| v * scale).collect();
    let w = Matrix::from_f32(&values, n, d).unwrap().to_dtype(DType::BF16).unwrap();
    Sae::new(Spec::new(Architecture::TopK { k }, d, n), Weights::new(w.clone(), vec![0.0; n], w, vec![0.0; d])).unwrap()
}

fn operations(
    stream: &Stream,
    model: &Arc<CudaModel>,
    (d, n, k): (usize, usize, usize),
    rows: usize,
    seconds: f64,
) -> serde_json::Value {
    let options = SessionOptions { max_tokens: rows, ..SessionOptions::default() };
    let mut session = Session::new(Arc::clone(model), options).unwrap();
    let x: Vec<bf16> = uniform(rows * d, 2).map(bf16::from_f32).collect();
    let x = Buffer::new(true, &x);
    let mut values = Buffer::new(true, &vec![0f32; rows * k]);
    let mut indices = Buffer::new(true, &vec![0i32; rows * k]);
    let mut counts = Buffer::new(true, &vec![0i32; rows]);
    let mut out = Buffer::new(true, &vec![bf16::ZERO; rows * d]);
    let run = |fast| Run { stream: On::Host(stream.handle()), fast, ..Run::default() };
    let mut result = json!({ "d": d, "n": n, "k": k, "tokens": rows, "workspace": session.workspace_size() });
    for (name, fast) in [("encode_exact", false), ("encode_fast", true)] {
        let mut encode = || {
            let features = FeaturesMut {
                values: values.tensor_mut(&[rows, k]),
                indices: indices.tensor_mut(&[rows, k]),
                counts: counts.tensor_mut(&[rows]),
                row_state: None,
            };
            session.encode(run(fast), x.tensor(&[rows, d]).into(), features).unwrap();
        };
        result[name] = json!(repeated(stream, seconds, &mut encode));
        if rows <= 16 {
            let graph = stream.capture(&mut encode);
            result[format!("{name}_replayed")] = json!(repeated(stream, seconds, || graph.launch(stream)));
        }
    }
    let features = sae::features::FeaturesRef {
        values: values.tensor(&[rows, k]),
        indices: indices.tensor(&[rows, k]),
        counts: counts.tensor(&[rows]),
        row_state: None,
    };
    let decode = || session.decode(run(false), features, None, out.tensor_mut(&[rows, d])).unwrap();
    result["decode"] = json!(repeated(stream, seconds, decode));
    let edits: Vec<Edit> = (0..16).map(|i| Edit::new(i, EditOp::Add, 0.5)).collect();
    session.set_edits(0, &edits).unwrap();
    let steer = || {
        let out = out.tensor_mut(&[rows, d]);
        session.steer(run(false), x.tensor(&[rows, d]).into(), Steer::default(), out).unwrap();
    };
    result["steer_16"] = json!(repeated(stream, seconds, steer));
    session.synchronize().unwrap();
    result
}
