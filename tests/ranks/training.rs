//! Whole runs: by a grid of ranks they end close to where one process ends, with the same bits whoever computes.

use sae::backend::Pool;
use sae::collective::{Axis, Ranks};
use sae::sae::Sae;
use sae::tensor::Tensor;
use sae::training::{Batch, Export, Penalty, Recipe, StepStats, TrainOptions, Trainer};

use crate::runs::{D, activations, bits, noise, of, options, view};
use crate::support::on_grid;

const ROWS: usize = 60;
const STEPS: u64 = 40;
/// How far weights may be from those of one process, relative to how far these have moved. What differs is the order of sums.
const BOUND: f64 = 1e-4;

/// The batch of all ranks: with a few rows that are not finite.
fn batch(seed: u64) -> Vec<f32> {
    let mut x = activations(seed, ROWS);
    for (row, x) in x.chunks_exact_mut(D).enumerate() {
        if noise(seed + 9, row) > 0.9 {
            x[row % D] = f32::NAN;
        }
    }
    x
}

fn mask(seed: u64) -> Vec<i32> {
    (0..ROWS).map(|row| i32::from(noise(seed + 8, row) < 0.8)).collect()
}

/// Starts a run and makes its steps, each rank with its tokens of every batch.
fn run(options: &TrainOptions, ranks: &Ranks, threads: usize) -> (Trainer, Vec<StepStats>) {
    let mut trainer = Trainer::among(options, Pool::new(threads).unwrap(), ranks.clone()).unwrap();
    // Rank 0's sample counts.
    let sample = activations(if ranks.rank() == 0 { 1 } else { 77 }, 300);
    let count = ranks.count(Axis::Data);
    let part = ROWS * ranks.place(Axis::Data) / count..ROWS * (ranks.place(Axis::Data) + 1) / count;
    let target = |x: &[f32]| -> Vec<f32> { x.iter().map(|v| v * v - 0.5).collect() };
    if options.transcoder {
        trainer.init_transcoder(&view(&sample), &view(&target(&sample))).unwrap();
    } else {
        trainer.init_from(&view(&sample)).unwrap();
    }
    let steps = (2..2 + STEPS).map(|seed| {
        let (x, mask) = (batch(seed), mask(seed));
        let (x, mask) = (&x[part.start * D..part.end * D], &mask[part.clone()]);
        let y = target(x);
        trainer
            .step(&Batch {
                target: options.transcoder.then(|| view(&y)),
                row_mask: Some(Tensor::new(mask, &[mask.len()]).unwrap()),
                accumulate: seed % 4 == 1,
                ..view(x).into()
            })
            .unwrap()
    });
    let steps = steps.collect();
    (trainer, steps)
}

/// How far the weights of a run are from those of another, relative to how far that one moved from its start.
fn distance(found: &Sae, expected: &Sae, start: &Sae) -> f64 {
    let all = |sae: &Sae| -> Vec<f64> {
        let (w, n) = (sae.weights(), sae.spec().n_latents);
        let matrices = [w.w_enc.rows_f32(0, n, &mut []), w.w_dec.rows_f32(0, n, &mut [])];
        let vectors = [&w.b_enc[..], &w.b_dec[..], w.threshold.as_deref().unwrap_or(&[])];
        matrices.into_iter().chain(vectors).flatten().map(|v| f64::from(*v)).collect()
    };
    let apart = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt();
    let (found, expected, start) = (all(found), all(expected), all(start));
    apart(&found, &expected) / apart(&expected, &start)
}

fn cases() -> Vec<(&'static str, TrainOptions)> {
    let penalty = |penalty, target_l0| TrainOptions { penalty, target_l0, ..of(Recipe::JumpRelu) };
    vec![
        ("top_k", options()),
        ("top_k, k annealed", TrainOptions { k_start: 11, k_anneal_steps: 20, ..options() }),
        ("multi_top_k", of(Recipe::MultiTopK)),
        ("abs_top_k", of(Recipe::AbsTopK)),
        ("batch_top_k", of(Recipe::BatchTopK)),
        ("matryoshka", of(Recipe::Matryoshka)),
        ("relu", of(Recipe::Relu)),
        ("jump_relu", of(Recipe::JumpRelu)),
        ("jump_relu, tanh", penalty(Penalty::Tanh, 0.0)),
        ("jump_relu, quadratic", penalty(Penalty::Quadratic, 6.0)),
        ("crosscoder", TrainOptions { layers: 2, d: D / 2, ..options() }),
        ("transcoder", TrainOptions { transcoder: true, ..options() }),
        ("skip transcoder", TrainOptions { transcoder: true, skip: true, ..options() }),
    ]
}

fn check(name: &str, options: &TrainOptions, grids: &[(usize, usize)]) {
    let (whole, expected) = run(options, &Ranks::alone(), 1);
    let start = {
        // Where latents compete over batches there is no threshold to export yet; they start as TopK does.
        let by_batch = matches!(options.recipe, Recipe::BatchTopK | Recipe::Matryoshka);
        let recipe = if by_batch { Recipe::TopK } else { options.recipe };
        let mut trainer = Trainer::new(&TrainOptions { recipe, ..options.clone() }, Pool::serial()).unwrap();
        let sample = activations(1, 300);
        let target: Vec<f32> = sample.iter().map(|v| v * v - 0.5).collect();
        match options.transcoder {
            true => trainer.init_transcoder(&view(&sample), &view(&target)).unwrap(),
            false => trainer.init_from(&view(&sample)).unwrap(),
        }
        trainer.export(Export::Weights).unwrap()
    };
    if options.recipe == Recipe::TopK {
        assert!(expected.iter().any(|stats| stats.aux > 0.0), "{name}: AuxK is not alive");
    }
    let export = |trainer: &Trainer| [Export::Weights, Export::Ema].map(|what| trainer.export(what).unwrap());
    let wanted = export(&whole);
    for &(data, latents) in grids {
        let all = on_grid(data, latents, |ranks| {
            let (trainer, steps) = run(options, &ranks, 1 + ranks.rank() % 2);
            (export(&trainer), steps, trainer.progress().unwrap().clone())
        });
        for (rank, (exports, steps, progress)) in all.iter().enumerate() {
            let place = format!("{name}, rank {rank} of {data} × {latents}");
            assert_eq!(steps, &all[0].1, "{place} was told otherwise");
            assert_eq!(exports.each_ref().map(bits), all[0].0.each_ref().map(bits), "{place} has other weights");
            assert_eq!(progress, &all[0].2, "{place}");
            let so_far = whole.progress().unwrap();
            assert_eq!(
                (progress.step, progress.rows_given, progress.tokens_seen),
                (so_far.step, so_far.rows_given, so_far.tokens_seen)
            );
        }
        for (found, wanted) in all[0].1.iter().zip(&expected) {
            let exact = |stats: &StepStats| (stats.tokens, stats.tokens_masked, stats.tokens_not_finite, stats.applied);
            assert_eq!(exact(found), exact(wanted), "{name}");
            for (found, wanted) in [(found.loss, wanted.loss), (found.fvu, wanted.fvu), (found.l0, wanted.l0)] {
                assert!((found - wanted).abs() <= 1e-4 * wanted.abs() + 1e-9, "{name}: {found} for {wanted}");
            }
        }
        for (found, wanted) in all[0].0.iter().zip(&wanted) {
            let distance = distance(found, wanted, &start);
            println!("{name} on {data} × {latents}: {distance:.1e}");
            assert!(distance <= BOUND, "{name} on {data} × {latents}: {distance:e}");
        }
    }
}

#[test]
fn a_grid_trains_what_one_process_trains() {
    for (name, options) in cases() {
        check(name, &options, &[(2, 2), (1, 3)]);
    }
}

#[test]
fn gated_runs_and_others_split_tokens_alone() {
    for (name, options) in [("gated", of(Recipe::Gated)), ("top_k", options()), ("relu", of(Recipe::Relu))] {
        check(name, &options, &[(3, 1)]);
    }
}

#[test]
fn threads_do_not_show() {
    let bits_with = |threads: usize| {
        let all = on_grid(2, 2, |ranks| {
            let (trainer, steps) = run(&options(), &ranks, threads);
            (crate::runs::both_exports(&trainer), steps)
        });
        all.into_iter().next().unwrap()
    };
    assert_eq!(bits_with(1), bits_with(3));
}

#[test]
fn a_grid_starts_from_an_sae() {
    let (first, _) = run(&options(), &Ranks::alone(), 1);
    let sae = first.export(Export::Weights).unwrap();
    let sample = activations(4, 200);
    let start = |ranks: Ranks| {
        let mut trainer = Trainer::among(&options(), Pool::serial(), ranks).unwrap();
        trainer.warm_start(&sae, &view(&sample)).unwrap();
        bits(&trainer.export(Export::Weights).unwrap())
    };
    let expected = start(Ranks::alone());
    for found in on_grid(2, 3, start) {
        assert_eq!(found, expected);
    }
}

#[test]
fn ranks_of_fewer_latents_than_k_start() {
    for (latents, ranks) in [(8, 4), (9, 2)] {
        let options = TrainOptions {
            recipe: Recipe::BatchTopK,
            k_aux: 2,
            n_latents: latents,
            k: latents / 2,
            max_batch_tokens: 16,
            ..options()
        };
        let active = on_grid(1, ranks, |ranks| {
            let mut trainer = Trainer::among(&options, Pool::serial(), ranks).unwrap();
            trainer.init_from(&view(&activations(1, 300))).unwrap();
            trainer.step(&view(&activations(2, 16)).into()).unwrap().l0
        });
        assert!(active.iter().all(|&l0| l0 > 0.0), "{active:?}");
    }
}
