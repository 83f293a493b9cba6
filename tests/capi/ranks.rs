//! Runs of more than one process, as a host lends its communicator: here ranks are threads.

use std::ffi::{CString, c_void};
use std::ptr::{null, null_mut};
use std::slice;
use std::time::Duration;

use sae::capi::*;
use sae::collective::{Axis, Collective, members};

use crate::bad_training::{options, trainer, weights};
use crate::host::{Array, Trainer, init, numbers, ok, refused};

/// What a table's context points to.
struct Host(Box<dyn Collective>);

unsafe extern "C" fn all_gather(
    context: *mut c_void,
    axis: i32,
    mine: *const c_void,
    bytes: usize,
    all: *mut c_void,
) -> i32 {
    let host = unsafe { &*context.cast::<Host>() };
    let axis = [Axis::Data, Axis::Latents][axis as usize];
    let (mine, all) = unsafe {
        (slice::from_raw_parts(mine.cast::<u8>(), bytes), slice::from_raw_parts_mut(all.cast::<u8>(), 2 * bytes))
    };
    host.0.all_gather(axis, mine, all).map_or(5, |()| 0)
}

unsafe extern "C" fn all_reduce_sum(context: *mut c_void, axis: i32, values: *mut f32, count: usize) -> i32 {
    let mut all = vec![0.0f32; 2 * count];
    let status = unsafe { all_gather(context, axis, values.cast(), 4 * count, all.as_mut_ptr().cast()) };
    let values = unsafe { slice::from_raw_parts_mut(values, count) };
    values.iter_mut().enumerate().for_each(|(i, value)| *value = all[i] + all[count + i]);
    status
}

unsafe extern "C" fn all_reduce_min(context: *mut c_void, axis: i32, values: *mut i64, count: usize) -> i32 {
    let mut all = vec![0i64; 2 * count];
    let status = unsafe { all_gather(context, axis, values.cast(), 8 * count, all.as_mut_ptr().cast()) };
    let values = unsafe { slice::from_raw_parts_mut(values, count) };
    values.iter_mut().enumerate().for_each(|(i, value)| *value = all[i].min(all[count + i]));
    status
}

unsafe extern "C" fn broadcast(context: *mut c_void, axis: i32, root: i32, bytes: *mut c_void, count: usize) -> i32 {
    let mut all = vec![0u8; 2 * count];
    let status = unsafe { all_gather(context, axis, bytes, count, all.as_mut_ptr().cast()) };
    let from = &all[root as usize * count..][..count];
    unsafe { slice::from_raw_parts_mut(bytes.cast::<u8>(), count) }.copy_from_slice(from);
    status
}

fn table(host: &Host, rank: i64) -> sae_collective {
    let mut table = init::<sae_collective>();
    (table.rank, table.data_ranks, table.latent_ranks) = (rank, 2, 2);
    table.context = std::ptr::from_ref(host).cast_mut().cast();
    table.all_gather = Some(all_gather);
    table
}

fn step(trainer: &Trainer, seed: u64) {
    let x = Array::f32(&numbers(32, seed), &[4, 8]);
    let mut batch = init::<sae_train_batch>();
    batch.x = &x.tensor;
    ok(|e| unsafe { sae_train_step(trainer.0, null(), &batch, null_mut(), e) });
}

#[test]
fn four_ranks_train_save_and_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let folder = CString::new(dir.path().to_str().unwrap()).unwrap();
    let run = |rank: usize, host: Host, whole_table: bool| {
        let mut table = table(&host, rank as i64);
        if whole_table {
            table.all_reduce_sum = Some(all_reduce_sum);
            table.all_reduce_min = Some(all_reduce_min);
            table.broadcast = Some(broadcast);
        }
        let options = sae_train_options { collective: &table, ..options() };
        let trainer = trainer(&options);
        let sample = Array::f32(&numbers(800, 1), &[100, 8]);
        ok(|e| unsafe { sae_trainer_init_from(trainer.0, &sample.tensor, e) });
        let row = rank as u64 / 2;
        (0..5).for_each(|i| step(&trainer, 10 * i + row));
        ok(|e| unsafe { sae_trainer_save(trainer.0, folder.as_ptr(), e) });
        step(&trainer, 100 + row);
        let mut resumed = null_mut();
        let mut options = init::<sae_train_options>();
        options.collective = &table;
        ok(|e| unsafe { sae_trainer_resume(folder.as_ptr(), &options, &mut resumed, e) });
        let resumed = Trainer(resumed);
        step(&resumed, 100 + row);
        assert_eq!(weights(&resumed), weights(&trainer));
        weights(&trainer)
    };
    let ends: Vec<Vec<_>> = [false, true]
        .map(|whole_table| {
            std::thread::scope(|scope| {
                let members = members(2, 2, Duration::from_secs(60)).into_iter().map(Host).enumerate();
                let run = &run;
                let all: Vec<_> =
                    members.map(|(rank, host)| scope.spawn(move || run(rank, host, whole_table))).collect();
                all.into_iter().map(|rank| rank.join().unwrap()).collect()
            })
        })
        .into();
    assert!(ends.iter().flatten().all(|end| *end == ends[0][0]));
    // One process goes on from what four wrote.
    let mut alone = null_mut();
    ok(|e| unsafe { sae_trainer_resume(folder.as_ptr(), null(), &mut alone, e) });
    step(&Trainer(alone), 7);
}

unsafe extern "C" fn fails(_: *mut c_void, _: i32, _: *const c_void, _: usize, _: *mut c_void) -> i32 {
    5
}

#[test]
fn tables_are_checked_and_failures_are_told() {
    let mut table = init::<sae_collective>();
    table.latent_ranks = 2;
    let mut out = null_mut();
    let mut create = |table: &sae_collective, status, says: &str| {
        let options = sae_train_options { collective: table, ..options() };
        refused(status, says, |e| unsafe { sae_trainer_create(&options, &mut out, e) })
    };
    create(&table, SAE_ERROR_INVALID_ARGUMENT, "options.collective.all_gather: is NULL");
    table.all_gather = Some(fails);
    for (rank, data, latents, says) in [
        (2, 0, 2, "rank 2 is not below"),
        (-1, 0, 2, "options.collective.rank: -1"),
        (0, -1, 2, "options.collective.data_ranks: -1"),
        (0, 0, -2, "options.collective.latent_ranks: -2"),
        (0, i64::MAX, 2, "must be between 1 and 2^20"),
    ] {
        let wrong = sae_collective { rank, data_ranks: data, latent_ranks: latents, ..table };
        create(&wrong, SAE_ERROR_INVALID_ARGUMENT, says);
    }
    create(&sae_collective { struct_size: 8, ..table }, SAE_ERROR_INVALID_ARGUMENT, "options.collective.struct_size");
    let message = create(&table, SAE_ERROR_COLLECTIVE, "all_gather over the axis of latents");
    assert!(message.contains("returned 5"), "{message}");
    // Of a grid of one there is nobody to ask.
    let one = sae_collective { latent_ranks: 0, ..table };
    drop(trainer(&sae_train_options { collective: &one, ..options() }));
}
