//! Checkpoints: saved whole or not at all, resumed to the same bits, refused if broken or of another run.

#![allow(clippy::unwrap_used)]

mod runs;

use std::path::Path;

use runs::{Spoil, activations, both_exports, of, options, overflow, refused, started, view};
use sae::Status;
use sae::backend::Pool;
use sae::sae::Normalization;
use sae::training::{Batch, Parameter, Penalty, Recipe, Scaling, TrainOptions, Trainer};

#[test]
fn a_resumed_run_has_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("new").join("checkpoint");
    let step = |trainer: &mut Trainer, seed: u64| {
        let x = activations(seed, 50);
        trainer.step(&Batch { accumulate: seed.is_multiple_of(3), ..view(&x).into() }).unwrap()
    };
    let mut unbroken = started(&options(), Pool::serial());
    for seed in 2..40 {
        step(&mut unbroken, seed);
        // Also in the middle of accumulation.
        if seed == 20 || seed == 21 {
            unbroken.save(&folder).unwrap();
            let mut resumed = Trainer::resume(&folder, &TrainOptions::default(), Pool::new(2).unwrap()).unwrap();
            assert_eq!(resumed.options(), unbroken.options());
            let mut witness = Trainer::resume(&folder, &options(), Pool::serial()).unwrap();
            for seed in seed + 1..30 {
                assert_eq!(step(&mut resumed, seed), step(&mut witness, seed));
            }
        }
    }
    let mut resumed = Trainer::resume(&folder, &TrainOptions::default(), Pool::serial()).unwrap();
    for seed in 22..40 {
        step(&mut resumed, seed);
    }
    assert_eq!(both_exports(&unbroken), both_exports(&resumed));
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1, "nothing else is left in the folder");
}

#[test]
fn a_run_resumes_with_scales_and_while_k_and_penalties_change() {
    let dir = tempfile::tempdir().unwrap();
    let annealing = |recipe, k_start| TrainOptions { k_start, k_anneal_steps: 16, ..of(recipe) };
    let warming = |recipe| TrainOptions { sparsity_warmup_steps: 16, ..of(recipe) };
    for options in [
        TrainOptions { scaling: Scaling::UnitSquare, ..annealing(Recipe::TopK, 20) },
        TrainOptions { scaling: Scaling::RootWidth, ..annealing(Recipe::BatchTopK, 20) },
        TrainOptions { scaling: Scaling::UnitSquare, ..annealing(Recipe::Matryoshka, 2) },
        TrainOptions { scaling: Scaling::UnitSquare, ..annealing(Recipe::MultiTopK, 12) },
        warming(Recipe::Relu),
        warming(Recipe::JumpRelu),
        TrainOptions { scaling: Scaling::UnitSquare, ..warming(Recipe::Gated) },
    ] {
        let recipe = options.recipe;
        let step = |trainer: &mut Trainer, seed| trainer.step(&view(&activations(seed, 50)).into()).unwrap();
        let mut unbroken = started(&options, Pool::serial());
        let scales = &unbroken.progress().unwrap().scales;
        assert!(scales.input != 1.0 && scales.output == scales.input, "{recipe:?}: {scales:?}");
        let early: Vec<_> = (2..10).map(|seed| step(&mut unbroken, seed)).collect();
        unbroken.save(dir.path()).unwrap();
        let late: Vec<_> = (10..30).map(|seed| step(&mut unbroken, seed)).collect();
        // Something was changing when it was saved.
        let changes = if options.k > 0 { late[19].l0 != early[7].l0 } else { late[0].sparsity > early[0].sparsity };
        assert!(changes, "{recipe:?}: {early:?} {late:?}");
        let mut resumed = Trainer::resume(dir.path(), &TrainOptions::default(), Pool::new(2).unwrap()).unwrap();
        let again: Vec<_> = (10..30).map(|seed| step(&mut resumed, seed)).collect();
        assert_eq!(again, late, "{recipe:?}");
        assert_eq!(resumed.progress(), unbroken.progress(), "{recipe:?}");
        assert_eq!(both_exports(&resumed), both_exports(&unbroken), "{recipe:?}");
    }
}

#[test]
fn contradicting_options_and_broken_checkpoints_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut trainer = started(&options(), Pool::serial());
    assert_eq!(
        Trainer::new(&options(), Pool::serial()).unwrap().save(dir.path()).unwrap_err().status(),
        Status::BadState
    );
    trainer.step(&view(&activations(2, 50)).into()).unwrap();
    trainer.save(dir.path()).unwrap();
    let resume = |options: &TrainOptions| Trainer::resume(dir.path(), options, Pool::serial());
    for (name, spoil) in spoils() {
        let mut options = TrainOptions::default();
        spoil(&mut options);
        let error = refused(resume(&options));
        assert_eq!(error.status(), Status::InvalidArgument);
        assert!(error.message().contains(name), "{error} does not name {name}");
    }
    assert_eq!(resume(&TrainOptions { max_batch_tokens: 77, ..options() }).unwrap().options().max_batch_tokens, 77);

    let file = dir.path().join("checkpoint.safetensors");
    let sound = std::fs::read(&file).unwrap();
    let text = |from: &str, to: &str| {
        let at = sound.windows(from.len()).position(|w| w == from.as_bytes()).expect(from);
        let mut bytes = sound.clone();
        bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
        bytes
    };
    let mut not_a_number = sound.clone();
    let end = not_a_number.len();
    not_a_number[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    let broken: [(&str, Vec<u8>, Status); 9] = [
        ("empty", Vec::new(), Status::Format),
        ("short", sound[..sound.len() - 1].to_vec(), Status::Format),
        ("half a header", sound[..100].to_vec(), Status::Format),
        ("noise", (0..5000).map(|i| ((i * 7919) >> 3) as u8).collect(), Status::Format),
        ("another name", text("\"adam_m.W_enc\"", "\"adam_m.W_foo\""), Status::Format),
        ("another size", text("\\\"n_latents\\\":96", "\\\"n_latents\\\":97"), Status::Format),
        ("bad option", text("\\\"k\\\":6", "\\\"k\\\":0"), Status::Format),
        ("a newer version", text("\\\"version\\\":1", "\\\"version\\\":9"), Status::Unsupported),
        ("not finite", not_a_number, Status::NotFinite),
    ];
    for (what, bytes, status) in broken {
        std::fs::write(&file, bytes).unwrap();
        let error = refused(resume(&TrainOptions::default()));
        assert_eq!(error.status(), status, "{what}: {error}");
        assert!(error.message().contains("checkpoint.safetensors"), "{what}: {error}");
    }
    for (name, value) in [
        ("step", serde_json::json!(u64::MAX)),
        ("step", serde_json::json!(51)),
        ("rows_given", serde_json::json!((1u64 << 63) + 1)),
        ("rows_given", serde_json::json!(49)),
        ("tokens_seen", serde_json::json!(u64::MAX)),
        ("tokens_seen", serde_json::json!(-1)),
        ("pending_tokens", serde_json::json!(51)),
        ("normalizer", serde_json::json!(0.0)),
        ("normalizer", serde_json::json!(-1.0)),
        ("rate", serde_json::json!(0.0)),
        ("scales of 2 layers", serde_json::json!({ "input": 1.0, "output": 1.0, "layers": [1.0, 1.0] })),
        ("input scale", serde_json::json!({ "input": 0.0, "output": 1.0 })),
        ("input scale", serde_json::json!({ "input": -1.0, "output": 1.0 })),
        ("output scale", serde_json::json!({ "input": 1.0, "output": 0.0 })),
        ("threshold", serde_json::json!({ "sum": 1e300, "weight": 0.5 })),
        ("threshold", serde_json::json!({ "sum": -1.0, "weight": 0.5 })),
        ("threshold", serde_json::json!({ "sum": 1.0, "weight": 1.5 })),
        ("threshold", serde_json::json!({ "sum": 1.0, "weight": -0.5 })),
    ] {
        let field = if name.contains("scale") { "scales" } else { name };
        std::fs::write(&file, with_progress(&sound, field, value.clone())).unwrap();
        let error = refused(resume(&TrainOptions::default()));
        assert_eq!(error.status(), Status::Format, "{name} {value}: {error}");
        // What is not even a count is refused by the JSON's reader, which names it differently.
        assert!(error.message().contains(name) || value == -1 || name == "rows_given", "{name} {value}: {error}");
    }
    std::fs::write(&file, with_progress(&sound, "rows_given", 1000.into())).unwrap();
    assert_eq!(resume(&TrainOptions::default()).unwrap().progress().unwrap().rows_given, 1000);
    std::fs::remove_file(&file).unwrap();
    assert_eq!(refused(resume(&TrainOptions::default())).status(), Status::Io);
}

/// What was written when TopK was the only recipe says less, and means what it meant.
#[test]
fn checkpoints_from_before_the_recipes_resume_to_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    for normalization in [Normalization::None, Normalization::LayerNorm] {
        let options = TrainOptions { normalization, ..options() };
        let mut unbroken = started(&options, Pool::serial());
        let step = |trainer: &mut Trainer, seed| trainer.step(&view(&activations(seed, 50)).into()).unwrap();
        for seed in 2..8 {
            step(&mut unbroken, seed);
        }
        unbroken.save(dir.path()).unwrap();
        let file = dir.path().join("checkpoint.safetensors");
        let keep = |object: &mut serde_json::Value, names: &[&str]| {
            object.as_object_mut().unwrap().retain(|name, _| names.contains(&name.as_str()));
            assert_eq!(object.as_object().unwrap().len(), names.len());
        };
        let old = with_facts(&std::fs::read(&file).unwrap(), |facts| {
            keep(
                &mut facts["options"],
                &[
                    "d",
                    "n_latents",
                    "k",
                    "k_aux",
                    "aux_coefficient",
                    "no_aux",
                    "dead_after_tokens",
                    "learning_rate",
                    "warmup_steps",
                    "total_tokens",
                    "decay_fraction",
                    "adam_beta1",
                    "adam_beta2",
                    "adam_epsilon",
                    "clip_norm",
                    "ema_decay",
                    "no_ema",
                    "seed",
                    "max_batch_tokens",
                    "normalization",
                    "convention",
                ],
            );
            keep(
                &mut facts["progress"],
                &["step", "rows_given", "tokens_seen", "pending_tokens", "normalizer", "reference"],
            );
        });
        std::fs::write(&file, old).unwrap();
        let mut resumed = Trainer::resume(dir.path(), &options, Pool::new(2).unwrap()).unwrap();
        assert_eq!(resumed.options(), unbroken.options());
        (8..12).for_each(|seed| assert_eq!(step(&mut resumed, seed), step(&mut unbroken, seed)));
        assert_eq!(both_exports(&resumed), both_exports(&unbroken));
    }
}

/// A checkpoint that says otherwise how far it has come.
fn with_progress(checkpoint: &[u8], field: &str, value: serde_json::Value) -> Vec<u8> {
    with_facts(checkpoint, |facts| facts["progress"][field] = value)
}

/// A checkpoint of which something else is said.
fn with_facts(checkpoint: &[u8], change: impl FnOnce(&mut serde_json::Value)) -> Vec<u8> {
    let end = 8 + u64::from_le_bytes(checkpoint[..8].try_into().unwrap()) as usize;
    let mut header: serde_json::Value = serde_json::from_slice(&checkpoint[8..end]).unwrap();
    let facts = &mut header["__metadata__"]["libsae_checkpoint"];
    let mut changed: serde_json::Value = serde_json::from_str(facts.as_str().unwrap()).unwrap();
    change(&mut changed);
    *facts = changed.to_string().into();
    let header = header.to_string().into_bytes();
    [&(header.len() as u64).to_le_bytes()[..], &header, &checkpoint[end..]].concat()
}

/// Values that contradict [`options`].
fn spoils() -> [(&'static str, Spoil); 38] {
    [
        ("d is", |o| o.d = 25),
        ("n_latents", |o| o.n_latents = 97),
        ("k is", |o| o.k = 7),
        ("layers is", |o| o.layers = 2),
        ("k_aux", |o| o.k_aux = 11),
        ("aux_coefficient", |o| o.aux_coefficient = 0.5),
        ("no_aux", |o| o.no_aux = true),
        ("dead_after_tokens", |o| o.dead_after_tokens = 61),
        ("learning_rate", |o| o.learning_rate = 1.0),
        ("warmup_steps", |o| o.warmup_steps = 3),
        ("total_tokens", |o| o.total_tokens = 1000),
        ("decay_fraction", |o| o.decay_fraction = 0.5),
        ("adam_beta1", |o| o.adam_beta1 = 0.8),
        ("adam_beta2", |o| o.adam_beta2 = 0.8),
        ("adam_epsilon", |o| o.adam_epsilon = 1e-8),
        ("clip_norm", |o| o.clip_norm = 2.0),
        ("ema_decay", |o| o.ema_decay = 0.5),
        ("no_ema", |o| o.no_ema = true),
        ("seed", |o| o.seed = 6),
        ("normalization", |o| o.normalization = Normalization::LayerNorm),
        ("convention", |o| o.convention.prepend_bos = Some(true)),
        ("recipe is", |o| o.recipe = Recipe::Gated),
        ("transcoder is", |o| o.transcoder = true),
        ("d_out is", |o| o.d_out = 25),
        ("skip is", |o| o.skip = true),
        ("frozen is", |o| o.frozen = vec![Parameter::BDec]),
        ("k_start is", |o| o.k_start = 7),
        ("k_anneal_steps is", |o| o.k_anneal_steps = 7),
        ("prefixes is", |o| o.prefixes = vec![7, 96]),
        ("prefix_weights is", |o| o.prefix_weights = vec![1.0, 2.0]),
        ("sparsity_coefficient is", |o| o.sparsity_coefficient = 0.5),
        ("sparsity_warmup_steps is", |o| o.sparsity_warmup_steps = 7),
        ("penalty is", |o| o.penalty = Penalty::Tanh),
        ("target_l0 is", |o| o.target_l0 = 7.0),
        ("bandwidth is", |o| o.bandwidth = 0.5),
        ("initial_threshold is", |o| o.initial_threshold = 0.5),
        ("resample_every is", |o| o.resample_every = 7),
        ("scaling is", |o| o.scaling = Scaling::UnitSquare),
    ]
}

#[test]
fn a_checkpoint_that_could_not_resume_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let mut trainer = started(&options(), Pool::serial());
    trainer.step(&view(&activations(2, 50)).into()).unwrap();
    trainer.save(dir.path()).unwrap();
    let old = std::fs::read(dir.path().join("checkpoint.safetensors")).unwrap();
    overflow(&mut trainer);
    let error = trainer.save(dir.path()).unwrap_err();
    assert!(error.status() == Status::NotFinite && error.message().contains("gradient."), "{error}");
    assert_eq!(std::fs::read(dir.path().join("checkpoint.safetensors")).unwrap(), old);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "the part that was written is gone");
    assert_eq!(Trainer::resume(dir.path(), &options(), Pool::serial()).unwrap().progress().unwrap().step, 1);
    // The step drops what was accumulated, as the message says, and then all is well.
    assert_eq!(trainer.step(&view(&activations(3, 50)).into()).unwrap_err().status(), Status::NotFinite);
    trainer.save(dir.path()).unwrap();
    assert_eq!(Trainer::resume(dir.path(), &options(), Pool::serial()).unwrap().progress(), trainer.progress());
}

#[test]
fn a_full_disk_leaves_the_last_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let mut trainer = started(&options(), Pool::serial());
    trainer.save(dir.path()).unwrap();
    let old = std::fs::read(dir.path().join("checkpoint.safetensors")).unwrap();
    trainer.step(&view(&activations(2, 50)).into()).unwrap();
    // No file of this process may grow beyond 16 KB: a write fails midway, as on a full disk.
    // What the child says goes through pipes, which have no size.
    let child = rerun("child_saves_with_little_room", dir.path()).output().unwrap();
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stderr));
    assert_eq!(std::fs::read(dir.path().join("checkpoint.safetensors")).unwrap(), old);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "the part that was written is gone");
    let nowhere = trainer.save(Path::new("/dev/null/checkpoint")).unwrap_err();
    assert!(nowhere.status() == Status::Io && nowhere.message().contains("/dev/null/checkpoint"), "{nowhere}");
}

/// This test program again, to run one of the tests below on a folder.
fn rerun(test: &str, folder: &Path) -> std::process::Command {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--include-ignored", "--nocapture"]).env("CHECKPOINT_FOLDER", folder);
    command
}

#[test]
#[ignore = "run by a_full_disk_leaves_the_last_checkpoint"]
fn child_saves_with_little_room() {
    let folder = std::env::var_os("CHECKPOINT_FOLDER").expect("set by the parent");
    let limit = libc::rlimit { rlim_cur: 16 << 10, rlim_max: 16 << 10 };
    // SAFETY: plain calls into libc with valid arguments.
    #[allow(unsafe_code)]
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &limit), 0);
    }
    let trainer = started(&options(), Pool::serial());
    let error = trainer.save(Path::new(&folder)).unwrap_err();
    assert_eq!(error.status(), Status::Io, "{error}");
}

#[test]
fn a_run_killed_at_any_moment_resumes() {
    let dir = tempfile::tempdir().unwrap();
    started(&options(), Pool::serial()).save(dir.path()).unwrap();
    let mut reached = 0;
    for round in 0..12u64 {
        let mut child =
            rerun("child_trains_and_saves", dir.path()).stdout(std::process::Stdio::null()).spawn().unwrap();
        // Between the start of the program and a hundred saves later.
        std::thread::sleep(std::time::Duration::from_micros(20_000 + 13_337 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        let mut trainer = Trainer::resume(dir.path(), &options(), Pool::serial()).unwrap();
        let stats = trainer.step(&view(&activations(1000, 50)).into()).unwrap();
        assert!(stats.step > reached, "a later checkpoint gave way to an earlier one");
        reached = stats.step - 1;
    }
    assert!(reached > 0, "no child came as far as a save");
    // Whatever the kills left over, the run is the one that was never killed.
    let killed = Trainer::resume(dir.path(), &options(), Pool::serial()).unwrap();
    let mut unbroken = started(&options(), Pool::serial());
    for step in 0..reached {
        unbroken.step(&view(&activations(step, 50)).into()).unwrap();
    }
    assert_eq!(both_exports(&killed), both_exports(&unbroken));
}

#[test]
#[ignore = "run by a_run_killed_at_any_moment_resumes"]
fn child_trains_and_saves() {
    let folder = std::env::var_os("CHECKPOINT_FOLDER").expect("set by the parent");
    let mut trainer = Trainer::resume(Path::new(&folder), &options(), Pool::serial()).unwrap();
    let mut step = 0;
    loop {
        // The data's place in the stream follows from the step.
        let seed = if step == 0 { stored_step(Path::new(&folder)) } else { step };
        step = trainer.step(&view(&activations(seed, 50)).into()).unwrap().step;
        trainer.save(Path::new(&folder)).unwrap();
    }
}

/// The step a checkpoint was made at.
fn stored_step(folder: &Path) -> u64 {
    let bytes = std::fs::read(folder.join("checkpoint.safetensors")).unwrap();
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let facts = &metadata.metadata().as_ref().unwrap()["libsae_checkpoint"];
    let facts: serde_json::Value = serde_json::from_str(facts).unwrap();
    facts["progress"]["step"].as_u64().unwrap()
}
