//! Sessions against the oracle, bit for bit: every instruction set, thread count, batch split and element type.
#![allow(clippy::unwrap_used, unsafe_code)]

mod common;

use std::ffi::c_void;
use std::sync::Arc;

use common::cases::Case;
use common::definition::{self, encode, options, same};
use common::oracle;
use proptest::prelude::*;
use sae::backend::cpu::Kernels;
use sae::backend::{Input, Order, Pool, Run, Screen, Wanted};
use sae::features::Features;
use sae::sae::Sae;
use sae::session::{Session, SessionOptions, Steer};
use sae::steering::{Edit, EditOp};
use sae::tensor::{Tensor, TensorMut};

/// A host's way to run things "in parallel": one after another, last first.
unsafe extern "C" fn backwards(
    _: *mut c_void,
    n: usize,
    body: unsafe extern "C" fn(*mut c_void, usize),
    arg: *mut c_void,
) {
    // SAFETY: the library's own body with its own argument.
    (0..n).rev().for_each(|i| unsafe { body(arg, i) });
}

/// Every way to compute that must not make a difference.
fn ways(sae: &Arc<Sae>, case: &Case) -> Vec<(String, Session)> {
    let mut sessions = Vec::new();
    for kernels in Kernels::all_supported() {
        for (threads, screen) in [(1, Screen::Never), (1, Screen::Always), (2, Screen::Never), (5, Screen::Always)] {
            let pool = Pool::new(threads).unwrap();
            let options = SessionOptions { pool, kernels: Some(kernels), screen, ..options(case) };
            let way = format!("{} × {threads}, screen: {screen:?}", kernels.name);
            sessions.push((way, Session::new(Arc::clone(sae), options).unwrap()));
        }
    }
    // SAFETY: `backwards` runs each body once and ignores its context.
    let pool = unsafe { Pool::from_host(3, backwards, std::ptr::null_mut()).unwrap() };
    let options = SessionOptions { pool, ..options(case) };
    sessions.push(("host's pool".to_owned(), Session::new(Arc::clone(sae), options).unwrap()));
    sessions
}

proptest! {
    #[test]
    fn encode_and_decode_are_the_definition(case in Case::any(), width in 0usize..40) {
        definition::encode_and_decode(&case, width, &ways)?;
    }

    #[test]
    fn dense_and_selected_are_the_definition(case in Case::any().prop_map(Case::whole_if_competing)) {
        definition::dense_and_selected(&case, &ways)?;
    }

    #[test]
    fn steering_is_the_definition(
        case in Case::any().prop_map(Case::whole_if_competing), in_place in any::<bool>(), known_width in 0usize..130,
    ) {
        definition::steering(&case, in_place, known_width, &ways)?;
    }

    #[test]
    fn shards_merge_to_the_whole(case in Case::any().prop_map(Case::mergeable), width in 0usize..40, cuts in 1usize..4) {
        definition::merging(&case, width, cuts, &ways)?;
    }

    #[test]
    fn element_types_strides_and_splits_make_no_difference(
        case in Case::any().prop_map(Case::whole_if_competing), kind in 0u8..3, gap in 0usize..5, layers_first in any::<bool>(),
    ) {
        let plain = |sae: &Arc<Sae>, case: &Case| {
            vec![("plain".to_owned(), Session::new(Arc::clone(sae), options(case)).unwrap())]
        };
        definition::views(&case, kind, (gap, layers_first), &plain);
    }
}

/// A small SAE of each architecture for examples.
fn example(architecture: u8, n: usize) -> Case {
    Case { seed: 2, architecture, normalization: 1, ..Case::plain(6, n, 40, 3) }
}

#[test]
fn long_lists_shrink_the_tile_and_change_nothing() {
    let case = example(1, 40_000);
    let mut numbers = case.rng();
    let sae = Arc::new(case.sae(&mut numbers));
    let x = numbers.activations(case.rows * case.d_in);
    let mut session = Session::new(Arc::clone(&sae), options(&case)).unwrap();
    let found = encode(&mut session, &x, case.rows, case.n, Order::Value);
    for row in [0, 17, 39] {
        let token = oracle::encode(&sae, &x[row * 6..row * 6 + 6]).unwrap();
        assert!(token.active.len() > 10_000);
        assert_eq!(found.row(row).collect::<Vec<_>>(), token.active);
    }
}

#[test]
fn reconstruction_may_replace_its_input() {
    let case = example(0, 50);
    let mut numbers = case.rng();
    let sae = Arc::new(case.sae(&mut numbers));
    let mut x = numbers.activations(case.rows * case.d_in);
    for (way, mut session) in ways(&sae, &case) {
        let before = x.clone();
        let shape = [case.rows, case.d_in];
        // SAFETY: the call accepts an output that is exactly its input.
        let input = unsafe {
            Tensor::from_raw(x.as_ptr().cast(), sae::tensor::DType::F32, sae::tensor::Device::CPU, &shape, None)
                .unwrap()
        };
        session.reconstruct(Run::default(), input.into(), None, TensorMut::new(&mut x, &shape).unwrap()).unwrap();
        for row in 0..case.rows {
            let from = &before[row * 6..row * 6 + 6];
            let token = oracle::encode(&sae, from).unwrap();
            let expected = oracle::decode(&sae, &token.active, &token.state, from);
            assert!(same(&x[row * 6..row * 6 + 6], &expected), "{way}");
        }
    }
}

#[test]
fn indices_that_are_none_are_ignored_and_counted() {
    let case = example(0, 50);
    let mut numbers = case.rng();
    let sae = Arc::new(case.sae(&mut numbers));
    let mut session = Session::new(sae, SessionOptions { max_width: 4, ..SessionOptions::default() }).unwrap();
    let mut decode = |indices: [i32; 4]| {
        let mut features = Features::new(1, 4, 2);
        features.indices.copy_from_slice(&indices);
        features.values.copy_from_slice(&[1.0, 2.0, 3.0, 4.0]);
        features.row_state.copy_from_slice(&[0.5, 2.0]);
        features.counts[0] = 4;
        let mut x_hat = vec![0.0; 6];
        session.decode(Run::default(), features.view(), None, TensorMut::new(&mut x_hat, &[1, 6]).unwrap()).unwrap();
        (x_hat, session.ignored_indices())
    };
    let (clean, none) = decode([-1, 7, -1, -1]);
    assert_eq!(none, 0);
    assert_eq!(decode([50, 7, i32::MAX, i32::MIN]), (clean, 3));
}

#[test]
fn shards_refuse_what_only_the_whole_can_tell() {
    let case = example(0, 50);
    let mut numbers = case.rng();
    let shard = Arc::new(case.sae(&mut numbers).shard(0, 20).unwrap());
    let x = numbers.activations(6);
    let mut session = Session::new(shard, SessionOptions { max_width: 3, ..SessionOptions::default() }).unwrap();
    let input = Input::from(Tensor::new(&x, &[1, 6]).unwrap());
    let mut out = vec![5.0f32; 20];
    let ids = [1, 2];
    let ids = Tensor::new(&ids, &[2]).unwrap();
    let selected = TensorMut::new(&mut out[..2], &[1, 2]).unwrap();
    let selected = session.encode_selected(Run::default(), input, ids, selected);
    let z = TensorMut::new(&mut out, &[1, 20]).unwrap();
    let dense = session.encode_dense(Run::default(), input, Wanted::Activations, z);
    session.set_edits(0, &[Edit::new(1, EditOp::Ablate, 0.0)]).unwrap();
    let to = TensorMut::new(&mut out[..6], &[1, 6]).unwrap();
    let steered = session.steer(Run::default(), input, Steer::default(), to);
    for refused in [selected, dense, steered] {
        assert_eq!(refused.unwrap_err().status(), sae::Status::Unsupported);
    }
    assert_eq!(out, vec![5.0; 20]);
    // Additions need no membership, and known features tell it.
    session.set_edits(0, &[Edit::new(1, EditOp::Add, 1.0)]).unwrap();
    let to = TensorMut::new(&mut out[..6], &[1, 6]).unwrap();
    session.steer(Run::default(), input, Steer::default(), to).unwrap();
    session.set_edits(0, &[Edit::new(1, EditOp::Set, 1.0)]).unwrap();
    let known = Features::new(1, 3, 2);
    let steer = Steer { known: Some(known.view()), ..Steer::default() };
    session.steer(Run::default(), input, steer, TensorMut::new(&mut out[..6], &[1, 6]).unwrap()).unwrap();
}

#[test]
fn overlaps_are_refused_by_name() {
    let case = example(0, 50);
    let mut numbers = case.rng();
    let sae = Arc::new(case.sae(&mut numbers));
    let mut session = Session::new(sae, SessionOptions { max_width: 3, ..SessionOptions::default() }).unwrap();
    let mut memory = vec![0.0f32; 400];
    let base = memory.as_mut_ptr();
    let ints = [0i32; 2];
    // SAFETY: within `memory`; the calls must notice what overlaps before they touch anything.
    let (read, write) = unsafe {
        let device = sae::tensor::Device::CPU;
        let f32 = sae::tensor::DType::F32;
        let read =
            move |at: usize, shape: &[usize]| Tensor::from_raw(base.add(at).cast(), f32, device, shape, None).unwrap();
        let write = move |at: usize, shape: &[usize]| {
            TensorMut::from_raw(base.add(at).cast(), f32, device, shape, None).unwrap()
        };
        (read, write)
    };
    let (x, elsewhere) = (read(0, &[2, 6]), read(100, &[2, 6]));
    let refuse = |result: sae::Result<()>, named: &str| {
        let error = result.unwrap_err();
        assert!(error.status() == sae::Status::InvalidTensor && error.message().contains(named), "{error}");
    };
    let mut out = Features::new(2, 3, 2);
    let run = Run::default;
    let mut features = out.view_mut();
    features.values = write(8, &[2, 3]);
    refuse(session.encode(run(), x.into(), features), "features.values overlaps x");
    let mut features = out.view_mut();
    features.values = write(104, &[2, 3]);
    let input = Input { addend: Some(elsewhere), ..Input::from(x) };
    refuse(session.encode(run(), input, features), "features.values overlaps addend");
    let mut features = out.view_mut();
    (features.values, features.row_state) = (write(200, &[2, 3]), Some(write(205, &[2, 2])));
    refuse(session.encode(run(), x.into(), features), "both are written");
    refuse(session.reconstruct(run(), x.into(), None, write(6, &[2, 6])), "x_hat overlaps x");
    let mut features = out.view_mut();
    features.values = write(200, &[2, 3]);
    refuse(session.reconstruct(run(), x.into(), Some(features), write(203, &[2, 6])), "both are written");
    refuse(session.steer(run(), x.into(), Steer::default(), write(1, &[2, 6])), "out overlaps x");
    let steer = Steer { y: Some(elsewhere), ..Steer::default() };
    refuse(session.steer(run(), x.into(), steer, write(106, &[2, 6])), "out overlaps y");
    // SAFETY: as above.
    let over_slots = unsafe {
        let (f32, cpu) = (sae::tensor::DType::F32, sae::tensor::Device::CPU);
        TensorMut::from_raw(ints.as_ptr().cast_mut().cast(), f32, cpu, &[1, 6], None).unwrap()
    };
    let steer = Steer { row_slot: Some(Tensor::new(&ints[..1], &[1]).unwrap()), ..Steer::default() };
    refuse(session.steer(run(), read(0, &[1, 6]).into(), steer, over_slots), "out overlaps row_slot");
    refuse(
        session.encode_dense(run(), read(0, &[2, 6]).into(), Wanted::Activations, write(11, &[2, 50])),
        "z overlaps x",
    );
    let bad_slots = [0.0f32; 2];
    let steer = Steer { row_slot: Some(Tensor::new(&bad_slots, &[2]).unwrap()), ..Steer::default() };
    refuse(session.steer(run(), x.into(), steer, write(100, &[2, 6])), "row_slot: expected i32");
    let short = Steer { row_slot: Some(Tensor::new(&ints[..1], &[1]).unwrap()), ..Steer::default() };
    refuse(session.steer(run(), x.into(), short, write(100, &[2, 6])), "row_slot: expected shape [2]");
}

#[test]
fn a_host_workspace_gives_the_same_and_is_checked() {
    let case = Case { seed: 1, d_in: 24, d_out: 24, k: 8, ..example(0, 100) };
    let mut numbers = case.rng();
    let sae = Arc::new(case.sae(&mut numbers));
    let x = numbers.activations(case.rows * case.d_in);
    let mut own = Session::new(Arc::clone(&sae), options(&case)).unwrap();
    let expected = encode(&mut own, &x, case.rows, 8, Order::Value);
    let host_options = SessionOptions { host_workspace: true, ..options(&case) };
    let memory = Session::memory(&Arc::clone(&sae).into(), &host_options).unwrap();
    let mut session = Session::new(Arc::clone(&sae), host_options).unwrap();
    assert_eq!(memory.workspace, session.workspace_size());

    let mut block = sae::tensor::AlignedBytes::zeroed(memory.workspace + 64).unwrap();
    block.as_mut_slice().fill(0xa5);
    let mut out = Features::new(case.rows, 8, 2);
    let untouched = out.clone();
    let x = Tensor::new(&x, &[case.rows, case.d_in]).unwrap();
    let size = memory.workspace;
    for (workspace, named) in
        [(None, "host's workspace"), (Some(0..size - 1), "must hold"), (Some(8..8 + size), "aligned")]
    {
        let workspace = workspace.map(|range| &mut block.as_mut_slice()[range]);
        let error = session.encode(Run { workspace, ..Run::default() }, x.into(), out.view_mut()).unwrap_err();
        assert!(error.message().contains(named), "{error}");
        assert_eq!(out, untouched);
    }
    let workspace = Some(&mut block.as_mut_slice()[64..64 + size]);
    session.encode(Run { workspace, ..Run::default() }, x.into(), out.view_mut()).unwrap();
    assert_eq!(out, expected);
}

#[test]
fn bad_arguments_are_refused_and_nothing_is_written() {
    let case = Case { rows: 4, ..example(0, 20) };
    let mut numbers = case.rng();
    let sae = Arc::new(case.sae(&mut numbers));
    let options =
        SessionOptions { max_tokens: 4, max_width: 3, slots: 1, edits_per_slot: 2, ..SessionOptions::default() };
    let mut session = Session::new(Arc::clone(&sae), options.clone()).unwrap();
    let x = numbers.activations(5 * 6);
    let ints = [0i32; 30];
    let tensor = |rows: usize, cols: usize| Tensor::new(&x[..rows * cols], &[rows, cols]).unwrap();
    let mut refuse = |x: Tensor<'_>, addend: Option<Tensor<'_>>, mut out: Features, named: &str| {
        let before = out.clone();
        let input = Input { x, addend, round_sum: false };
        let error = session.encode(Run::default(), input, out.view_mut()).unwrap_err();
        assert!(error.message().contains(named), "{error} does not name {named}");
        assert_eq!(out, before);
    };
    refuse(tensor(4, 5), None, Features::new(4, 3, 2), "x: expected shape [4, 6], found [4, 5]");
    refuse(tensor(5, 6), None, Features::new(5, 3, 2), "x: 5 tokens");
    refuse(tensor(4, 6), Some(tensor(3, 6)), Features::new(4, 3, 2), "addend: expected shape [4, 6]");
    refuse(tensor(4, 6), None, Features::new(3, 3, 2), "features.values: expected shape [4, 3]");
    refuse(tensor(4, 6), None, Features::new(4, 4, 2), "width 4");
    refuse(tensor(4, 6), None, Features::new(4, 3, 0), "row_state: [4, 2] of f32 is needed");
    refuse(tensor(4, 6), None, Features::new(4, 3, 1), "row_state: expected shape [4, 2]");
    refuse(Tensor::new(&ints[..24], &[4, 6]).unwrap(), None, Features::new(4, 3, 2), "x: expected f32, f16 or bf16");

    let features = Features::new(4, 3, 2);
    let mut out = vec![5.0f32; 24];
    let f64s = TensorMut::new(&mut out[..20], &[4, 5]).unwrap();
    let error = session.decode(Run::default(), features.view(), None, f64s).unwrap_err();
    assert!(error.message().contains("x_hat: expected shape [4, 6], found [4, 5]"), "{error}");
    assert_eq!(out, vec![5.0; 24]);
    for (slot, edits, named) in [
        (1, vec![], "slot: 1"),
        (
            0,
            vec![Edit::new(0, EditOp::Add, 1.0), Edit::new(1, EditOp::Add, 1.0), Edit::new(2, EditOp::Add, 1.0)],
            "n_edits: 3",
        ),
        (0, vec![Edit::new(20, EditOp::Add, 1.0)], "edits[0].feature: 20"),
    ] {
        let error = session.set_edits(slot, &edits).unwrap_err();
        assert!(error.message().contains(named), "{error}");
    }
    for (spoil, named) in [
        (SessionOptions { max_tokens: 0, ..options.clone() }, "max_tokens"),
        (SessionOptions { max_tokens: usize::MAX, ..options.clone() }, "max_tokens"),
        (SessionOptions { max_width: usize::MAX, ..options.clone() }, "max_width"),
        (SessionOptions { slots: 1 << 20, edits_per_slot: 4096, ..options }, "slots"),
    ] {
        let error = Session::new(Arc::clone(&sae), spoil).err().unwrap();
        assert!(error.message().contains(named), "{error}");
    }
}

#[test]
fn three_dimensions_are_for_crosscoders() {
    let plain = Case { normalization: 0, subtract: false, ..example(0, 20) };
    let crosscoder = Case { d_in: 6, layers: 3, ..plain.clone() };
    let x = plain.rng().activations(12);
    let mut memory = [5.0f32; 12];
    let mut reconstruct = |case: &Case, shape: &[usize], out_shape: &[usize]| {
        let sae = Arc::new(case.sae(&mut case.rng()));
        let mut session = Session::new(sae, SessionOptions::default()).unwrap();
        let (x, out) = (Tensor::new(&x, shape).unwrap(), TensorMut::new(&mut memory, out_shape).unwrap());
        session.reconstruct(Run::default(), x.into(), None, out)
    };
    for shape in [&[2, 6][..], &[2, 3, 2]] {
        for out_shape in [&[2, 6][..], &[2, 3, 2]] {
            reconstruct(&crosscoder, shape, out_shape).unwrap();
        }
    }
    for (case, shape, out_shape, named) in [
        (&plain, [2, 3, 2], [2, 3, 2], "x: expected shape [2, 6], found [2, 3, 2]"),
        (&plain, [2, 1, 6], [2, 1, 6], "x: expected shape [2, 6], found [2, 1, 6]"),
        (&crosscoder, [2, 2, 3], [2, 3, 2], "x: expected shape [2, 3, 2], found [2, 2, 3]"),
        (&crosscoder, [2, 3, 2], [2, 2, 3], "x_hat: expected shape [2, 3, 2], found [2, 2, 3]"),
        (&crosscoder, [2, 3, 2], [4, 3, 1], "x_hat: expected shape [2, 3, 2], found [4, 3, 1]"),
    ] {
        let error = reconstruct(case, &shape, &out_shape).unwrap_err();
        assert!(error.message().contains(named), "{error}");
    }
}

#[test]
fn shards_chosen_by_decoder_norms_are_not_merged() {
    for (architecture, refused) in [(0, true), (3, true), (4, false), (2, false)] {
        let case = Case { select: true, k: 5, ..example(architecture, 20) };
        let sae = Arc::new(case.sae(&mut case.rng()));
        let mut session = Session::new(sae, options(&case)).unwrap();
        let part = Features::new(1, 20, 2);
        let mut out = part.clone();
        let merged = session.merge(Run::default(), &[part.view()], out.view_mut());
        let named = "top_k SAE chooses latents by their decoders' norms";
        assert_eq!(merged.is_err_and(|e| e.message().contains(named)), refused);
    }
}

#[test]
fn a_shard_of_whole_groups_tells_all() {
    let case = Case { k: 5, ..example(4, 20) };
    let mut numbers = case.rng();
    let whole = case.sae(&mut numbers);
    let x = numbers.activations(case.d_in);
    let expected = oracle::encode(&whole, &x).unwrap().active;
    let mut session = Session::new(Arc::new(whole.shard(8, 12).unwrap()), options(&case)).unwrap();
    let mut z = [5.0; 12];
    let input = Tensor::new(&x, &[1, case.d_in]).unwrap().into();
    let out = TensorMut::new(&mut z, &[1, 12]).unwrap();
    session.encode_dense(Run::default(), input, Wanted::Activations, out).unwrap();
    let mut dense = [0.0; 12];
    expected.iter().filter(|(i, _)| *i >= 8).for_each(|&(i, v)| dense[i as usize - 8] = v);
    assert!(same(&z, &dense) && dense.iter().any(|v| *v > 0.0));
    assert!(whole.shard(6, 4).is_err(), "a shard may not cut a group");
}
