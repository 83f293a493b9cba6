//! What is refused to one rank is refused to all, which go on; and a rank that is lost ends the others.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use sae::backend::Pool;
use sae::collective::{Axis, Collective, Ranks, threads};
use sae::tensor::Tensor;
use sae::training::{Batch, Export, Recipe, TrainOptions, Trainer};
use sae::{Error, Result, Status};

use crate::runs::{D, activations, both_exports, of, options, view};
use crate::support::on_grid;

fn started(ranks: &Ranks) -> Trainer {
    let mut trainer = Trainer::among(&options(), Pool::serial(), ranks.clone()).unwrap();
    trainer.init_from(&view(&activations(1, 300))).unwrap();
    trainer
}

fn all_refused(errors: &[Error], status: Status, says: &str) {
    for error in errors {
        assert!(error.status() == status && error.message().contains(says), "{error:?}");
    }
}

#[test]
fn a_batch_that_one_rank_refuses_changes_nothing_anywhere() {
    let ends = on_grid(2, 2, |ranks| {
        let mut trainer = started(&ranks);
        let good = activations(2, 20);
        trainer.step(&view(&good).into()).unwrap();
        let before = (both_exports(&trainer), trainer.progress().cloned());
        let narrow = [1.0; 4];
        let narrow = Tensor::new(&narrow, &[2, 2]).unwrap();
        let batch: Batch<'_> = if ranks.rank() == 2 { narrow.into() } else { view(&good).into() };
        let mut errors = vec![trainer.step(&batch).unwrap_err()];
        let accumulate = Batch { accumulate: ranks.rank() == 1, ..view(&good).into() };
        errors.push(trainer.step(&accumulate).unwrap_err());
        // Ranks of one row must have the same rows.
        let other = activations(if ranks.rank() == 3 { 3 } else { 2 }, 20);
        errors.push(trainer.step(&view(&other).into()).unwrap_err());
        let fewer = if ranks.rank() == 0 { &good[..19 * D] } else { &good[..] };
        errors.push(trainer.step(&view(fewer).into()).unwrap_err());
        assert_eq!(before, (both_exports(&trainer), trainer.progress().cloned()));
        trainer.step(&view(&good).into()).unwrap();
        (errors, both_exports(&trainer))
    });
    let unbroken = on_grid(2, 2, |ranks| {
        let mut trainer = started(&ranks);
        (0..2).for_each(|_| _ = trainer.step(&view(&activations(2, 20)).into()).unwrap());
        both_exports(&trainer)
    });
    for ((errors, exports), expected) in ends.iter().zip(&unbroken) {
        assert_eq!(exports, expected);
        all_refused(&errors[..1], Status::InvalidTensor, "x: ");
        all_refused(&errors[1..2], Status::InvalidArgument, "accumulate: rank 1");
        all_refused(&errors[2..3], Status::InvalidTensor, "rank 3 was given other rows than rank 2");
        all_refused(&errors[3..], Status::InvalidTensor, "rank 1 was given other rows than rank 0");
    }
    assert!(ends[0].0[0].message().starts_with("rank 2: "), "{:?}", ends[0].0[0]);
}

#[test]
fn options_that_differ_or_do_not_go_together_are_refused_to_all() {
    let make = |data, latents, options: &(dyn Fn(usize) -> TrainOptions + Sync)| -> Vec<Error> {
        on_grid(data, latents, |ranks| {
            Trainer::among(&options(ranks.rank()), Pool::serial(), ranks).err().expect("a refusal")
        })
    };
    let other = |rank: usize| TrainOptions { seed: u64::from(rank == 1), ..options() };
    all_refused(&make(2, 1, &other), Status::InvalidArgument, "options: rank 1");
    let broken = |rank: usize| TrainOptions { k: if rank == 1 { 1 << 20 } else { 6 }, ..options() };
    all_refused(&make(1, 2, &broken), Status::InvalidArgument, "k must be");
    all_refused(&make(1, 2, &|_| of(Recipe::Gated)), Status::Unsupported, "gated");
    let resampled = |_| TrainOptions { resample_every: 5, no_aux: true, k_aux: 0, ..options() };
    all_refused(&make(2, 1, &resampled), Status::Unsupported, "resample_every");
    let few = |_| TrainOptions { n_latents: 3, k: 1, k_aux: 1, ..options() };
    all_refused(&make(1, 4, &few), Status::InvalidArgument, "latent_ranks 4");
}

#[test]
fn grids_are_checked() {
    struct Nobody;
    impl Collective for Nobody {
        fn all_gather(&self, _: Axis, _: &[u8], _: &mut [u8]) -> Result<()> {
            Err(Error::new(Status::Collective, "nobody is there"))
        }
    }
    for (rank, data, latents) in [(0, 0, 1), (0, 1, 0), (4, 2, 2), (0, usize::MAX, 2), (0, 1 << 11, 1 << 11)] {
        assert_eq!(Ranks::new(Box::new(Nobody), rank, data, latents).err().unwrap().status(), Status::InvalidArgument);
    }
    assert!(Ranks::new(Box::new(Nobody), 0, 1, 1).unwrap().is_alone());
    let ranks = Ranks::new(Box::new(Nobody), 1, 1, 2).unwrap();
    let error = Trainer::among(&options(), Pool::serial(), ranks).err().unwrap();
    all_refused(&[error], Status::Collective, "all_gather over the axis of latents: nobody is there");
}

#[test]
fn a_lost_rank_ends_the_others_and_the_checkpoint_survives() {
    let dir = tempfile::tempdir().unwrap();
    let patience = Duration::from_millis(1500);
    let saved = std::sync::Mutex::new(std::collections::BTreeMap::new());
    std::thread::scope(|scope| {
        for ranks in threads(2, 2, patience).unwrap() {
            let (folder, saved) = (dir.path(), &saved);
            scope.spawn(move || {
                let mut trainer = started(&ranks);
                let x = activations(2, 20);
                trainer.step(&view(&x).into()).unwrap();
                trainer.save(folder).unwrap();
                if ranks.rank() == 0 {
                    *saved.lock().unwrap() = files(folder);
                }
                trainer.step(&view(&x).into()).unwrap();
                if ranks.rank() == 3 {
                    // It neither answers nor says so.
                    std::thread::sleep(3 * patience);
                    return;
                }
                let began = Instant::now();
                let error = trainer.step(&view(&x).into()).unwrap_err();
                assert!(began.elapsed() < 3 * patience, "{:?}", began.elapsed());
                all_refused(std::slice::from_ref(&error), Status::Collective, "resume from a checkpoint");
                let later = [
                    trainer.step(&view(&x).into()).unwrap_err(),
                    trainer.export(Export::Weights).err().unwrap(),
                    trainer.save(folder).unwrap_err(),
                ];
                assert!(began.elapsed() < 3 * patience, "later calls wait again");
                all_refused(&later, Status::Collective, error.message());
            });
        }
    });
    assert_eq!(*saved.lock().unwrap(), files(dir.path()));
    assert_eq!(
        Trainer::resume(dir.path(), &TrainOptions::default(), Pool::serial()).unwrap().progress().unwrap().step,
        1
    );
}

fn files(folder: &std::path::Path) -> std::collections::BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries.map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap())).collect()
}

/// A communicator that offers more than it must, by what it has.
struct Offers {
    gather: std::sync::Arc<dyn Collective>,
    sums: bool,
    scatters: bool,
    others: bool,
    calls: std::sync::Arc<[AtomicUsize; 4]>,
}

impl Offers {
    fn all<T: bytemuck::Pod>(&self, axis: Axis, values: &[T], ranks: usize) -> Result<Vec<T>> {
        let mut all = values.repeat(ranks);
        self.gather.all_gather(axis, bytemuck::cast_slice(values), bytemuck::cast_slice_mut(&mut all))?;
        Ok(all)
    }

    fn count(&self, call: usize) {
        self.calls[call].fetch_add(1, Ordering::Relaxed);
    }
}

/// Both axes have two ranks.
impl Collective for Offers {
    fn all_gather(&self, axis: Axis, mine: &[u8], all: &mut [u8]) -> Result<()> {
        self.gather.all_gather(axis, mine, all)
    }

    fn all_reduce_sum(&self, axis: Axis, values: &mut [f32]) -> Option<Result<()>> {
        self.sums.then(|| {
            self.count(0);
            let all = self.all(axis, values, 2)?;
            let (a, b) = all.split_at(values.len());
            values.iter_mut().zip(a).zip(b).for_each(|((to, a), b)| *to = a + b);
            Ok(())
        })
    }

    fn reduce_scatter_sum(&self, axis: Axis, values: &[f32], mine: &mut [f32]) -> Option<Result<()>> {
        self.scatters.then(|| {
            self.count(1);
            let all = self.all(axis, values, 2)?;
            let (a, b) = all.split_at(values.len());
            let sums: Vec<f32> = a.iter().zip(b).map(|(a, b)| a + b).collect();
            // Which part is mine only the one who made this knows: the place is asked for with the values.
            let place = self.all(axis, &[std::ptr::from_ref(self) as u64], 2)?;
            let place = usize::from(place[1] == std::ptr::from_ref(self) as u64);
            mine.copy_from_slice(&sums[place * mine.len()..(place + 1) * mine.len()]);
            Ok(())
        })
    }

    fn all_reduce_min(&self, axis: Axis, values: &mut [i64]) -> Option<Result<()>> {
        self.others.then(|| {
            self.count(2);
            let all = self.all(axis, values, 2)?;
            let (a, b) = all.split_at(values.len());
            values.iter_mut().zip(a).zip(b).for_each(|((to, a), b)| *to = *a.min(b));
            Ok(())
        })
    }

    fn broadcast(&self, axis: Axis, root: usize, bytes: &mut [u8]) -> Option<Result<()>> {
        self.others.then(|| {
            self.count(3);
            let all = self.all(axis, bytes, 2)?;
            bytes.copy_from_slice(&all[root * bytes.len()..][..bytes.len()]);
            Ok(())
        })
    }
}

#[test]
fn whatever_a_communicator_offers_a_run_is_the_same() {
    let run = |ranks: Ranks| {
        let mut trainer = started(&ranks);
        for seed in 2..12 {
            let x = activations(seed + 50 * ranks.place(Axis::Data) as u64, 20);
            trainer.step(&view(&x).into()).unwrap();
        }
        both_exports(&trainer)
    };
    let expected = on_grid(2, 2, run);
    for (sums, scatters, others) in
        [(true, false, false), (false, true, false), (false, false, true), (true, true, true)]
    {
        let calls = std::sync::Arc::new([const { AtomicUsize::new(0) }; 4]);
        let found: Vec<_> = std::thread::scope(|scope| {
            let spawn = |(rank, gather): (usize, std::sync::Arc<dyn Collective>)| {
                let offers = Offers { gather, sums, scatters, others, calls: calls.clone() };
                let ranks = Ranks::new(Box::new(offers), rank, 2, 2).unwrap();
                scope.spawn(move || run(ranks))
            };
            let members = sae::collective::members(2, 2, crate::support::PATIENCE);
            let all: Vec<_> = members.into_iter().map(std::sync::Arc::from).enumerate().map(spawn).collect();
            all.into_iter().map(|rank| rank.join().unwrap()).collect()
        });
        assert!(found == expected, "{sums} {scatters} {others}");
        let called = calls.each_ref().map(|calls| calls.load(Ordering::Relaxed) > 0);
        assert_eq!(called, [sums, scatters && !sums, others, others]);
    }
}
