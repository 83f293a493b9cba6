//! Training steps on every instruction set and number of threads: the same bits in all that is kept.

#![allow(clippy::unwrap_used)]

use sae::backend::cpu::{Kernels, training::CpuTraining};
use sae::backend::training::{
    BatchSums, Level, LossParameters, Parameter, Role, Rule, StepParameters, Training, TrainingRows, TrainingShape,
};
use sae::backend::{Input, Pool};
use sae::sae::Normalization;
use sae::tensor::Tensor;

/// Uniform in ±1.
fn numbers(seed: u64) -> impl FnMut() -> f32 {
    let mut state = seed | 1;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

/// Rows of every kind: smooth, heavy-tailed, of few values so that scores tie, zero, tiny, large, and not finite.
fn rows(count: usize, d: usize, mut number: impl FnMut() -> f32) -> Vec<f32> {
    let mut row = |i: usize| -> Vec<f32> {
        let of: Box<dyn Fn(f32) -> f32> = match i % 11 {
            3 => Box::new(|v| v / (1.001 - v.abs()).powi(2)),
            4 => Box::new(f32::round),
            5 => Box::new(|_| -0.0),
            6 => Box::new(|v| v * 1e-41),
            7 => Box::new(|v| v * 1e12),
            8 => Box::new(|v| if v > 0.9 { f32::INFINITY } else { v }),
            _ => Box::new(|v| v),
        };
        (0..d).map(|_| of(number())).collect()
    };
    (0..count).flat_map(&mut row).collect()
}

/// What a few steps leave: the sums of each batch, gradients' norms, and the bits of all numbers kept.
type Outcome = (Vec<BatchSums>, Vec<u64>, Vec<Vec<u32>>);

fn run(
    [count, d, n, k, k_aux]: [usize; 5],
    (rule, normalization): (&Rule, Normalization),
    kernels: Kernels,
    threads: usize,
) -> Outcome {
    let shape = TrainingShape {
        rule: rule.clone(),
        k_aux,
        max_tokens: count,
        ema: true,
        normalization,
        ..TrainingShape::top_k(k, d, n)
    };
    let mut backend = CpuTraining::new(shape, Pool::new(threads).unwrap(), kernels).unwrap();
    let mut number = numbers((count * 31 + d * 7 + n) as u64);
    for parameter in Parameter::COMMON {
        let mut values: Vec<f32> = (0..TrainingShape::top_k(1, d, n).len(parameter)).map(|_| number()).collect();
        if n > 5 && values.len() == n * d {
            // Twins, and a row of zeros.
            values.copy_within(2 * d..3 * d, 4 * d);
            values[5 * d..6 * d].fill(0.0);
        }
        backend.write(Role::Weight, parameter, &values).unwrap();
    }
    backend.write_unfired(&(0..n as u64).map(|i| i % 3 * 500).collect::<Vec<_>>()).unwrap();
    let loss = LossParameters {
        k: 0,
        normalizer: 1.3,
        aux_coefficient: 0.25,
        sparsity_coefficient: 0.0,
        fired: 1e-3,
        dead_after_tokens: 900,
    };
    let (mut sums, mut norms) = (Vec::new(), Vec::new());
    for step in 1..=4 {
        let x = rows(count, d, &mut number);
        let input = Input::from(Tensor::new(&x, &[count, d]).unwrap());
        sums.push(backend.accumulate(&TrainingRows::from(input), &loss).unwrap());
        let step = StepParameters {
            tokens: sums.last().unwrap().tokens as u64,
            step,
            learning_rate: 1e-2,
            beta1: 0.9,
            beta2: 0.99,
            epsilon: 1e-8,
            clip_norm: 0.5,
            ema_decay: 0.9,
        };
        norms.push(backend.apply(&step).unwrap().to_bits());
    }
    let mut kept = Vec::new();
    for role in [Role::Weight, Role::FirstMoment, Role::SecondMoment, Role::Ema] {
        for parameter in Parameter::COMMON {
            let mut values = vec![0.0f32; TrainingShape::top_k(1, d, n).len(parameter)];
            backend.read(role, parameter, &mut values).unwrap();
            kept.push(values.iter().map(|v| v.to_bits()).collect());
        }
    }
    (sums, norms, kept)
}

#[test]
fn a_step_has_the_same_bits_on_every_set() {
    let shapes = [
        [23, 2, 7, 2, 3],
        [40, 15, 50, 5, 9],
        [40, 16, 96, 8, 16],
        [33, 17, 33, 33, 8],
        [64, 63, 130, 4, 31],
        [1, 64, 129, 6, 32],
        [129, 65, 257, 16, 0],
        [70, 200, 300, 32, 100],
        // So many latents that all sets but the scalar one bound scores by bytes first.
        [150, 37, 1100, 8, 40],
    ];
    for shape in shapes {
        for normalization in [Normalization::None, Normalization::LayerNorm] {
            let normalization = (&Rule::TopK, normalization);
            let scalar = run(shape, normalization, Kernels::named("scalar").unwrap(), 1);
            let norms = scalar.1.iter().map(|&norm| f64::from_bits(norm));
            assert!(norms.clone().all(|norm| norm > 0.0 && norm.is_finite()), "{shape:?}: {norms:?}, {:?}", scalar.0);
            for kernels in Kernels::all_supported() {
                for threads in [1, 3] {
                    let found = run(shape, normalization, kernels, threads);
                    assert!(found == scalar, "{shape:?}, {normalization:?}, {} × {threads}", kernels.name);
                }
            }
        }
    }
}

/// Where latents of all rows compete and bounds come first: of guesses that hold and of those that do not, of rows that keep
/// far more than others, of ties, and of so few positive scores that not all places are taken.
#[test]
fn a_batch_s_largest_are_the_same_bits_with_bounds_and_without() {
    for (shape, levels) in [
        ([150, 37, 1100, 8, 40], vec![1100]),
        ([90, 20, 1500, 3, 0], vec![100, 1500]),
        ([1, 64, 1024, 40, 0], vec![1024]),
        ([400, 16, 1030, 64, 0], vec![1030]),
    ] {
        let rule = Rule::BatchTopK { levels: levels.into_iter().map(|prefix| Level { prefix, weight: 1.0 }).collect() };
        for normalization in [Normalization::None, Normalization::LayerNorm] {
            let scalar = run(shape, (&rule, normalization), Kernels::named("scalar").unwrap(), 1);
            let active: Vec<u64> = scalar.0.iter().map(|sums| sums.active).collect();
            assert!(active.iter().all(|&active| active > 0), "{shape:?}: {active:?}");
            for kernels in Kernels::all_supported() {
                for threads in [1, 3] {
                    let found = run(shape, (&rule, normalization), kernels, threads);
                    assert!(found == scalar, "{shape:?}, {normalization:?}, {} × {threads}", kernels.name);
                }
            }
        }
    }
}
