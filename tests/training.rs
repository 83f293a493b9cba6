//! Training runs: gradients, rows left out, accumulation, threads, warm starts, options.

#![allow(clippy::unwrap_used)]

mod runs;

use half::{bf16, f16};
use runs::{D, N, Spoil, activations, bits, both_exports, noise, of, options, overflow, refused, started, view};
use sae::Status;
use sae::backend::cpu::{Kernels, training::CpuTraining};
use sae::backend::training::{LossParameters, Parameter, Role, StepParameters, Training, TrainingRows, TrainingShape};
use sae::backend::{Input, Pool};
use sae::sae::{Architecture, HookPoint, Matrix, Normalization, Sae, Spec, Weights};
use sae::tensor::Tensor;
use sae::training::{Batch, Export, Recipe, StepStats, TrainOptions, Trainer};

fn distance(a: &Sae, b: &Sae) -> f64 {
    let (a, b) = (bits(a), bits(b));
    let number = |bits: u32| f64::from(f32::from_bits(bits));
    let squares = a.iter().zip(&b).map(|(&a, &b)| (number(a) - number(b)).powi(2));
    (squares.sum::<f64>() / a.iter().map(|&a| number(a).powi(2)).sum::<f64>()).sqrt()
}

#[test]
fn a_run_learns_and_tells_what_it_did() {
    let mut trainer = started(&options(), Pool::serial());
    let first = trainer.step(&view(&activations(2, 64)).into()).unwrap();
    let mut last = first;
    for seed in 3..200 {
        last = trainer.step(&view(&activations(seed, 64)).into()).unwrap();
    }
    assert!(last.fvu < 0.5 * first.fvu, "{first:?} {last:?}");
    assert!((first.step, last.step, last.tokens_seen, last.applied) == (1, 198, 198 * 64, true));
    assert!(last.l0 > 1.0 && last.l0 <= 6.0 && last.grad_norm > 0.0 && last.learning_rate == f64::from(3e-3f32));
    assert!((last.loss - last.mse - last.aux).abs() < 1e-12);
    assert!((last.dead_fraction - last.dead as f64 / N as f64).abs() < 1e-12);
    for what in [Export::Weights, Export::Ema] {
        let sae = trainer.export(what).unwrap();
        assert!(sae.weights().w_dec.row_norms().iter().all(|norm| (norm - 1.0).abs() < 1e-6));
        assert_eq!((sae.spec().d_in, sae.spec().n_latents, sae.spec().architecture.k()), (D, N, Some(6)));
    }
}

#[test]
fn every_recipe_learns_from_a_random_start() {
    for recipe in Recipe::ALL {
        // Coefficients are meant for thousands of dimensions; here they would have nothing reconstructed.
        let sparsity_coefficient = if of(recipe).k == 0 { 0.1 } else { 0.0 };
        let mut trainer = started(&TrainOptions { sparsity_coefficient, ..of(recipe) }, Pool::serial());
        let stats: Vec<_> = (2..52).map(|seed| trainer.step(&view(&activations(seed, 64)).into()).unwrap()).collect();
        let mean = |stats: &[StepStats]| stats.iter().map(|s| s.fvu).sum::<f64>() / stats.len() as f64;
        let (first, last) = (mean(&stats[..5]), mean(&stats[45..]));
        println!("{recipe:?}: {first} to {last}");
        assert!(last < 0.9 * first, "{recipe:?}: {first} to {last}");
    }
}

#[test]
fn the_start_is_tied_scaled_and_centred() {
    let trainer = started(&options(), Pool::serial());
    let sae = trainer.export(Export::Weights).unwrap();
    let w = sae.weights();
    let (w_enc, w_dec) = (w.w_enc.rows_f32(0, N, &mut []), w.w_dec.rows_f32(0, N, &mut []));
    let ratio = w_enc[0] / w_dec[0];
    assert!(w_enc.iter().zip(w_dec).all(|(e, d)| (e - ratio * d).abs() < 1e-5), "{ratio}");
    assert!(w.b_enc.iter().all(|&b| b == 0.0));
    assert!(w.b_dec.iter().all(|b| (b - 1.0).abs() < 0.3), "{:?}", w.b_dec);
    // Random unit vectors come back with unit norm on average, with the very seeds the start used or others.
    let mut norm = 0.0;
    for probe in 0..200 {
        let mut x: Vec<f32> = (0..D).map(|j| noise(1234, probe * D + j)).collect();
        let length = x.iter().map(|v| v * v).sum::<f32>().sqrt();
        x.iter_mut().for_each(|v| *v /= length);
        let mut h: Vec<(f32, usize)> = w_enc
            .chunks(D)
            .enumerate()
            .map(|(i, row)| (row.iter().zip(&x).map(|(w, x)| w * x).sum::<f32>(), i))
            .collect();
        h.sort_by(|a, b| b.0.total_cmp(&a.0));
        let mut x_hat = [0.0; D];
        for &(z, i) in h.iter().take(6).filter(|(z, _)| *z > 0.0) {
            x_hat.iter_mut().zip(&w_dec[i * D..]).for_each(|(out, w)| *out += z * w);
        }
        norm += x_hat.iter().map(|v| v * v).sum::<f32>().sqrt() / 200.0;
    }
    assert!((norm - 1.0).abs() < 0.05, "{norm}");
}

#[test]
fn threads_do_not_show() {
    let run = |pool: Pool| {
        let mut trainer = started(&options(), pool);
        let mut stats: Vec<StepStats> = Vec::new();
        for seed in 2..30 {
            stats.push(trainer.step(&view(&activations(seed, 17 + seed as usize)).into()).unwrap());
        }
        assert!(stats.iter().any(|s| s.aux > 0.0), "AuxK must be at work for this to mean much");
        (stats, both_exports(&trainer))
    };
    let alone = run(Pool::serial());
    for threads in [2, 3, 7] {
        assert!(alone == run(Pool::new(threads).unwrap()), "{threads} threads");
    }
}

/// Sums and gradients (means over tokens, b_dec's complete) of one batch under given weights.
struct Probe {
    mse: f64,
    aux: f64,
    dead: usize,
    gradients: [Vec<f64>; 4],
}

const PROBE_LOSS: LossParameters = LossParameters {
    k: 0,
    normalizer: 0.7,
    aux_coefficient: 0.5,
    sparsity_coefficient: 0.0,
    fired: 1e-3,
    dead_after_tokens: 1000,
};

fn probe(k: usize, k_aux: usize, weights: &[Vec<f32>; 4], unfired: &[u64]) -> Probe {
    let normalization = Normalization::None;
    let shape = TrainingShape { k_aux, max_tokens: 40, ema: false, normalization, ..TrainingShape::top_k(k, D, N) };
    let x = activations(3, 40);
    let mut backend = CpuTraining::new(shape, Pool::serial(), Kernels::best().unwrap()).unwrap();
    for (parameter, values) in Parameter::COMMON.into_iter().zip(weights) {
        backend.write(Role::Weight, parameter, values).unwrap();
    }
    backend.write_unfired(unfired).unwrap();
    let rows = TrainingRows::from(Input::from(view(&x)));
    let sums = backend.accumulate(&rows, &PROBE_LOSS).unwrap();
    let mut gradients = Parameter::COMMON.map(|parameter| {
        let mut values = vec![0.0; TrainingShape::top_k(1, D, N).len(parameter)];
        backend.read(Role::Gradient, parameter, &mut values).unwrap();
        values.iter().map(|v| f64::from(*v) / 40.0).collect::<Vec<f64>>()
    });
    // What reaches b_dec through the encoder is otherwise added when the step is made.
    for i in 0..N * D {
        gradients[3][i % D] -= gradients[1][i / D] * f64::from(weights[0][i]);
    }
    let mse = sums.squared_error / (40.0 * D as f64 * PROBE_LOSS.normalizer);
    Probe { mse, aux: sums.aux_loss, dead: sums.dead, gradients }
}

/// The relative difference between gradients and central differences of the loss, over some of the weights.
fn gradient_error(
    weights: &[Vec<f32>; 4],
    gradients: &[Vec<f64>; 4],
    chosen: impl Fn(usize, usize) -> bool,
    loss: impl Fn(&[Vec<f32>; 4]) -> f64,
) -> f64 {
    let (mut difference, mut size) = (0.0, 0.0);
    for (p, gradient) in gradients.iter().enumerate() {
        let stride = if gradient.len() > N { 13 } else { 1 };
        for i in (0..gradient.len()).step_by(stride).filter(|&i| chosen(p, i)) {
            let at = |step: f32| {
                let mut moved = weights.clone();
                moved[p][i] += step;
                loss(&moved)
            };
            let slope = (at(1e-3) - at(-1e-3)) / 2e-3;
            difference += (slope - gradient[i]).powi(2);
            size += slope * slope;
        }
    }
    assert!(size > 1e-8, "the chosen weights do not matter to the loss");
    (difference / size).sqrt()
}

#[test]
fn gradients_are_those_of_the_losses() {
    let start = started(&options(), Pool::serial()).export(Export::Weights).unwrap();
    let w = start.weights();
    let weights: [Vec<f32>; 4] = [
        w.w_enc.rows_f32(0, N, &mut []).to_vec(),
        (0..N).map(|i| 0.05 * noise(8, i)).collect(),
        w.w_dec.rows_f32(0, N, &mut []).to_vec(),
        w.b_dec.clone(),
    ];
    // With every latent allowed there is no selection whose jumps a finite difference would see.
    let found = probe(N, 0, &weights, &[0; N]);
    let error = gradient_error(&weights, &found.gradients, |_, _| true, |w| probe(N, 0, w, &[0; N]).mse);
    assert!(error < 1e-2, "reconstruction: {error}");

    // AuxK: latents long silent, kept so by their bias. By the others' weights and b_dec the loss's target, held constant
    // by the gradient, would move.
    let mut silent = weights;
    let unfired: [u64; N] = std::array::from_fn(|i| if i % 2 == 0 { 0 } else { 2000 });
    (1..N).step_by(2).for_each(|i| silent[1][i] = -0.3);
    let found = probe(4, N, &silent, &unfired);
    assert!(found.aux > 0.0 && found.dead > 20, "{} {}", found.aux, found.dead);
    let without = probe(4, 0, &silent, &unfired);
    let of_aux: [Vec<f64>; 4] =
        std::array::from_fn(|p| found.gradients[p].iter().zip(&without.gradients[p]).map(|(a, b)| a - b).collect());
    let still_dead = |i: usize| {
        let active = without.gradients[1][i] != 0.0;
        i % 2 == 1 && !active
    };
    let chosen = |p: usize, i: usize| p < 3 && still_dead(if p == 1 { i } else { i / D });
    let error = gradient_error(&silent, &of_aux, chosen, |w| probe(4, N, w, &unfired).aux);
    assert!(error < 1e-2, "AuxK: {error}");
}

#[test]
fn rows_left_out_do_not_count() {
    let good = activations(7, 30);
    let mut spoiled = Vec::new();
    let mut mask = Vec::new();
    for (i, row) in good.chunks(D).enumerate() {
        if i % 5 == 0 {
            let mut bad = row.to_vec();
            bad[i % D] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e30][i / 5 % 4];
            spoiled.extend(bad);
            mask.push(1);
        }
        if i % 3 == 0 {
            spoiled.extend([777.0; D]);
            mask.push(0);
        }
        spoiled.extend(row);
        mask.push(-1);
    }
    let mut clean = started(&options(), Pool::serial());
    let mut other = started(&options(), Pool::serial());
    let a = clean.step(&view(&good).into()).unwrap();
    let mask_view = Tensor::new(&mask, &[mask.len()]).unwrap();
    let b = other.step(&Batch { row_mask: Some(mask_view), ..view(&spoiled).into() }).unwrap();
    assert_eq!((b.tokens, b.tokens_masked, b.tokens_not_finite, b.tokens_seen), (30, 10, 6, 30));
    assert_eq!(StepStats { tokens_masked: 0, tokens_not_finite: 0, ..b }, a);
    assert_eq!(both_exports(&clean), both_exports(&other));
    assert_eq!(other.progress().unwrap().rows_given, 46);

    // Nothing left: no step, no change.
    let before = bits(&other.export(Export::Weights).unwrap());
    let nothing = other.step(&view(&[f32::NAN; 2 * D]).into()).unwrap();
    assert_eq!((nothing.tokens, nothing.tokens_not_finite, nothing.applied, nothing.step), (0, 2, false, 1));
    let nothing = other.step(&view(&[]).into()).unwrap();
    assert_eq!((nothing.tokens, nothing.applied, nothing.loss), (0, false, 0.0));
    assert_eq!(before, bits(&other.export(Export::Weights).unwrap()));
}

#[test]
fn accumulated_halves_are_one_batch() {
    let x = activations(11, 60);
    // AuxK's ratio is of each call's tokens, so only without it are the two the same but for rounding.
    let options = TrainOptions { no_aux: true, ..options() };
    let (mut whole, mut halves) = (started(&options, Pool::serial()), started(&options, Pool::serial()));
    let one = whole.step(&view(&x).into()).unwrap();
    let first = halves.step(&Batch { accumulate: true, ..view(&x[..20 * D]).into() }).unwrap();
    assert_eq!((first.applied, first.step, first.tokens_seen), (false, 0, 20));
    let second = halves.step(&view(&x[20 * D..]).into()).unwrap();
    assert_eq!((second.applied, second.step, second.tokens_seen), (true, 1, 60));
    assert!((one.grad_norm - second.grad_norm).abs() < 1e-5 * one.grad_norm);
    let [a, b] = [&whole, &halves].map(|t| t.export(Export::Weights).unwrap());
    assert!(distance(&a, &b) < 1e-5, "{}", distance(&a, &b));
    // A step on what an empty call finds accumulated.
    let mut trailing = started(&options, Pool::serial());
    trailing.step(&Batch { accumulate: true, ..view(&x).into() }).unwrap();
    assert!(trailing.step(&view(&[]).into()).unwrap().applied);
    assert_eq!(both_exports(&trailing), both_exports(&whole));
}

#[test]
fn types_strides_and_addends_are_read() {
    let (rows, stride) = (40, D + 5);
    let halves: Vec<f16> = activations(13, rows).iter().map(|&v| f16::from_f32(v)).collect();
    let brains: Vec<bf16> = activations(14, rows).iter().map(|&v| bf16::from_f32(v)).collect();
    let mut padded = vec![f16::NAN; rows * stride];
    for (to, from) in padded.chunks_mut(stride).zip(halves.chunks(D)) {
        to[..D].copy_from_slice(from);
    }
    let sum: Vec<f32> = halves.iter().zip(&brains).map(|(a, b)| a.to_f32() + b.to_f32()).collect();
    let (mut a, mut b) = (started(&options(), Pool::serial()), started(&options(), Pool::serial()));
    let one = a.step(&view(&sum).into()).unwrap();
    let x = Tensor::strided(&padded, rows, D, stride).unwrap();
    let addend = Some(Tensor::new(&brains, &[rows, D]).unwrap());
    let two = b.step(&Batch { addend, ..x.into() }).unwrap();
    assert_eq!(one, two);
    assert_eq!(both_exports(&a), both_exports(&b));
}

#[test]
fn layer_norm_makes_scale_and_offset_vanish() {
    let options = TrainOptions { normalization: Normalization::LayerNorm, ..options() };
    let sample = activations(1, 200);
    let scaled = |values: &[f32]| values.iter().map(|v| v * 64.0 + 32.0).collect::<Vec<f32>>();
    let (mut a, mut b) =
        (Trainer::new(&options, Pool::serial()).unwrap(), Trainer::new(&options, Pool::serial()).unwrap());
    a.init_from(&view(&sample)).unwrap();
    b.init_from(&view(&scaled(&sample))).unwrap();
    for seed in 2..20 {
        let x = activations(seed, 50);
        let (s, t) = (a.step(&view(&x).into()).unwrap(), b.step(&view(&scaled(&x)).into()).unwrap());
        assert!((s.loss - t.loss).abs() < 1e-2 * s.loss, "{s:?} {t:?}");
    }
    assert_eq!(a.export(Export::Ema).unwrap().spec().normalization, Normalization::LayerNorm);
}

#[test]
fn a_warm_start_continues_an_sae() {
    let mut trainer = started(&options(), Pool::serial());
    for seed in 2..40 {
        trainer.step(&view(&activations(seed, 64)).into()).unwrap();
    }
    let sae = trainer.export(Export::Weights).unwrap();
    let mut warm = Trainer::new(&options(), Pool::serial()).unwrap();
    warm.warm_start(&sae, &view(&activations(1, 300))).unwrap();
    let x = activations(41, 64);
    let (a, b) = (trainer.step(&view(&x).into()).unwrap(), warm.step(&view(&x).into()).unwrap());
    assert!((a.mse - b.mse).abs() < 1e-4 * a.mse, "{a:?} {b:?}");
    let mut misfit = Trainer::new(&TrainOptions { n_latents: N + 1, ..options() }, Pool::serial()).unwrap();
    let error = misfit.warm_start(&sae, &view(&activations(1, 300))).unwrap_err();
    assert!(error.message().contains("n_latents"), "{error}");
    assert_eq!(misfit.step(&view(&x).into()).unwrap_err().status(), Status::BadState);
}

#[test]
fn a_warm_start_refuses_what_it_would_lose() {
    let plain = || started(&options(), Pool::serial()).export(Export::Weights).unwrap().into_parts();
    type Change = fn(&mut Spec, &mut Weights, &mut TrainOptions);
    let layer_norm: Change = |spec, _, options| {
        (spec.normalization, options.normalization) = (Normalization::LayerNorm, Normalization::LayerNorm);
    };
    let hooks: Change = |spec, _, _| {
        spec.convention.hook_point = Some(HookPoint::parse("l_out-8"));
        spec.convention.hook_point_out = Some(HookPoint::parse("l_out-8"));
    };
    let start = |changes: &[Change]| {
        let ((mut spec, mut weights), mut options) = (plain(), options());
        changes.iter().for_each(|change| change(&mut spec, &mut weights, &mut options));
        let mut trainer = Trainer::new(&options, Pool::serial()).unwrap();
        trainer.warm_start(&Sae::new(spec, weights).unwrap(), &view(&activations(1, 300)))
    };
    for kept in [&[][..], &[layer_norm], &[hooks], &[|spec, _, _| spec.denormalize_output = false]] {
        start(kept).unwrap();
    }
    let lost: [(&str, &[Change]); 6] = [
        ("W_skip", &[|_, weights, _| weights.w_skip = Some(Matrix::from_f32(&[0.5; D * D], D, D).unwrap())]),
        ("shard", &[|spec, _, _| spec.shard_of = 2 * N]),
        ("denormalize_output", &[layer_norm, |spec, _, _| spec.denormalize_output = false]),
        ("hook_point_out", &[hooks, |spec, _, _| spec.convention.hook_point_out = Some(HookPoint::parse("l_out-9"))]),
        ("hook_point_out", &[hooks, |spec, _, _| spec.convention.hook_point = None]),
        ("center", &[|spec, _, _| spec.center = true]),
    ];
    for (name, changes) in lost {
        let error = start(changes).unwrap_err();
        assert!(error.status() == Status::Unsupported && error.message().contains(name), "{name}: {error:?}");
    }
}

#[test]
fn sums_are_rounded_as_the_host_does() {
    let brains = |seed| activations(seed, 40).iter().map(|&v| bf16::from_f32(v)).collect::<Vec<_>>();
    let (x, addend) = (brains(13), brains(14));
    let rounded: Vec<bf16> = x.iter().zip(&addend).map(|(a, b)| bf16::from_f32(a.to_f32() + b.to_f32())).collect();
    let tensor = |values| Tensor::new(values, &[40, D]).unwrap();
    let step = |batch: &Batch<'_>| started(&options(), Pool::serial()).step(batch).unwrap();
    let sum = Batch { addend: Some(tensor(&addend)), ..tensor(&x).into() };
    assert_eq!(step(&Batch { round_sum: true, ..sum }), step(&tensor(&rounded).into()));
    assert_ne!(step(&sum), step(&tensor(&rounded).into()));
}

#[test]
fn the_start_does_not_depend_on_the_batch_size() {
    let row = activations(2, 1);
    for recipe in Recipe::ALL {
        // The smallest batch there is, as some recipes have nothing to export before it.
        let start = |max_batch_tokens| {
            let mut trainer = started(&TrainOptions { max_batch_tokens, ..of(recipe) }, Pool::serial());
            let stats = trainer.step(&view(&row).into()).unwrap();
            (stats, bits(&trainer.export(Export::Weights).unwrap()))
        };
        let whole = start(256);
        for most in [1, 7, 64, 255, 10_000] {
            assert!(whole == start(most), "{recipe:?}, {most}");
        }
    }
}

#[test]
fn no_step_of_the_planned_length_is_lost() {
    let options = TrainOptions { total_tokens: 128, decay_fraction: 1.0, ..options() };
    let mut trainer = started(&options, Pool::serial());
    let x = activations(2, 64);
    let half = Batch { accumulate: true, ..view(&x[..32 * D]).into() };
    let rates = [
        trainer.step(&view(&x).into()).unwrap(),
        trainer.step(&half).unwrap(),
        trainer.step(&view(&x[..32 * D]).into()).unwrap(),
        trainer.step(&view(&x).into()).unwrap(),
    ];
    let rates = rates.map(|stats| stats.learning_rate / f64::from(options.learning_rate));
    assert_eq!(rates, [1.0, 0.0, 0.5, 0.0]);
}

#[test]
fn bad_options_are_refused_by_name() {
    let spoils: [(&str, Spoil); 24] = [
        ("d must", |o| o.d = 0),
        ("n_latents must", |o| o.n_latents = 0),
        ("n_latents must", |o| o.n_latents = 1 << 40),
        ("d must", |o| o.d = usize::MAX),
        ("k must", |o| o.k = 0),
        ("k must", |o| o.k = N + 1),
        ("k_aux", |o| o.k_aux = N + 1),
        ("aux_coefficient", |o| o.aux_coefficient = -1.0),
        ("aux_coefficient", |o| o.aux_coefficient = f32::NAN),
        ("learning_rate", |o| o.learning_rate = -1e-3),
        ("learning_rate", |o| o.learning_rate = f32::INFINITY),
        ("adam_beta1", |o| o.adam_beta1 = 1.0),
        ("adam_beta2", |o| o.adam_beta2 = -0.1),
        ("adam_epsilon", |o| o.adam_epsilon = f32::NAN),
        ("clip_norm", |o| o.clip_norm = -1.0),
        ("clip_norm", |o| o.clip_norm = f32::NAN),
        ("ema_decay", |o| o.ema_decay = 1.5),
        ("ema_decay", |o| o.ema_decay = f32::NAN),
        ("decay_fraction", |o| o.decay_fraction = 2.0),
        ("decay_fraction", |o| o.decay_fraction = f32::NAN),
        ("total_tokens", |o| o.decay_fraction = 0.5),
        ("max_batch_tokens", |o| o.max_batch_tokens = usize::MAX),
        ("normalization", |o| o.normalization = Normalization::ConstantNorm),
        ("normalization", |o| (o.d, o.normalization) = (1, Normalization::LayerNorm)),
    ];
    for (name, spoil) in spoils {
        let mut options = options();
        spoil(&mut options);
        let error = refused(Trainer::new(&options, Pool::serial()));
        assert!(matches!(error.status(), Status::InvalidArgument | Status::Unsupported), "{error:?}");
        assert!(error.message().contains(name), "{error} does not name {name}");
    }
    let endless = TrainOptions { d: 1 << 20, n_latents: 1 << 30, k: 1, ..TrainOptions::default() };
    assert_eq!(refused(Trainer::new(&endless, Pool::serial())).status(), Status::OutOfMemory);
    let defaults = TrainOptions { d: 768, n_latents: 1 << 14, k: 32, ..TrainOptions::default() }.resolve().unwrap();
    assert_eq!((defaults.k_aux, defaults.dead_after_tokens, defaults.learning_rate), (384, 10_000_000, 2e-4));
    assert_eq!((defaults.aux_coefficient, defaults.adam_epsilon, defaults.ema_decay), (0.03125, 6.25e-10, 0.999));
    let short = TrainOptions { total_tokens: 1_000_000, ..defaults.clone() };
    assert_eq!(TrainOptions { dead_after_tokens: 0, ..short }.resolve().unwrap().dead_after_tokens, 50_000);
}

#[test]
fn bad_calls_are_refused_and_change_nothing() {
    let mut trainer = Trainer::new(&options(), Pool::serial()).unwrap();
    let x = activations(2, 65);
    let status = |result: sae::Result<StepStats>| result.unwrap_err().status();
    assert_eq!(status(trainer.step(&view(&x[..D]).into())), Status::BadState);
    assert_eq!(trainer.export(Export::Weights).err().unwrap().status(), Status::BadState);
    assert_eq!(trainer.init_from(&view(&x[..D])).unwrap_err().status(), Status::InvalidTensor);
    assert!(trainer.init_from(&Tensor::new(&x[..60], &[3, 20]).unwrap()).is_err());
    trainer.init_from(&view(&x)).unwrap();
    assert_eq!(trainer.init_from(&view(&x)).unwrap_err().status(), Status::BadState);
    assert_eq!(trainer.export(Export::Ema).err().unwrap().status(), Status::BadState);

    let before = bits(&trainer.export(Export::Weights).unwrap());
    let (ints, good) = (vec![1; 64 * D], view(&x[..64 * D]));
    let mask = |len: usize| Some(Tensor::new(&ints[..len], &[len]).unwrap());
    for (name, batch) in [
        ("x", Batch::from(view(&x))),
        ("x", Tensor::new(&x[..60], &[3, 20]).unwrap().into()),
        ("x", Tensor::new(&x[..60], &[60]).unwrap().into()),
        ("x", Tensor::new(&ints, &[64, D]).unwrap().into()),
        ("addend", Batch { addend: Some(view(&x[..D])), ..good.into() }),
        ("addend", Batch { addend: Some(Tensor::new(&ints, &[64, D]).unwrap()), ..good.into() }),
        ("target", Batch { target: Some(good), ..good.into() }),
        ("row_mask", Batch { row_mask: mask(63), ..good.into() }),
        ("row_mask", Batch { row_mask: Some(Tensor::new(&x[..64], &[64]).unwrap()), ..good.into() }),
    ] {
        let error = trainer.step(&batch).unwrap_err();
        assert!(error.message().starts_with(name), "{error} does not name {name}");
    }
    assert_eq!(before, bits(&trainer.export(Export::Weights).unwrap()));
    assert_eq!(trainer.step(&good.into()).unwrap().tokens_seen, 64);
}

#[test]
fn a_gradient_beyond_f32_is_dropped() {
    // Of one batch the square alone is beyond f32, which clipping mends; without clipping the second moment would be it.
    let huge = [1.5e18; 8 * D];
    let mut clipped = started(&options(), Pool::serial());
    let stats = clipped.step(&view(&huge).into()).unwrap();
    assert!(stats.applied && stats.grad_norm > 1e20 && stats.grad_norm.is_finite(), "{stats:?}");
    let unclipped = || started(&TrainOptions { clip_norm: 0.0, ..options() }, Pool::serial());
    for (sum_overflows, mut trainer) in [(true, started(&options(), Pool::serial())), (false, unclipped())] {
        let before = bits(&trainer.export(Export::Weights).unwrap());
        if sum_overflows {
            overflow(&mut trainer);
        }
        let seen = trainer.progress().unwrap().tokens_seen;
        let error = trainer.step(&view(&huge).into()).unwrap_err();
        assert_eq!(error.status(), Status::NotFinite, "{error}");
        assert_eq!(before, bits(&trainer.export(Export::Weights).unwrap()));
        let progress = trainer.progress().unwrap();
        assert_eq!((progress.step, progress.tokens_seen, progress.pending_tokens), (0, seen + 8, 0));
        let stats = trainer.step(&view(&activations(2, 50)).into()).unwrap();
        assert!(stats.applied && stats.step == 1 && stats.grad_norm < 1e3, "{stats:?}");
    }
}

#[test]
fn sums_of_gradients_may_be_large_where_their_means_are_not() {
    let normalization = Normalization::None;
    let shape = TrainingShape { k_aux: 0, max_tokens: 8, ema: false, normalization, ..TrainingShape::top_k(4, D, N) };
    let mut backend = CpuTraining::new(shape, Pool::serial(), Kernels::best().unwrap()).unwrap();
    // The square of one row's sum is beyond f32.
    backend.write(Role::Gradient, Parameter::WEnc, &[1e20; N * D]).unwrap();
    let step = StepParameters {
        tokens: 1 << 60,
        step: 1,
        learning_rate: 1e-3,
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        clip_norm: 0.0,
        ema_decay: 0.9,
    };
    let norm = backend.apply(&step).unwrap();
    let wanted = 1e20 / (1u64 << 60) as f64 * ((N * D) as f64).sqrt();
    assert!((norm - wanted).abs() < 1e-6 * wanted, "{norm}, not {wanted}");
    let mut weights = vec![0.0; N * D];
    backend.read(Role::Weight, Parameter::WEnc, &mut weights).unwrap();
    assert!(weights.iter().all(|w| (w + 1e-3).abs() < 1e-6), "{weights:?}");
    // Where even the mean's square is beyond f32, the second moment would be too.
    backend.write(Role::Gradient, Parameter::WEnc, &[1e20; N * D]).unwrap();
    assert_eq!(backend.apply(&StepParameters { tokens: 1, ..step }).unwrap(), f64::INFINITY);
    let mut after = vec![0.0; N * D];
    backend.read(Role::Weight, Parameter::WEnc, &mut after).unwrap();
    assert_eq!(after, weights);
}

/// A start whose codes are far too long, so that what they leave of a large token has no square within f32.
fn overshooting(recipe: Recipe) -> Trainer {
    let options = of(recipe);
    let w_dec: Vec<f32> = (0..N * D).map(|i| noise(3, i)).collect();
    let w_enc: Vec<f32> = w_dec.iter().map(|w| 3.0 * w).collect();
    let matrix = |values: &[f32]| Matrix::from_f32(values, N, D).unwrap();
    let weights = Weights::new(matrix(&w_enc), vec![0.0; N], matrix(&w_dec), vec![0.0; D]);
    let sae = Sae::new(Spec::new(Architecture::TopK { k: 6 }, D, N), weights).unwrap();
    let mut trainer = Trainer::new(&options, Pool::serial()).unwrap();
    trainer.warm_start(&sae, &view(&activations(1, 300))).unwrap();
    trainer
}

#[test]
fn what_overflows_spoils_no_measurement() {
    let dir = tempfile::tempdir().unwrap();
    let healthy = activations(2, 50);
    let mut large = healthy.clone();
    large[..D].fill(3.7e18);
    for recipe in [Recipe::TopK, Recipe::BatchTopK, Recipe::Relu] {
        let mut trainer = overshooting(recipe);
        trainer.step(&view(&healthy).into()).unwrap();
        let before = trainer.progress().unwrap().clone();
        // Alone and as part of a sum that is dropped together with healthy calls before it.
        for accumulated in [false, true] {
            if accumulated {
                trainer.step(&Batch { accumulate: true, ..view(&healthy).into() }).unwrap();
                let pending = trainer.progress().unwrap();
                assert!(pending.reference.fvu != before.reference.fvu, "{recipe:?}");
            }
            let large = Batch { accumulate: true, ..view(&large).into() };
            let stats = trainer.step(&large).unwrap();
            assert!(!stats.fvu.is_finite() && stats.tokens == 50, "{recipe:?}: {stats:?}");
            let measured = trainer.progress().unwrap().reference;
            assert!(measured.fvu.is_some_and(f64::is_finite), "{recipe:?}: {measured:?}");
            let exported = trainer.export(Export::Weights).unwrap();
            assert_eq!(exported.spec().convention.reference.unwrap().fvu, measured.fvu, "{recipe:?}");
            // Until the sum itself goes beyond f32, and with it the gradient.
            let error = (0..100).find_map(|_| {
                (0..20).for_each(|_| drop(trainer.step(&large)));
                trainer.step(&view(&healthy).into()).err()
            });
            let error = error.expect("a gradient that is not finite");
            assert_eq!(error.status(), Status::NotFinite, "{recipe:?}: {error}");
            println!("{recipe:?} {accumulated} {:?}", trainer.progress());
            trainer.save(dir.path()).unwrap();
            let resumed = Trainer::resume(dir.path(), &TrainOptions::default(), Pool::serial()).unwrap();
            assert_eq!(resumed.progress(), trainer.progress(), "{recipe:?}");
        }
    }
}

#[test]
fn a_threshold_that_nothing_has_measured_is_not_exported() {
    for recipe in [Recipe::BatchTopK, Recipe::Matryoshka] {
        let mut trainer = started(&of(recipe), Pool::serial());
        let error = trainer.export(Export::Weights).err().expect("a refusal");
        assert!(error.status() == Status::BadState && error.message().contains("call step first"), "{error}");
        trainer.step(&view(&activations(2, 50)).into()).unwrap();
        let first = trainer.export(Export::Weights).unwrap();
        assert!(first.weights().threshold.as_ref().unwrap().iter().all(|theta| *theta > 0.0));
        // Nor are the thresholds of an SAE that it starts from taken for its own.
        let mut again = Trainer::new(&of(recipe), Pool::serial()).unwrap();
        again.warm_start(&first, &view(&activations(1, 300))).unwrap();
        assert_eq!(again.export(Export::Weights).err().expect("a refusal").status(), Status::BadState);
    }
}
