//! Twenty training steps against plain PyTorch in float64 (`golden/make_training.py`), with dead latents and clipping.

#![allow(clippy::unwrap_used)]

#[path = "runs/golden.rs"]
mod golden;

use golden::Golden;
use sae::backend::Pool;
use sae::sae::{Architecture, Matrix, Sae, Spec, Weights};
use sae::tensor::Tensor;
use sae::training::{Export, StepStats, TrainOptions, Trainer};

const D: usize = 32;
const N: usize = 256;
const K: usize = 8;
const TOKENS: usize = 64;
const STEPS: usize = 20;
const CLIP: f32 = 0.15;
const NAMES: [&str; 4] = ["W_enc", "b_enc", "W_dec", "b_dec"];

fn options() -> TrainOptions {
    TrainOptions {
        d: D,
        n_latents: N,
        k: K,
        k_aux: 16,
        dead_after_tokens: 5 * TOKENS as u64,
        learning_rate: 2e-3,
        clip_norm: CLIP,
        ema_decay: 0.9,
        ..TrainOptions::default()
    }
}

fn run(golden: &Golden, options: &TrainOptions) -> (Vec<StepStats>, [Sae; 2]) {
    let start = |name: &str| golden.f32(&format!("start.{name}"));
    let weights = Weights {
        w_enc: Matrix::from_f32(&start("W_enc"), N, D).unwrap(),
        b_enc: start("b_enc"),
        w_dec: Matrix::from_f32(&start("W_dec"), N, D).unwrap(),
        b_dec: start("b_dec"),
        threshold: None,
        gate: None,
        glu: None,
        w_skip: None,
    };
    let start = Sae::new(Spec::new(Architecture::TopK { k: K }, D, N), weights).unwrap();
    let batches = golden.f32("batches");
    let mut trainer = Trainer::new(options, Pool::serial()).unwrap();
    trainer.warm_start(&start, &Tensor::new(&batches, &[STEPS * TOKENS, D]).unwrap()).unwrap();
    let step = |x: &[f32]| trainer.step(&Tensor::new(x, &[TOKENS, D]).unwrap().into()).unwrap();
    let stats = batches.chunks(TOKENS * D).map(step).collect();
    (stats, [Export::Weights, Export::Ema].map(|what| trainer.export(what).unwrap()))
}

/// ‖ΔW − ΔW_ref‖ / ‖ΔW_ref‖ of each tensor, weights first and then their moving average.
fn deviations(golden: &Golden, trained: &[Sae; 2]) -> Vec<(String, f64)> {
    let mut deviations = Vec::new();
    for (kind, sae) in ["end", "ema"].into_iter().zip(trained) {
        let w = sae.weights();
        let found = [w.w_enc.rows_f32(0, N, &mut []), &w.b_enc, w.w_dec.rows_f32(0, N, &mut []), &w.b_dec];
        for (name, found) in NAMES.into_iter().zip(found) {
            let start = golden.f32(&format!("start.{name}"));
            let wanted = golden.f64(&format!("{kind}.{name}"));
            let (mut difference, mut change) = (0.0, 0.0);
            for ((&found, &wanted), &start) in found.iter().zip(&wanted).zip(&start) {
                difference += (f64::from(found) - wanted).powi(2);
                change += (wanted - f64::from(start)).powi(2);
            }
            deviations.push((format!("{kind}.{name}"), (difference / change).sqrt()));
        }
    }
    deviations
}

#[test]
fn twenty_steps_agree_with_float64() {
    let golden = Golden::read("training.safetensors");
    let (stats, trained) = run(&golden, &options());
    for (name, deviation) in deviations(&golden, &trained) {
        println!("{name}: {deviation:.2e}");
        assert!(deviation <= 5e-3, "{name}: {deviation}");
    }
    for (step, (stats, report)) in stats.iter().zip(golden.f64("reports").chunks(6)).enumerate() {
        let found = [stats.mse, stats.aux, stats.fvu, stats.l0, stats.dead as f64, stats.grad_norm];
        for ((name, found), wanted) in ["mse", "aux", "fvu", "l0", "dead", "norm"].iter().zip(found).zip(report) {
            assert!((found - wanted).abs() <= 1e-3 * wanted.abs(), "step {step}: {name} {found}, not {wanted}");
        }
    }
    // The comparison means something only with dead latents, AuxK at work, and gradients that are clipped.
    assert!(stats.iter().filter(|s| s.dead > 0 && s.aux > 0.0).count() > 10);
    assert!(stats.iter().filter(|s| s.grad_norm > f64::from(CLIP)).count() > 10);
}

#[test]
fn the_comparison_sees_each_part_of_the_step() {
    let golden = Golden::read("training.safetensors");
    type Spoil = fn(&mut TrainOptions);
    let spoils: [(&str, Spoil); 6] = [
        ("AuxK off", |o| o.no_aux = true),
        ("fewer dead latents used", |o| o.k_aux = 4),
        ("later death", |o| o.dead_after_tokens = 10 * TOKENS as u64),
        ("no clipping", |o| o.clip_norm = 0.0),
        ("another beta", |o| o.adam_beta2 = 0.99),
        ("another average", |o| o.ema_decay = 0.95),
    ];
    for (what, spoil) in spoils {
        let mut options = options();
        spoil(&mut options);
        let deviations = deviations(&golden, &run(&golden, &options).1);
        let worst = deviations.iter().map(|(_, d)| *d).fold(0.0, f64::max);
        println!("{what}: {worst:.2e}");
        assert!(worst > 2e-2, "{what} goes unnoticed: {worst}");
    }
}
