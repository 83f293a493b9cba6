//! Each recipe: twenty steps against plain PyTorch in float64 (`golden/make_training_recipes.py`), gradients against finite
//! differences, accumulation, threads, and resuming.

#![allow(clippy::unwrap_used)]

mod runs;

use sae::backend::Pool;
use sae::sae::{Architecture, Matrix, Sae, Spec, Weights};
use sae::tensor::Tensor;
use sae::training::{Batch, Export, Recipe, StepStats, TrainOptions, Trainer};
use safetensors::SafeTensors;

const D: usize = 16;
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
        k: K,
        k_aux: 8,
        dead_after_tokens: 5 * TOKENS as u64,
        learning_rate: 2e-3,
        clip_norm: CLIP,
        ema_decay: 0.9,
        adam_beta1: 0.9,
        ..TrainOptions::default()
    };
    let of = |recipe, start| Case { name: name(recipe), start, options: TrainOptions { recipe, ..shared.clone() } };
    let top_k = Architecture::TopK { k: K };
    let mut matryoshka = of(Recipe::Matryoshka, top_k);
    matryoshka.options.prefixes = vec![8, 24, 64];
    matryoshka.options.prefix_weights = vec![0.5, 2.0, 1.0];
    vec![
        of(Recipe::MultiTopK, top_k),
        of(Recipe::AbsTopK, Architecture::AbsTopK { k: K }),
        of(Recipe::BatchTopK, top_k),
        matryoshka,
    ]
}

fn name(recipe: Recipe) -> &'static str {
    recipe.name()
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
    fn start(&self, architecture: Architecture) -> Sae {
        let start = |name: &str| self.f32(&format!("start.{name}"));
        let matrix = |name: &str| Matrix::from_f32(&start(name), N, D).unwrap();
        let weights = Weights::new(matrix("W_enc"), start("b_enc"), matrix("W_dec"), start("b_dec"));
        Sae::new(Spec::new(architecture, D, N), weights).unwrap()
    }
}

fn view(values: &[f32]) -> Tensor<'_> {
    Tensor::new(values, &[values.len() / D, D]).unwrap()
}

fn warm(golden: &Golden, case: &Case, pool: Pool) -> Trainer {
    let mut trainer = Trainer::new(&case.options, pool).unwrap();
    trainer.warm_start(&golden.start(case.start), &view(&golden.f32("batches"))).unwrap();
    trainer
}

fn train(golden: &Golden, case: &Case, pool: Pool) -> (Vec<StepStats>, Trainer) {
    let mut trainer = warm(golden, case, pool);
    let batches = golden.f32("batches");
    let stats = batches.chunks(TOKENS * D).map(|x| trainer.step(&view(x).into()).unwrap()).collect();
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
    let spoils: [(&str, &str, Spoil); 7] = [
        ("multi_top_k", "the second reconstruction", |o| o.recipe = Recipe::TopK),
        ("multi_top_k", "AuxK", |o| o.no_aux = true),
        ("abs_top_k", "AuxK", |o| o.no_aux = true),
        ("batch_top_k", "who competes", |o| o.recipe = Recipe::TopK),
        ("batch_top_k", "AuxK", |o| o.no_aux = true),
        ("matryoshka", "a prefix", |o| (o.prefixes[0], o.prefixes[1]) = (4, 24)),
        ("matryoshka", "a weight", |o| o.prefix_weights[1] = 1.0),
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
        let batches = golden.f32("batches");
        let batches: Vec<&[f32]> = batches.chunks(TOKENS * D).collect();
        // Some batches are accumulated; one save is in the middle of that.
        let step = |trainer: &mut Trainer, i: usize| {
            trainer.step(&Batch { accumulate: i % 3 == 0, ..view(batches[i]).into() }).unwrap()
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
            _ => Architecture::TopK { k: K },
        };
        assert_eq!(spec.architecture, expected, "{}", case.name);
        assert_eq!(spec.prefixes, case.options.prefixes, "{}", case.name);
        if let Some(threshold) = &sae.weights().threshold {
            let smallest = golden.f64("smallest");
            // The average of what the batches kept, later ones weighing a little more.
            let mean = smallest.iter().sum::<f64>() / smallest.len() as f64;
            assert!(threshold.iter().all(|t| (f64::from(*t) - mean).abs() < 1e-2 * mean), "{threshold:?} {mean}");
        }
    }
}
