//! Each recipe: twenty steps against plain PyTorch in float64 (`golden/make_training_recipes.py`), gradients against finite
//! differences, accumulation, threads, and resuming.

#![allow(clippy::unwrap_used)]

#[path = "runs/golden.rs"]
mod golden;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use golden::Golden;
use sae::backend::training::Parameter;
use sae::backend::{Pool, Run, Wanted};
use sae::sae::{Architecture, Gate, Matrix, Sae, Spec, Weights};
use sae::session::{Session, SessionOptions};
use sae::tensor::{DType, Device, Tensor, TensorMut};
use sae::training::{Batch, Export, Penalty, Recipe, Scaling, StepStats, TrainOptions, Trainer};
use safetensors::SafeTensors;

const D: usize = 16;
const D_OUT: usize = 20;
/// Of crosscoders, side by side in D.
const LAYERS: usize = 2;
const N: usize = 64;
const K: usize = 4;
const TOKENS: usize = 48;
const STEPS: usize = 20;
const CLIP: f32 = 0.15;

/// A recipe as the goldens have it.
struct Case {
    name: &'static str,
    options: TrainOptions,
    /// Of the SAE that the run starts from.
    start: Architecture,
}

fn cases() -> Vec<Case> {
    let shared = TrainOptions {
        d: D,
        n_latents: N,
        scaling: Scaling::None,
        dead_after_tokens: 5 * TOKENS as u64,
        learning_rate: 2e-3,
        clip_norm: CLIP,
        ema_decay: 0.9,
        adam_beta1: 0.9,
        ..TrainOptions::default()
    };
    let counting = TrainOptions { k: K, k_aux: 8, ..shared.clone() };
    let of = |recipe: Recipe, start| {
        let options = TrainOptions { recipe, ..counting.clone() };
        Case { name: recipe.name(), start, options }
    };
    let penalized = |recipe: Recipe, start, sparsity_coefficient| {
        let options = TrainOptions { recipe, sparsity_coefficient, sparsity_warmup_steps: 4, ..shared.clone() };
        Case { name: recipe.name(), start, options }
    };
    let jumping = |name, penalty| {
        let mut case = penalized(Recipe::JumpRelu, Architecture::JumpRelu, 0.2);
        case.name = name;
        (case.options.penalty, case.options.bandwidth) = (penalty, 0.5);
        case.options.target_l0 = if penalty == Penalty::Quadratic { 6.0 } else { 0.0 };
        case
    };
    let transcoding = |name, mut case: Case, skip| {
        (case.name, case.options.transcoder, case.options.d_out, case.options.skip) = (name, true, D_OUT, skip);
        case
    };
    let crossing = |name, mut case: Case| {
        (case.name, case.options.layers, case.options.d) = (name, LAYERS, D / LAYERS);
        case
    };
    let top_k = Architecture::TopK { k: K };
    let mut matryoshka = of(Recipe::Matryoshka, top_k);
    matryoshka.options.prefixes = vec![8, 24, 64];
    matryoshka.options.prefix_weights = vec![0.5, 2.0, 1.0];
    vec![
        of(Recipe::MultiTopK, top_k),
        of(Recipe::AbsTopK, Architecture::AbsTopK { k: K }),
        of(Recipe::BatchTopK, top_k),
        matryoshka,
        penalized(Recipe::Relu, Architecture::Relu, 0.3),
        jumping("jump_relu", Penalty::Step),
        jumping("jump_relu_tanh", Penalty::Tanh),
        jumping("jump_relu_quadratic", Penalty::Quadratic),
        penalized(Recipe::Gated, Architecture::Gated, 0.2),
        transcoding("transcoder", of(Recipe::TopK, top_k), false),
        transcoding("skip_transcoder", penalized(Recipe::Relu, Architecture::Relu, 0.3), true),
        crossing("crosscoder", penalized(Recipe::Relu, Architecture::Relu, 0.3)),
        crossing("top_k_crosscoder", of(Recipe::TopK, top_k)),
        crossing("batch_top_k_crosscoder", of(Recipe::BatchTopK, top_k)),
    ]
}

impl Golden {
    /// That of a case.
    fn of(name: &str) -> Self {
        Self::read(&format!("training_recipes/{name}.safetensors"))
    }

    fn has(&self, name: &str) -> bool {
        self.bytes(name).is_some()
    }

    /// The SAE that the run starts from.
    fn start(&self, architecture: Architecture, options: &TrainOptions) -> Sae {
        let start = |name: &str| self.f32(&format!("start.{name}"));
        let d_out = start("b_dec").len();
        let matrix = |name: &str, rows, cols| Matrix::from_f32(&start(name), rows, cols).unwrap();
        let (w_enc, w_dec) = (matrix("W_enc", N, D), matrix("W_dec", N, d_out));
        let mut weights = Weights::new(w_enc, start("b_enc"), w_dec, start("b_dec"));
        let mut spec = Spec::new(architecture, D, N);
        if options.transcoder {
            (spec.d_out, spec.subtract_b_dec, spec.denormalize_output) = (d_out, false, false);
            weights.w_skip = options.skip.then(|| matrix("W_skip", d_out, D));
        }
        if options.layers > 1 {
            (spec.layers_in, spec.layers_out, spec.subtract_b_dec) = (LAYERS, LAYERS, false);
        }
        match architecture {
            Architecture::JumpRelu => weights.threshold = Some(start("threshold")),
            Architecture::Gated => weights.gate = Some(Gate { r_mag: start("r_mag"), b_gate: start("b_gate") }),
            _ => {}
        }
        Sae::new(spec, weights).unwrap()
    }

    /// The batches, and their targets if there are any.
    fn batches(&self) -> Vec<(Vec<f32>, Option<Vec<f32>>)> {
        let targets = self.has("targets").then(|| self.f32("targets"));
        let x = self.f32("batches");
        let target = |i: usize| targets.as_ref().map(|y| y[i * TOKENS * D_OUT..][..TOKENS * D_OUT].to_vec());
        x.chunks(TOKENS * D).enumerate().map(|(i, x)| (x.to_vec(), target(i))).collect()
    }
}

fn batch<'a>((x, y): &'a (Vec<f32>, Option<Vec<f32>>)) -> Batch<'a> {
    let target = y.as_ref().map(|y| Tensor::new(y, &[y.len() / D_OUT, D_OUT]).unwrap());
    Batch { target, ..view(x).into() }
}

fn view(values: &[f32]) -> Tensor<'_> {
    Tensor::new(values, &[values.len() / D, D]).unwrap()
}

fn warm(golden: &Golden, case: &Case, pool: Pool) -> Trainer {
    let mut trainer = Trainer::new(&case.options, pool).unwrap();
    let (sae, sample) = (golden.start(case.start, &case.options), golden.f32("batches"));
    if case.options.transcoder {
        let targets = golden.f32("targets");
        let targets = Tensor::new(&targets, &[STEPS * TOKENS, D_OUT]).unwrap();
        trainer.warm_start_transcoder(&sae, &view(&sample), &targets).unwrap();
    } else {
        trainer.warm_start(&sae, &view(&sample)).unwrap();
    }
    trainer
}

fn train(golden: &Golden, case: &Case, pool: Pool) -> (Vec<StepStats>, Trainer) {
    let mut trainer = warm(golden, case, pool);
    let stats = golden.batches().iter().map(|one| trainer.step(&batch(one)).unwrap()).collect();
    (stats, trainer)
}

/// All numbers of an SAE by their names in the goldens.
fn tensors(sae: &Sae) -> Vec<(&'static str, Vec<f32>)> {
    let w = sae.weights();
    let matrices = w.matrices().map(|(name, m)| (name, m.rows_f32(0, m.rows(), &mut []).to_vec()));
    matrices.chain(w.vectors().map(|(name, v)| (name, v.to_vec()))).collect()
}

/// ‖ΔW − ΔW_ref‖ / ‖ΔW_ref‖ of each tensor of an export.
fn deviations(golden: &Golden, kind: &str, sae: &Sae) -> Vec<(String, f64)> {
    let mut deviations = Vec::new();
    for (name, found) in tensors(sae).into_iter().filter(|(name, _)| golden.has(&format!("{kind}.{name}"))) {
        let (start, wanted) = (golden.f32(&format!("start.{name}")), golden.f64(&format!("{kind}.{name}")));
        let (mut difference, mut change) = (0.0, 0.0);
        for ((&found, &wanted), &start) in found.iter().zip(&wanted).zip(&start) {
            difference += (f64::from(found) - wanted).powi(2);
            change += (wanted - f64::from(start)).powi(2);
        }
        assert!(change > 0.0, "{kind}.{name} did not move");
        deviations.push((format!("{kind}.{name}"), (difference / change).sqrt()));
    }
    assert!(deviations.len() >= 4, "{kind}: {deviations:?}");
    deviations
}

#[test]
fn twenty_steps_agree_with_float64() {
    for case in cases() {
        let golden = Golden::of(case.name);
        let (stats, trainer) = train(&golden, &case, Pool::serial());
        for (step, (stats, report)) in stats.iter().zip(golden.f64("reports").chunks(7)).enumerate() {
            let found = [stats.mse, stats.aux, stats.sparsity, stats.fvu, stats.l0, stats.dead as f64, stats.grad_norm];
            let names = ["mse", "aux", "sparsity", "fvu", "l0", "dead", "norm"];
            for ((part, found), wanted) in names.iter().zip(found).zip(report) {
                let near = (found - wanted).abs() <= 1e-3 * wanted.abs();
                assert!(near, "{}, step {step}: {part} {found}, not {wanted}", case.name);
            }
            assert!((stats.loss - stats.mse - stats.aux - stats.sparsity).abs() < 1e-12);
        }
        for (kind, what) in [("end", Export::Weights), ("ema", Export::Ema)] {
            for (tensor, deviation) in deviations(&golden, kind, &trainer.export(what).unwrap()) {
                println!("{} {tensor}: {deviation:.2e}", case.name);
                assert!(deviation <= 5e-3, "{} {tensor}: {deviation}", case.name);
            }
        }
    }
}

#[test]
fn each_part_of_a_loss_is_seen() {
    type Spoil = fn(&mut TrainOptions);
    let spoils: [(&str, &str, Spoil); 19] = [
        ("multi_top_k", "the second reconstruction", |o| o.recipe = Recipe::TopK),
        ("multi_top_k", "AuxK", |o| o.no_aux = true),
        ("abs_top_k", "AuxK", |o| o.no_aux = true),
        ("batch_top_k", "who competes", |o| o.recipe = Recipe::TopK),
        ("batch_top_k", "AuxK", |o| o.no_aux = true),
        ("matryoshka", "a prefix", |o| (o.prefixes[0], o.prefixes[1]) = (4, 24)),
        ("matryoshka", "a weight", |o| o.prefix_weights[1] = 1.0),
        ("relu", "the penalty", |o| o.sparsity_coefficient = 0.2),
        ("relu", "the warm-up", |o| o.sparsity_warmup_steps = 0),
        ("jump_relu", "the penalty", |o| o.sparsity_coefficient = 0.15),
        ("jump_relu", "the bandwidth", |o| o.bandwidth = 0.4),
        ("jump_relu_tanh", "the kind of penalty", |o| o.penalty = Penalty::Step),
        ("jump_relu_quadratic", "the target", |o| o.target_l0 = 4.0),
        ("transcoder", "AuxK", |o| o.no_aux = true),
        ("skip_transcoder", "what is frozen", |o| o.frozen = vec![Parameter::WSkip, Parameter::BDec]),
        ("crosscoder", "the penalty", |o| o.sparsity_coefficient = 0.2),
        ("top_k_crosscoder", "AuxK", |o| o.no_aux = true),
        ("gated", "the penalty", |o| o.sparsity_coefficient = 0.15),
        ("gated", "the warm-up", |o| o.sparsity_warmup_steps = 0),
    ];
    for (recipe, what, spoil) in spoils {
        let golden = Golden::of(recipe);
        let mut case = cases().into_iter().find(|case| case.name == recipe).unwrap();
        spoil(&mut case.options);
        if case.options.recipe == Recipe::TopK {
            case.options.prefixes.clear();
        }
        let sae = train(&golden, &case, Pool::serial()).1.export(Export::Weights).unwrap();
        let worst = deviations(&golden, "end", &sae).iter().map(|(_, d)| *d).fold(0.0, f64::max);
        println!("{recipe}, {what}: {worst:.2e}");
        assert!(worst > 2e-2, "{recipe}, {what} goes unnoticed: {worst}");
    }
}

/// Of each latent, the sum of its decoder's norms at each layer.
fn decoder_norms(sae: &Sae) -> Vec<f32> {
    let (w_dec, spec) = (&sae.weights().w_dec, sae.spec());
    let rows = w_dec.rows_f32(0, N, &mut []).to_vec();
    let norm_of = |row: &[f32]| row.iter().map(|w| w * w).sum::<f32>().sqrt();
    let layers = |row: &[f32]| row.chunks(row.len() / spec.layers_out).map(norm_of).sum();
    rows.chunks(spec.d_out).map(layers).collect()
}

/// The bits of both exports.
fn exports(trainer: &Trainer) -> Vec<u32> {
    let all = [Export::Weights, Export::Ema].map(|what| tensors(&trainer.export(what).unwrap()));
    all.into_iter().flatten().flat_map(|(_, values)| values).map(f32::to_bits).collect()
}

#[test]
fn threads_do_not_show() {
    for case in cases() {
        let golden = Golden::of(case.name);
        let run = |threads| {
            let (stats, trainer) = train(&golden, &case, Pool::new(threads).unwrap());
            (stats, exports(&trainer))
        };
        let alone = run(1);
        for threads in [2, 5] {
            assert!(run(threads) == alone, "{}: {threads} threads", case.name);
        }
    }
}

#[test]
fn a_resumed_run_has_the_same_bits() {
    for case in cases() {
        let golden = Golden::of(case.name);
        let batches = golden.batches();
        // Some batches are accumulated; one save is in the middle of that.
        let step = |trainer: &mut Trainer, i: usize| {
            trainer.step(&Batch { accumulate: i.is_multiple_of(3), ..batch(&batches[i]) }).unwrap()
        };
        let dir = tempfile::tempdir().unwrap();
        let mut unbroken = warm(&golden, &case, Pool::serial());
        for i in 0..STEPS {
            step(&mut unbroken, i);
            if i == 9 {
                unbroken.save(dir.path()).unwrap();
            }
        }
        let mut resumed = Trainer::resume(dir.path(), &case.options, Pool::new(2).unwrap()).unwrap();
        for i in 10..STEPS {
            step(&mut resumed, i);
        }
        assert!(exports(&resumed) == exports(&unbroken), "{}", case.name);
        assert_eq!(resumed.progress(), unbroken.progress(), "{}", case.name);
    }
}

#[test]
fn what_is_exported_encodes_as_it_trained() {
    for case in cases() {
        let golden = Golden::of(case.name);
        let (_, mut trainer) = train(&golden, &case, Pool::serial());
        let sae = trainer.export(Export::Weights).unwrap();
        let first = &golden.batches()[0];
        let (x, y) = (&first.0, first.1.as_ref().unwrap_or(&first.0));
        let again = || trainer.export(Export::Weights).unwrap();
        let (fvu, l0) = (fvu(again(), x, y), l0(again(), x));
        let trained = trainer.step(&batch(first)).unwrap();
        if case.options.recipe == Recipe::BatchTopK || case.options.recipe == Recipe::Matryoshka {
            // A threshold that holds for all batches keeps about what each kept by competing.
            assert!((l0 - trained.l0).abs() < 0.25 * trained.l0, "{}: {l0} {trained:?}", case.name);
            assert!((fvu - trained.fvu).abs() < 0.1 * trained.fvu, "{}: {fvu} {trained:?}", case.name);
        } else {
            assert!((l0 - trained.l0).abs() < 1e-9, "{}: {l0} {trained:?}", case.name);
            assert!((fvu - trained.fvu).abs() < 1e-4 * trained.fvu, "{}: {fvu} {trained:?}", case.name);
        }
        let spec = sae.spec();
        let expected = match case.options.recipe {
            Recipe::BatchTopK | Recipe::Matryoshka => Architecture::JumpRelu,
            Recipe::AbsTopK => Architecture::AbsTopK { k: K },
            Recipe::Relu | Recipe::JumpRelu | Recipe::Gated => case.start,
            _ => Architecture::TopK { k: K },
        };
        assert_eq!(spec.architecture, expected, "{}", case.name);
        let widths = (spec.d_in, spec.d_out, spec.subtract_b_dec, sae.weights().w_skip.is_some());
        let (transcoder, layers) = (case.options.transcoder, case.options.layers.max(1));
        let plain = !transcoder && layers == 1;
        assert_eq!(widths, (D, if transcoder { D_OUT } else { D }, plain, case.options.skip), "{}", case.name);
        assert_eq!((spec.layers_in, spec.layers_out), (layers, layers), "{}", case.name);
        assert_eq!(spec.prefixes, case.options.prefixes, "{}", case.name);
        if let (Recipe::BatchTopK | Recipe::Matryoshka, Some(threshold)) =
            (case.options.recipe, &sae.weights().threshold)
        {
            let smallest = golden.f64("smallest");
            // The average of what the batches kept, later ones weighing a little more.
            let mean = smallest.iter().sum::<f64>() / smallest.len() as f64;
            assert!(threshold.iter().all(|t| (f64::from(*t) - mean).abs() < 1e-2 * mean), "{threshold:?} {mean}");
        }
    }
}

/// Latents that start anew are unit vectors of tokens, the rest stay; also after a resume, and on any number of threads.
#[test]
fn dead_latents_start_anew() {
    for recipe in ["relu", "jump_relu", "gated", "batch_top_k", "skip_transcoder", "crosscoder"] {
        let golden = Golden::of(recipe);
        let mut case = cases().into_iter().find(|case| case.name == recipe).unwrap();
        (case.options.no_aux, case.options.k_aux) = (true, 0);
        // Latents that cannot fire: they are dead from the second batch on.
        (case.options.dead_after_tokens, case.options.resample_every) = (2 * TOKENS as u64, 4);
        let (mut spec, mut weights) = golden.start(case.start, &case.options).into_parts();
        weights.b_enc[40..].fill(-50.0);
        if let Some(gate) = &mut weights.gate {
            gate.b_gate[40..].fill(-50.0);
        }
        spec.convention.reference = None;
        let start = Sae::new(spec, weights).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let batches = golden.batches();
        let run = |threads, broken: bool| {
            let mut trainer = Trainer::new(&case.options, Pool::new(threads).unwrap()).unwrap();
            let sample = golden.f32("batches");
            match batches[0].1 {
                Some(_) => {
                    let y = golden.f32("targets");
                    let y = Tensor::new(&y, &[STEPS * TOKENS, D_OUT]).unwrap();
                    trainer.warm_start_transcoder(&start, &view(&sample), &y).unwrap();
                }
                None => trainer.warm_start(&start, &view(&sample)).unwrap(),
            }
            let mut all = Vec::new();
            for (i, one) in batches.iter().enumerate().take(9) {
                if broken && i == 3 {
                    trainer.save(dir.path()).unwrap();
                    trainer = Trainer::resume(dir.path(), &case.options, Pool::serial()).unwrap();
                }
                let stats = trainer.step(&batch(one)).unwrap();
                if i == 3 {
                    assert!(stats.resampled >= 20, "{recipe}: {stats:?}");
                    let (now, ema) = (trainer.export(Export::Weights).unwrap(), trainer.export(Export::Ema).unwrap());
                    for sae in [&now, &ema] {
                        let norms = decoder_norms(sae);
                        assert!(norms.iter().all(|norm| (norm - 1.0).abs() < 1e-5), "{recipe}: {norms:?}");
                        assert!(sae.weights().b_enc[45..].iter().all(|b| *b == 0.0 || *b < -40.0), "{recipe}");
                    }
                }
                all.push(stats);
            }
            assert!(all[4].dead < all[3].dead, "{recipe}: {all:?}");
            (all, exports(&trainer))
        };
        let unbroken = run(1, false);
        assert!(run(3, false) == unbroken && run(1, true) == unbroken, "{recipe}");
    }
}

#[test]
fn conflicting_options_are_named_together() {
    type Spoil = fn(&mut TrainOptions);
    let spoils: [(&str, &[&str], Spoil); 22] = [
        ("multi_top_k", &["prefixes", "multi_top_k"], |o| o.prefixes = vec![8, 64]),
        ("batch_top_k", &["prefix_weights", "batch_top_k"], |o| o.prefix_weights = vec![1.0]),
        ("batch_top_k", &["sparsity_coefficient", "batch_top_k"], |o| o.sparsity_coefficient = 1.0),
        ("batch_top_k", &["bandwidth", "batch_top_k"], |o| o.bandwidth = 1.0),
        ("batch_top_k", &["k_start 9", "k_anneal_steps"], |o| o.k_start = 9),
        ("batch_top_k", &["k_anneal_steps", "k_start"], |o| o.k_anneal_steps = 9),
        ("batch_top_k", &["k_start must", "64"], |o| (o.k_start, o.k_anneal_steps) = (65, 2)),
        ("batch_top_k", &["resample_every", "AuxK", "no_aux"], |o| o.resample_every = 9),
        ("matryoshka", &["prefixes must ascend", "64"], |o| o.prefixes = vec![8, 63, 65]),
        ("matryoshka", &["prefixes must ascend"], |o| o.prefixes = vec![8, 8, 64]),
        ("matryoshka", &["prefix_weights", "2 prefixes"], |o| o.prefixes = vec![8, 64]),
        ("matryoshka", &["prefix_weights[1]"], |o| o.prefix_weights[1] = 0.0),
        ("relu", &["k is given", "relu"], |o| o.k = 4),
        ("relu", &["aux_coefficient", "relu"], |o| o.aux_coefficient = 0.1),
        ("relu", &["penalty", "relu"], |o| o.penalty = Penalty::Tanh),
        ("relu", &["scaling", "normalization"], |o| {
            (o.scaling, o.normalization) = (Scaling::RootWidth, sae::sae::Normalization::LayerNorm);
        }),
        ("jump_relu", &["target_l0", "quadratic"], |o| o.target_l0 = 4.0),
        ("jump_relu_quadratic", &["quadratic", "target_l0"], |o| o.target_l0 = 0.0),
        ("jump_relu", &["bandwidth must"], |o| o.bandwidth = f32::NAN),
        ("gated", &["skip", "transcoder"], |o| o.skip = true),
        ("gated", &["d_out 7", "transcoder"], |o| o.d_out = 7),
        ("gated", &["resample_every", "frozen W_enc"], |o| (o.resample_every, o.frozen) = (3, vec![Parameter::WEnc])),
    ];
    for (name, words, spoil) in spoils {
        let mut case = cases().into_iter().find(|case| case.name == name).unwrap();
        assert!(Trainer::new(&case.options, Pool::serial()).is_ok(), "{name}");
        spoil(&mut case.options);
        let error = Trainer::new(&case.options, Pool::serial()).err().expect(name);
        assert_eq!(error.status(), sae::Status::InvalidArgument, "{error}");
        for word in words {
            assert!(error.message().contains(word), "{error} does not say {word}");
        }
    }
}

/// How many latents of a token of `x` are active on average, by a session.
fn l0(sae: Sae, x: &[f32]) -> f64 {
    let rows = x.len() / D;
    let options = SessionOptions { max_tokens: rows, max_width: N, ..SessionOptions::default() };
    let mut session = Session::new(Arc::new(sae), options).unwrap();
    let mut z = vec![0.0; rows * N];
    let out = TensorMut::new(&mut z, &[rows, N]).unwrap();
    session.encode_dense(Run::default(), view(x).into(), Wanted::Activations, out).unwrap();
    z.iter().filter(|z| **z != 0.0).count() as f64 / rows as f64
}

/// How well an SAE reconstructs `x`, by a session.
fn fvu(sae: Sae, x: &[f32], y: &[f32]) -> f64 {
    let (d, rows) = (sae.spec().d_out, x.len() / sae.spec().d_in);
    let options = SessionOptions { max_tokens: rows, max_width: N, ..SessionOptions::default() };
    let mut session = Session::new(Arc::new(sae), options).unwrap();
    let mut x_hat = vec![0.0; rows * d];
    let out = TensorMut::new(&mut x_hat, &[rows, d]).unwrap();
    session.reconstruct(Run::default(), view(x).into(), None, out).unwrap();
    let mean = |j: usize| y.iter().skip(j).step_by(d).map(|&v| f64::from(v)).sum::<f64>() / rows as f64;
    let means: Vec<f64> = (0..d).map(mean).collect();
    let deviation: f64 = y.iter().enumerate().map(|(i, &v)| (f64::from(v) - means[i % d]).powi(2)).sum();
    let error: f64 = y.iter().zip(&x_hat).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    error / deviation
}

/// A run that starts from an SAE of whatever layout computes what the SAE does, and so does what it exports, whether it scales
/// activations or not.
#[test]
fn a_run_takes_over_and_hands_on_what_an_sae_computes() {
    type Change = fn(&mut Spec, &mut Weights);
    let longer: Change = |_, w| {
        let rows = w.w_dec.rows_f32(0, N, &mut []).to_vec();
        let cols = w.w_dec.cols();
        let scaled: Vec<f32> = rows.iter().enumerate().map(|(i, v)| v * (0.5 + (i / cols % 7) as f32 * 0.3)).collect();
        w.w_dec = Matrix::from_f32(&scaled, N, cols).unwrap();
    };
    let whole: Change = |spec, _| spec.subtract_b_dec ^= spec.d_in == spec.d_out;
    let rescaled: Change = |spec, _| spec.rescale_by_decoder_norm = true;
    let selected: Change = |spec, _| spec.select_by_decoder_norm = true;
    for (name, changes) in [
        ("multi_top_k", &[longer, rescaled][..]),
        ("abs_top_k", &[longer, rescaled, whole]),
        ("relu", &[longer, whole]),
        ("jump_relu", &[longer]),
        ("jump_relu", &[longer, selected, whole]),
        ("gated", &[longer, whole]),
        ("transcoder", &[longer, rescaled]),
        ("skip_transcoder", &[longer]),
        ("crosscoder", &[longer]),
    ] {
        for scaling in [Scaling::None, Scaling::RootWidth, Scaling::UnitSquare] {
            let golden = Golden::of(name);
            let mut case = cases().into_iter().find(|case| case.name == name).unwrap();
            case.options.scaling = scaling;
            let (mut spec, mut weights) = golden.start(case.start, &case.options).into_parts();
            changes.iter().for_each(|change| change(&mut spec, &mut weights));
            let batches = golden.batches();
            let (x, y) = (&batches[0].0, batches[0].1.as_ref().unwrap_or(&batches[0].0));
            let sample = golden.f32("batches");
            let mut trainer = Trainer::new(&case.options, Pool::serial()).unwrap();
            let start = Sae::new(spec.clone(), weights.clone()).unwrap();
            if case.options.transcoder {
                let y = golden.f32("targets");
                let y = Tensor::new(&y, &[STEPS * TOKENS, D_OUT]).unwrap();
                trainer.warm_start_transcoder(&start, &view(&sample), &y).unwrap();
            } else {
                trainer.warm_start(&start, &view(&sample)).unwrap();
            }
            let wanted = fvu(start, x, y);
            let handed_on = fvu(trainer.export(Export::Weights).unwrap(), x, y);
            let taken_over = trainer.step(&batch(&batches[0])).unwrap().fvu;
            // Of layers that are scaled apart, the run's own is of what they are scaled to.
            let apart = case.options.layers > 1 && scaling != Scaling::None;
            for found in [handed_on, if apart { wanted } else { taken_over }] {
                assert!((found - wanted).abs() < 1e-4 * wanted, "{name}, {scaling:?}: {found}, not {wanted}");
            }
        }
    }
}

/// The bytes of a run's weights, by their names.
fn stored_weights(trainer: &Trainer, folder: &Path) -> BTreeMap<String, Vec<u8>> {
    trainer.save(folder).unwrap();
    let bytes = std::fs::read(folder.join("checkpoint.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let weights = PARAMETERS.map(Parameter::name).into_iter();
    weights.filter_map(|name| Some((name.to_owned(), file.tensor(name).ok()?.data().to_vec()))).collect()
}

const PARAMETERS: [Parameter; 8] = [
    Parameter::WEnc,
    Parameter::BEnc,
    Parameter::WDec,
    Parameter::BDec,
    Parameter::Threshold,
    Parameter::BGate,
    Parameter::RMag,
    Parameter::WSkip,
];

#[test]
fn what_is_frozen_stays_and_the_rest_moves() {
    let dir = tempfile::tempdir().unwrap();
    for case in cases() {
        let golden = Golden::of(case.name);
        let batches = golden.batches();
        let trained = stored_weights(&warm(&golden, &case, Pool::serial()), dir.path());
        for frozen in PARAMETERS.into_iter().filter(|parameter| trained.contains_key(parameter.name())) {
            let options = TrainOptions { frozen: vec![frozen], ..case.options.clone() };
            let case = Case { name: case.name, options, start: case.start };
            let mut trainer = warm(&golden, &case, Pool::serial());
            let start = stored_weights(&trainer, dir.path());
            batches[..10].iter().for_each(|one| assert!(trainer.step(&batch(one)).unwrap().applied));
            trainer.save(dir.path()).unwrap();
            let mut trainer = Trainer::resume(dir.path(), &TrainOptions::default(), Pool::serial()).unwrap();
            batches[10..].iter().for_each(|one| assert!(trainer.step(&batch(one)).unwrap().applied));
            for (name, end) in stored_weights(&trainer, dir.path()) {
                let stayed = end == start[&name];
                assert_eq!(stayed, name == frozen.name(), "{}: {name}, with {frozen:?} frozen", case.name);
            }
        }
    }
}

/// Layers of rows may lie anywhere, each is brought to one size, and what is exported takes them as they are.
#[test]
fn a_crosscoder_s_layers_are_brought_to_one_size() {
    const SIZES: [f32; LAYERS] = [1.0, 300.0];
    let (golden, dir) = (Golden::of("crosscoder"), tempfile::tempdir().unwrap());
    // [T, layers, d], and the same numbers with the layers apart.
    let (rows, half) = (STEPS * TOKENS, D / LAYERS);
    let sized = |(i, v): (usize, f32)| v * SIZES[i / half % LAYERS];
    let together: Vec<f32> = golden.f32("batches").into_iter().enumerate().map(sized).collect();
    let layer = |l: usize| together.chunks(half).skip(l).step_by(LAYERS).flatten().copied();
    let apart: Vec<f32> = (0..LAYERS).flat_map(layer).collect();
    let part = |apart_too: bool, first: usize, count: usize| {
        let strides = [half as i64, (rows * half) as i64, 1];
        if apart_too {
            let (at, shape) = (apart[first * half..].as_ptr().cast(), [count, LAYERS, half]);
            // SAFETY: rows first..first + count of all layers lie within `apart`.
            #[allow(unsafe_code)]
            unsafe {
                Tensor::from_raw(at, DType::F32, Device::CPU, &shape, Some(&strides)).unwrap()
            }
        } else {
            Tensor::new(&together[first * D..][..count * D], &[count, LAYERS, half]).unwrap()
        }
    };
    for recipe in Recipe::ALL {
        let counts = !matches!(recipe, Recipe::Relu | Recipe::JumpRelu | Recipe::Gated);
        let k = if counts { K } else { 0 };
        let options = TrainOptions { recipe, k, d: half, layers: LAYERS, n_latents: N, seed: 4, ..Default::default() };
        let run = |apart: bool| {
            let mut trainer = Trainer::new(&options, Pool::serial()).unwrap();
            trainer.init_from(&part(apart, 0, rows)).unwrap();
            let step = |i: usize, trainer: &mut Trainer| trainer.step(&part(apart, i * TOKENS, TOKENS).into()).unwrap();
            let mut stats: Vec<StepStats> = (0..3).map(|i| step(i, &mut trainer)).collect();
            trainer.save(dir.path()).unwrap();
            trainer = Trainer::resume(dir.path(), &TrainOptions::default(), Pool::serial()).unwrap();
            stats.extend((3..6).map(|i| step(i, &mut trainer)));
            (stats, trainer)
        };
        let (stats, mut trainer) = run(false);
        let other = run(true);
        assert!(stats == other.0 && exports(&trainer) == exports(&other.1), "{recipe:?}");
        let scales = trainer.progress().unwrap().scales.clone();
        let [small, large] = scales.layers[..] else { panic!("{scales:?}") };
        assert!((0.5..2.0).contains(&(small / large / SIZES[1])), "{recipe:?}: {scales:?}");
        // On the scale of training, each latent's norms add up to 1.
        let (spec, mut weights) = trainer.export(Export::Weights).unwrap().into_parts();
        let raw = weights.w_dec.rows_f32(0, N, &mut []).to_vec();
        let scaled: Vec<f32> = raw.iter().enumerate().map(|(i, w)| w * scales.layers[i / half % LAYERS]).collect();
        weights.w_dec = Matrix::from_f32(&scaled, N, D).unwrap();
        let norms = decoder_norms(&Sae::new(spec, weights).unwrap());
        assert!(norms.iter().all(|norm| (norm - 1.0).abs() < 1e-5), "{recipe:?}: {norms:?}");
        // What is exported explains both layers as the run does.
        if recipe != Recipe::BatchTopK && recipe != Recipe::Matryoshka {
            let x = &together[..TOKENS * D];
            let error = |sae: Sae| {
                let options = SessionOptions { max_tokens: TOKENS, max_width: N, ..SessionOptions::default() };
                let mut session = Session::new(Arc::new(sae), options).unwrap();
                let mut x_hat = vec![0.0; TOKENS * D];
                let out = TensorMut::new(&mut x_hat, &[TOKENS, LAYERS, half]).unwrap();
                session.reconstruct(Run::default(), part(false, 0, TOKENS).into(), None, out).unwrap();
                let squares = x.iter().zip(&x_hat).enumerate();
                squares.map(|(i, (a, b))| f64::from((a - b) * scales.layers[i / half % LAYERS]).powi(2)).sum::<f64>()
            };
            let handed_on = error(trainer.export(Export::Weights).unwrap());
            let taken = trainer.step(&part(false, 0, TOKENS).into()).unwrap();
            let normalizer = trainer.progress().unwrap().normalizer;
            let found = handed_on / (TOKENS * D) as f64 / normalizer;
            let other_parts = recipe == Recipe::MultiTopK;
            assert!(other_parts || (found - taken.mse).abs() < 1e-3 * taken.mse, "{recipe:?}: {found} {taken:?}");
        }
    }
}
