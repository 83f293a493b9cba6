//! A small run, and activations for it.

#![allow(dead_code)]

use sae::Error;
use sae::backend::Pool;
use sae::sae::Sae;
use sae::tensor::Tensor;
use sae::training::{Batch, Export, Recipe, TrainOptions, Trainer};

pub(crate) const D: usize = 24;
pub(crate) const N: usize = 96;

pub(crate) fn options() -> TrainOptions {
    TrainOptions {
        d: D,
        n_latents: N,
        k: 6,
        k_aux: 10,
        dead_after_tokens: 60,
        learning_rate: 3e-3,
        clip_norm: 0.5,
        seed: 5,
        max_batch_tokens: 64,
        ..TrainOptions::default()
    }
}

/// The same run by another recipe.
pub(crate) fn of(recipe: Recipe) -> TrainOptions {
    match recipe {
        Recipe::Relu | Recipe::JumpRelu | Recipe::Gated => TrainOptions { recipe, k: 0, k_aux: 0, ..options() },
        _ => TrainOptions { recipe, ..options() },
    }
}

/// Numbers that look random: a hash of position and seed, uniform in ±1.
pub(crate) fn noise(seed: u64, i: usize) -> f32 {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (i as u64).wrapping_mul(0xD1B5_4A32_D192_ED03);
    for _ in 0..3 {
        state = (state ^ (state >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    }
    ((state >> 40) as f32 / (1u64 << 23) as f32) - 1.0
}

/// Activations with a mean, a few strong directions and noise.
pub(crate) fn activations(seed: u64, rows: usize) -> Vec<f32> {
    let row = |row: usize| {
        (0..D).map(move |j| {
            let parts = (0..3).map(|p| {
                let direction = (noise(seed, 7 * row + p).abs() * 30.0) as usize;
                noise(99, direction * D + j) * noise(seed + 1, row * 3 + p).abs()
            });
            1.0 + parts.sum::<f32>() + 0.05 * noise(seed + 2, row * D + j)
        })
    };
    (0..rows).flat_map(row).collect()
}

pub(crate) fn view(values: &[f32]) -> Tensor<'_> {
    Tensor::new(values, &[values.len() / D, D]).unwrap()
}

pub(crate) fn started(options: &TrainOptions, pool: Pool) -> Trainer {
    let mut trainer = Trainer::new(options, pool).unwrap();
    trainer.init_from(&view(&activations(1, 300))).unwrap();
    trainer
}

/// The bits of everything that is exported.
pub(crate) fn bits(sae: &Sae) -> Vec<u32> {
    let w = sae.weights();
    let matrices = [w.w_enc.rows_f32(0, N, &mut []), w.w_dec.rows_f32(0, N, &mut [])];
    let all = matrices.into_iter().chain([&w.b_enc[..], &w.b_dec[..]]);
    all.flatten().map(|v| v.to_bits()).collect()
}

pub(crate) fn both_exports(trainer: &Trainer) -> [Vec<u32>; 2] {
    [Export::Weights, Export::Ema].map(|what| bits(&trainer.export(what).unwrap()))
}

pub(crate) fn refused(result: Result<Trainer, Error>) -> Error {
    result.err().expect("a refusal")
}

/// Accumulates until the sum goes beyond f32, of rows whose squares are still numbers.
pub(crate) fn overflow(trainer: &mut Trainer) {
    let huge = [3.7e18; 64 * D];
    for _ in 0..64 {
        let stats = trainer.step(&Batch { accumulate: true, ..view(&huge).into() }).unwrap();
        assert_eq!((stats.tokens, stats.tokens_not_finite), (64, 0));
    }
}

pub(crate) type Spoil = fn(&mut TrainOptions);
