//! Each recipe: twenty steps against plain PyTorch in float64 (`golden/make_training_recipes.py`), gradients against finite
//! differences, accumulation, threads, and resuming.

#![allow(clippy::unwrap_used)]

mod runs;

use sae::backend::Pool;
use sae::backend::training::Parameter;
use sae::sae::{Architecture, Gate, Matrix, Sae, Spec, Weights};
use sae::tensor::Tensor;
use sae::training::{Batch, Export, Penalty, Recipe, Scaling, StepStats, TrainOptions, Trainer};
use safetensors::SafeTensors;

const D: usize = 16;
const D_OUT: usize = 20;
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
    ]
}

struct Golden(Vec<u8>);

impl Golden {
    fn read(name: &str) -> Self {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/training_recipes");
        Self(std::fs::read(format!("{folder}/{name}.safetensors")).unwrap())
    }

    fn has(&self, name: &str) -> bool {
        SafeTensors::deserialize(&self.0).unwrap().tensor(name).is_ok()
    }

    fn f32(&self, name: &str) -> Vec<f32> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        file.tensor(name).unwrap().data().as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
    }

    fn f64(&self, name: &str) -> Vec<f64> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        file.tensor(name).unwrap().data().as_chunks().0.iter().map(|&b| f64::from_le_bytes(b)).collect()
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
        let golden = Golden::read(case.name);
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
    let spoils: [(&str, &str, Spoil); 17] = [
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
        ("jump_relu_quadratic", "the target", |o| o.target_l0 = 5.0),
        ("transcoder", "AuxK", |o| o.no_aux = true),
        ("skip_transcoder", "what is frozen", |o| o.frozen = vec![Parameter::WSkip, Parameter::BDec]),
        ("gated", "the penalty", |o| o.sparsity_coefficient = 0.15),
        ("gated", "the warm-up", |o| o.sparsity_warmup_steps = 0),
    ];
    for (recipe, what, spoil) in spoils {
        let golden = Golden::read(recipe);
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

/// The bits of both exports.
fn exports(trainer: &Trainer) -> Vec<u32> {
    let all = [Export::Weights, Export::Ema].map(|what| tensors(&trainer.export(what).unwrap()));
    all.into_iter().flatten().flat_map(|(_, values)| values).map(f32::to_bits).collect()
}

#[test]
fn threads_do_not_show() {
    for case in cases() {
        let golden = Golden::read(case.name);
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
        let golden = Golden::read(case.name);
        let batches = golden.batches();
        // Some batches are accumulated; one save is in the middle of that.
        let step = |trainer: &mut Trainer, i: usize| {
            trainer.step(&Batch { accumulate: i % 3 == 0, ..batch(&batches[i]) }).unwrap()
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
        let golden = Golden::read(case.name);
        let (_, trainer) = train(&golden, &case, Pool::serial());
        let sae = trainer.export(Export::Weights).unwrap();
        let spec = sae.spec();
        let expected = match case.options.recipe {
            Recipe::BatchTopK | Recipe::Matryoshka => Architecture::JumpRelu,
            Recipe::AbsTopK => Architecture::AbsTopK { k: K },
            Recipe::Relu | Recipe::JumpRelu | Recipe::Gated => case.start,
            _ => Architecture::TopK { k: K },
        };
        assert_eq!(spec.architecture, expected, "{}", case.name);
        let widths = (spec.d_in, spec.d_out, spec.subtract_b_dec, sae.weights().w_skip.is_some());
        let transcoder = case.options.transcoder;
        assert_eq!(widths, (D, if transcoder { D_OUT } else { D }, !transcoder, case.options.skip), "{}", case.name);
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
