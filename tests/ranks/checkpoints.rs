//! Checkpoints of several ranks: whole or not there, and the same for any number that goes on.

use std::collections::BTreeMap;
use std::path::Path;

use sae::backend::Pool;
use sae::collective::{Axis, Ranks};
use sae::training::{Batch, Recipe, TrainOptions, Trainer};
use sae::{Error, Status};

use crate::runs::{D, activations, both_exports, of, options, view};
use crate::support::on_grid;

const ROWS: usize = 24;

fn steps(trainer: &mut Trainer, ranks: &Ranks, seeds: std::ops::Range<u64>) {
    for seed in seeds {
        let x = activations(seed, ROWS);
        let each = ROWS / ranks.count(Axis::Data);
        let place = ranks.place(Axis::Data);
        trainer.step(&view(&x[place * each * D..(place + 1) * each * D]).into()).unwrap();
    }
}

/// A run on a grid up to a checkpoint, and what it would be some steps later.
fn save_on(data: usize, latents: usize, options: &TrainOptions, folder: &Path) -> [Vec<u32>; 2] {
    let ends = on_grid(data, latents, |ranks| {
        let mut trainer = Trainer::among(options, Pool::serial(), ranks.clone()).unwrap();
        trainer.init_from(&view(&activations(1, 300))).unwrap();
        steps(&mut trainer, &ranks, 2..9);
        trainer.save(folder).unwrap();
        steps(&mut trainer, &ranks, 9..14);
        both_exports(&trainer)
    });
    ends.into_iter().next().unwrap()
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = entries.collect();
    names.sort();
    names
}

/// What is done to a file, which, by what content (none: it goes), and what is then said of what.
type Case<'a> = (&'a str, &'a str, Option<Vec<u8>>, Status, &'a str);

#[test]
fn the_same_numbers_come_back_on_any_number_of_ranks() {
    let dir = tempfile::tempdir().unwrap();
    for (name, options) in [("top_k", options()), ("jump_relu", of(Recipe::JumpRelu))] {
        let folder = dir.path().join(name);
        let unbroken = save_on(2, 2, &options, &folder);
        assert_eq!(
            names(&folder),
            ["checkpoint.1.part-1-of-2.safetensors", "checkpoint.1.part-2-of-2.safetensors", "checkpoint.safetensors"]
        );
        let none = TrainOptions::default();
        // By one process, which saves in one file.
        let whole = dir.path().join(format!("{name}-whole"));
        let trainer = Trainer::resume(&folder, &none, Pool::serial()).unwrap();
        assert_eq!(trainer.options(), &options.resolve().unwrap());
        trainer.save(&whole).unwrap();
        assert_eq!(names(&whole), ["checkpoint.safetensors"]);
        let expected = std::fs::read(whole.join("checkpoint.safetensors")).unwrap();
        // By the same grid, which goes on to the same bits.
        let ends = on_grid(2, 2, |ranks| {
            let mut trainer = Trainer::resume_among(&folder, &options, Pool::new(2).unwrap(), ranks.clone()).unwrap();
            steps(&mut trainer, &ranks, 9..14);
            both_exports(&trainer)
        });
        assert!(ends.iter().all(|end| *end == unbroken), "{name}");
        // By other grids, from whatever the last one wrote, and back again to one file: no number changes on the way.
        let from = dir.path().join(format!("{name}-moving"));
        std::fs::create_dir(&from).unwrap();
        std::fs::copy(whole.join("checkpoint.safetensors"), from.join("checkpoint.safetensors")).unwrap();
        for (data, latents) in [(1, 3), (3, 1), (2, 5), (1, 7), (2, 2)] {
            on_grid(data, latents, |ranks| {
                let trainer = Trainer::resume_among(&from, &none, Pool::serial(), ranks).unwrap();
                trainer.save(&from).unwrap();
            });
            assert_eq!(names(&from).len(), 1 + latents, "parts of earlier checkpoints are left: {:?}", names(&from));
            let back = dir.path().join("back");
            Trainer::resume(&from, &none, Pool::serial()).unwrap().save(&back).unwrap();
            assert!(
                std::fs::read(back.join("checkpoint.safetensors")).unwrap() == expected,
                "{name} {data} × {latents}"
            );
        }
        Trainer::resume(&from, &none, Pool::serial()).unwrap().save(&from).unwrap();
        assert_eq!(names(&from), ["checkpoint.safetensors"], "a single file has no parts beside it");
    }
}

#[test]
fn accumulated_gradients_are_kept_where_they_are_of_all_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let accumulate = |trainer: &mut Trainer, seed, accumulate| {
        let x = activations(seed, ROWS);
        trainer.step(&Batch { accumulate, ..view(&x).into() }).unwrap();
    };
    let ends = on_grid(1, 3, |ranks| {
        let mut trainer = Trainer::among(&options(), Pool::serial(), ranks.clone()).unwrap();
        trainer.init_from(&view(&activations(1, 300))).unwrap();
        accumulate(&mut trainer, 2, true);
        trainer.save(dir.path()).unwrap();
        accumulate(&mut trainer, 3, false);
        let mut resumed = Trainer::resume_among(dir.path(), &options(), Pool::serial(), ranks).unwrap();
        accumulate(&mut resumed, 3, false);
        (both_exports(&trainer), both_exports(&resumed))
    });
    assert!(ends.iter().all(|(unbroken, resumed)| unbroken == resumed));
    // What one process accumulated counts once, however many ranks go on with it.
    let alone = tempfile::tempdir().unwrap();
    let mut trainer = Trainer::new(&options(), Pool::serial()).unwrap();
    trainer.init_from(&view(&activations(1, 300))).unwrap();
    accumulate(&mut trainer, 2, true);
    trainer.save(alone.path()).unwrap();
    let x = activations(3, ROWS);
    let whole = trainer.step(&view(&x).into()).unwrap().grad_norm;
    let norms = on_grid(2, 1, |ranks| {
        let half = ROWS / 2 * D;
        let part = ranks.place(Axis::Data) * half;
        let mut resumed = Trainer::resume_among(alone.path(), &options(), Pool::serial(), ranks).unwrap();
        resumed.step(&view(&x[part..part + half]).into()).unwrap().grad_norm
    });
    assert!(norms.iter().all(|norm| (norm / whole - 1.0).abs() < 1e-5), "{norms:?}, {whole}");
    let errors = on_grid(2, 1, |ranks| {
        let mut trainer = Trainer::among(&options(), Pool::serial(), ranks).unwrap();
        trainer.init_from(&view(&activations(1, 300))).unwrap();
        accumulate(&mut trainer, 2, true);
        let error = trainer.save(dir.path()).unwrap_err();
        accumulate(&mut trainer, 3, false);
        trainer.save(dir.path()).unwrap();
        error
    });
    for error in errors {
        assert!(error.status() == Status::BadState && error.message().contains("save after the step"), "{error}");
    }
}

/// What is wrong with the checkpoint in a folder, by one process and by two: neither has to wait for the other.
fn refusals(folder: &Path) -> Vec<Error> {
    let none = TrainOptions::default();
    let mut errors = vec![Trainer::resume(folder, &none, Pool::serial()).err().expect("a refusal")];
    errors.extend(on_grid(1, 2, |ranks| {
        Trainer::resume_among(folder, &none, Pool::serial(), ranks).err().expect("a refusal")
    }));
    errors
}

#[test]
fn broken_parts_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    save_on(1, 2, &options(), dir.path());
    let sound: BTreeMap<String, Vec<u8>> = names(dir.path())
        .into_iter()
        .map(|name| (name.clone(), std::fs::read(dir.path().join(name)).unwrap()))
        .collect();
    let [one, two] = [1, 2].map(|part| format!("checkpoint.1.part-{part}-of-2.safetensors"));
    let part = &sound[&two];
    let replaced = |from: &str, to: &str, bytes: &[u8]| {
        let at = bytes.windows(from.len()).position(|w| w == from.as_bytes()).expect(from);
        let mut bytes = bytes.to_vec();
        bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
        bytes
    };
    let mut not_finite = part.clone();
    let end = not_finite.len();
    not_finite[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    let head = &sound["checkpoint.safetensors"];
    let cases: [Case<'_>; 10] = [
        ("gone", &two, None, Status::Io, &two),
        ("empty", &two, Some(Vec::new()), Status::Format, &two),
        ("cut off", &two, Some(part[..part.len() - 8].to_vec()), Status::Format, &two),
        ("another's", &two, Some(sound[&one].clone()), Status::Format, &two),
        ("of another save", &two, Some(replaced("\\\"save\\\":1", "\\\"save\\\":2", part)), Status::Format, &two),
        (
            "of a newer version",
            &two,
            Some(replaced("\\\"version\\\":1", "\\\"version\\\":9", part)),
            Status::Unsupported,
            &two,
        ),
        ("without a tensor", &two, Some(replaced("\"adam_m.W_enc\"", "\"adam_m.W_foo\"", part)), Status::Format, &two),
        ("not finite", &two, Some(not_finite), Status::NotFinite, "checkpoint.safetensors"),
        (
            "a part elsewhere",
            "checkpoint.safetensors",
            Some(replaced("checkpoint.1.part-2", "checkpoint/../art-2", head)),
            Status::Format,
            "no name of a part",
        ),
        (
            "a gap",
            "checkpoint.safetensors",
            Some(replaced("\\\"first_latent\\\":48", "\\\"first_latent\\\":47", head)),
            Status::Format,
            "47..+48",
        ),
    ];
    for (what, file, bytes, status, says) in cases {
        for (name, bytes) in &sound {
            std::fs::write(dir.path().join(name), bytes).unwrap();
        }
        match bytes {
            Some(bytes) => std::fs::write(dir.path().join(file), bytes).unwrap(),
            None => std::fs::remove_file(dir.path().join(file)).unwrap(),
        }
        for error in refusals(dir.path()) {
            assert!(error.status() == status && error.message().contains(says), "{what}: {error:?}");
        }
    }
}

#[test]
fn a_save_that_fails_on_one_rank_leaves_the_last_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let (good, bad) = (dir.path().join("good"), dir.path().join("file"));
    std::fs::write(&bad, b"not a folder").unwrap();
    let errors = on_grid(2, 2, |ranks| {
        let mut trainer = Trainer::among(&options(), Pool::serial(), ranks.clone()).unwrap();
        trainer.init_from(&view(&activations(1, 300))).unwrap();
        steps(&mut trainer, &ranks, 2..4);
        trainer.save(&good).unwrap();
        steps(&mut trainer, &ranks, 4..6);
        // One rank cannot write; another sees a folder of its own.
        let folder = if ranks.rank() == 1 { &bad } else { &good };
        let error = trainer.save(folder).unwrap_err();
        let own = dir.path().join("own");
        std::fs::create_dir_all(&own).unwrap();
        let apart = trainer.save(if ranks.rank() == 1 { &own } else { &good }).unwrap_err();
        (error, apart)
    });
    for (error, apart) in &errors {
        assert_eq!(error.status(), Status::Io, "{error:?}");
        assert!(
            apart.status() == Status::Io && apart.message().contains("must be the same for all ranks"),
            "{apart:?}"
        );
    }
    let resumed = Trainer::resume(&good, &TrainOptions::default(), Pool::serial()).unwrap();
    assert_eq!(resumed.progress().unwrap().step, 2);
    resumed.save(&good).unwrap();
    assert_eq!(names(&good), ["checkpoint.safetensors"], "what failed saves left is gone");
}
