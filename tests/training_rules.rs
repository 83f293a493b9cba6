//! Gradients of every rule against finite differences, and batches that are gone through in blocks.

#![allow(clippy::unwrap_used)]

use sae::backend::cpu::{Kernels, training::CpuTraining};
use sae::backend::training::{
    JumpRelu, Level, LossParameters, Parameter, Penalty, Role, Rule, Training, TrainingRows, TrainingShape,
};
use sae::backend::{Input, Pool};
use sae::tensor::Tensor;

const ROWS: usize = 24;
const D: usize = 6;
const D_OUT: usize = 5;
const N: usize = 20;
const LOSS: LossParameters = LossParameters {
    k: 0,
    normalizer: 0.8,
    aux_coefficient: 0.0,
    sparsity_coefficient: 0.7,
    fired: 1e-3,
    dead_after_tokens: 1 << 40,
};

/// Numbers that look random, uniform in ±1.
fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// A point: the weights of a run.
fn weights(shape: &TrainingShape) -> Vec<(Parameter, Vec<f32>)> {
    let of = |(seed, parameter): (usize, Parameter)| {
        let mut values = numbers(seed as u64 + 5, shape.len(parameter));
        if parameter == Parameter::WDec {
            for row in values.chunks_mut(shape.d_out) {
                let norm = row.iter().map(|w| w * w).sum::<f32>().sqrt();
                row.iter_mut().for_each(|w| *w /= norm);
            }
        }
        if parameter == Parameter::Threshold {
            // Zero: the jump is none, and all but the thresholds' gradients are true ones.
            values.fill(0.0);
        }
        (parameter, values)
    };
    shape.parameters().enumerate().map(of).collect()
}

fn rows() -> (Vec<f32>, Vec<f32>) {
    (numbers(1, ROWS * D), numbers(2, ROWS * D_OUT))
}

/// The loss for the whole batch, and its gradients, b_dec's complete.
fn evaluate(shape: &TrainingShape, weights: &[(Parameter, Vec<f32>)]) -> (f64, Vec<Vec<f64>>) {
    let mut backend = CpuTraining::new(shape.clone(), Pool::serial(), Kernels::named("scalar").unwrap()).unwrap();
    for (parameter, values) in weights {
        backend.write(Role::Weight, *parameter, values).unwrap();
    }
    let (x, y) = rows();
    let target = shape.transcoder.then(|| (Tensor::new(&y, &[ROWS, D_OUT]).unwrap(), 1.0));
    let input = Input::from(Tensor::new(&x, &[ROWS, D]).unwrap());
    let sums = backend.accumulate(&TrainingRows { target, ..input.into() }, &LOSS).unwrap();
    let whole = shape.d_out as f64 * LOSS.normalizer;
    let loss = (sums.reconstruction + LOSS.sparsity_coefficient * sums.penalty) / whole + sums.aux_loss * ROWS as f64;
    let gradient = |parameter: Parameter| {
        let mut values = vec![0.0; shape.len(parameter)];
        backend.read(Role::Gradient, parameter, &mut values).unwrap();
        values.iter().map(|v| f64::from(*v)).collect::<Vec<_>>()
    };
    (loss, weights.iter().map(|(parameter, _)| gradient(*parameter)).collect())
}

#[test]
fn gradients_are_those_of_the_losses() {
    let levels = |prefixes: &[(usize, f32)]| {
        let levels = prefixes.iter().map(|&(prefix, weight)| Level { prefix, weight }).collect();
        Rule::BatchTopK { levels }
    };
    // Where all that is positive is kept, no selection jumps.
    let plain = TrainingShape { max_tokens: ROWS, ..TrainingShape::top_k(N, D, N) };
    let transcoder = TrainingShape { transcoder: true, d_out: D_OUT, ..plain.clone() };
    let crosscoder = TrainingShape { layers: 3, ..plain.clone() };
    let tanh = Rule::JumpRelu(JumpRelu { bandwidth: 1e-3, penalty: Penalty::Tanh });
    let shapes = [
        ("TopK crosscoder", crosscoder.clone()),
        ("ReLU crosscoder", TrainingShape { rule: Rule::Relu, ..crosscoder.clone() }),
        ("Matryoshka crosscoder", TrainingShape { rule: levels(&[(3, 0.5), (N, 1.5)]), ..crosscoder.clone() }),
        ("gated crosscoder", TrainingShape { rule: Rule::Gated, ..crosscoder }),
        ("TopK", plain.clone()),
        ("Multi-TopK", TrainingShape { rule: Rule::MultiTopK, ..plain.clone() }),
        ("AbsTopK", TrainingShape { rule: Rule::AbsTopK, ..plain.clone() }),
        ("BatchTopK", TrainingShape { rule: levels(&[(N, 1.0)]), ..plain.clone() }),
        ("Matryoshka", TrainingShape { rule: levels(&[(3, 0.5), (4, 2.0), (N, 1.5)]), ..plain.clone() }),
        ("ReLU", TrainingShape { rule: Rule::Relu, ..plain.clone() }),
        ("JumpReLU", TrainingShape { rule: tanh, ..plain.clone() }),
        ("Gated", TrainingShape { rule: Rule::Gated, ..plain }),
        ("transcoder", transcoder.clone()),
        ("gated skip transcoder", TrainingShape { rule: Rule::Gated, skip: true, ..transcoder.clone() }),
        ("Matryoshka skip transcoder", TrainingShape { rule: levels(&[(8, 1.0), (N, 0.5)]), skip: true, ..transcoder }),
    ];
    for (name, shape) in shapes {
        let at = weights(&shape);
        let (_, mut gradients) = evaluate(&shape, &at);
        let index = |wanted: Parameter| at.iter().position(|(parameter, _)| *parameter == wanted);
        // What reaches b_dec through the encoder's input is otherwise added when the step is made.
        if shape.subtracts_b_dec() {
            let (w_enc, b_enc, b_dec) = (&at[0].1, &gradients[1], index(Parameter::BDec).unwrap());
            let mut by_product = b_enc.clone();
            if let (Some(r), Some(b)) = (index(Parameter::RMag), index(Parameter::BGate)) {
                by_product.iter_mut().enumerate().for_each(|(i, g)| {
                    *g = *g * f64::from(at[r].1[i]).exp() + gradients[b][i];
                });
            }
            for i in 0..N * D {
                gradients[b_dec][i % D] -= by_product[i / D] * f64::from(w_enc[i]);
            }
        }
        for (p, (parameter, values)) in at.iter().enumerate() {
            // Gated's second decoder is held constant, and the thresholds' gradients are estimates.
            let decodes = matches!(parameter, Parameter::WDec | Parameter::BDec | Parameter::WSkip);
            let held = shape.rule == Rule::Gated && decodes;
            if held || *parameter == Parameter::Threshold {
                continue;
            }
            let (mut difference, mut size) = (0.0, 0.0);
            assert_eq!(gradients[p].len(), values.len());
            for (i, gradient) in gradients[p].iter().enumerate() {
                let loss = |step: f32| {
                    let mut moved = at.clone();
                    moved[p].1[i] += step;
                    evaluate(&shape, &moved).0
                };
                let slope = (loss(5e-4) - loss(-5e-4)) / 1e-3;
                difference += (slope - gradient).powi(2);
                size += slope * slope;
            }
            let error = (difference / size).sqrt();
            println!("{name} {}: {error:.1e}", parameter.name());
            // A few tokens cross a kink on the way.
            assert!(size > 1e-6 && error < 1e-2, "{name} {}: {error} of {size}", parameter.name());
        }
    }
}

/// A batch with more pairs of token and latent than there is memory for is gone through in blocks: sums over tokens are the
/// same as those of two halves given one after the other, and threads do not show.
#[test]
fn blocks_of_a_batch_are_the_batch() {
    let (n, d, rows) = (4096, 4, 1100);
    let x = numbers(3, rows * d);
    for rule in [Rule::Relu, Rule::JumpRelu(JumpRelu { bandwidth: 0.3, penalty: Penalty::Step }), Rule::Gated] {
        let shape = TrainingShape { rule, max_tokens: rows, ..TrainingShape::top_k(0, d, n) };
        let run = |threads: usize, parts: &[usize]| {
            let mut backend =
                CpuTraining::new(shape.clone(), Pool::new(threads).unwrap(), Kernels::best().unwrap()).unwrap();
            for (parameter, values) in weights(&shape) {
                backend.write(Role::Weight, parameter, &values).unwrap();
            }
            let (mut first, mut active) = (0, 0);
            for &part in parts {
                let x = Tensor::new(&x[first * d..(first + part) * d], &[part, d]).unwrap();
                active += backend.accumulate(&Input::from(x).into(), &LOSS).unwrap().active;
                first += part;
            }
            let read = |parameter| {
                let mut values = vec![0.0; shape.len(parameter)];
                backend.read(Role::Gradient, parameter, &mut values).unwrap();
                values
            };
            let mut unfired = vec![0; n];
            backend.read_unfired(&mut unfired).unwrap();
            (active, unfired, shape.parameters().map(read).collect::<Vec<_>>())
        };
        let whole = run(1, &[rows]);
        assert!(whole.0 > 1_000_000, "{}", whole.0);
        assert!(run(3, &[rows]) == whole, "{:?}", shape.rule);
        let parts = run(1, &[700, 400]);
        assert_eq!(parts.0, whole.0);
        for (a, b) in whole.2.iter().zip(&parts.2) {
            let gap = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
            let size = a.iter().map(|a| f64::from(*a).powi(2)).sum::<f64>();
            assert!(size > 0.0 && gap.sqrt() < 1e-5 * size.sqrt(), "{:?}: {gap} {size}", shape.rule);
        }
    }
}
