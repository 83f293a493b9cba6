//! Sessions against the oracle, bit for bit: every instruction set, thread count, batch split and element type.
#![allow(clippy::unwrap_used, unsafe_code)]

mod common;

use std::ffi::c_void;
use std::sync::Arc;

use common::cases::{Case, Numbers};
use common::layout::Layout;
use common::oracle;
use half::{bf16, f16};
use proptest::prelude::*;
use sae::backend::cpu::Kernels;
use sae::backend::{Input, Order, Pool, Run, Screen, Wanted};
use sae::features::Features;
use sae::sae::Sae;
use sae::session::{Session, SessionOptions, Steer};
use sae::steering::{Edit, EditOp};
use sae::tensor::{Tensor, TensorMut};

fn options(case: &Case) -> SessionOptions {
    SessionOptions {
        max_tokens: case.rows.max(1),
        max_width: case.n,
        slots: 3,
        edits_per_slot: 8,
        ..SessionOptions::default()
    }
}

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

fn same(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()))
}

fn encode(session: &mut Session, x: &[f32], rows: usize, width: usize, order: Order) -> Features {
    let spec = session.sae().spec();
    let mut out = Features::new(rows, width, spec.row_state_width());
    out.indices.fill(77);
    out.values.fill(77.0);
    let x = Tensor::new(x, &[rows, spec.d_in]).unwrap();
    session.encode(Run { order, ..Run::default() }, x.into(), out.view_mut()).unwrap();
    out
}

proptest! {
    #[test]
    fn encode_and_decode_are_the_definition(case in Case::any(), width in 0usize..40) {
        let mut numbers = case.rng();
        let sae = Arc::new(case.sae(&mut numbers));
        let x = numbers.activations(case.rows * case.d_in);
        let width = width.min(case.n);
        for (way, mut session) in ways(&sae, &case) {
            let found = encode(&mut session, &x, case.rows, width, Order::Value);
            let by_index = encode(&mut session, &x, case.rows, width, Order::Index);
            let all = encode(&mut session, &x, case.rows, case.n, Order::Value);
            let mut x_hat = vec![7.0; case.rows * case.d_out];
            let raw = Tensor::new(&x, &[case.rows, case.d_in]).unwrap();
            let shape = [case.rows, case.d_out];
            session.decode(Run::default(), all.view(), Some(raw), TensorMut::new(&mut x_hat, &shape).unwrap()).unwrap();
            let mut at_once = vec![7.0; case.rows * case.d_out];
            let mut shown = Features::new(case.rows, width, sae.spec().row_state_width());
            session.reconstruct(
                Run { order: Order::Index, ..Run::default() },
                raw.into(),
                Some(shown.view_mut()),
                TensorMut::new(&mut at_once, &shape).unwrap(),
            ).unwrap();
            for row in 0..case.rows {
                let x = &x[row * case.d_in..][..case.d_in];
                let slots = row * width..(row + 1) * width;
                let x_hat = &x_hat[row * case.d_out..][..case.d_out];
                let at_once = &at_once[row * case.d_out..][..case.d_out];
                let Some(token) = oracle::encode(&sae, x) else {
                    prop_assert_eq!(found.counts[row], -1);
                    prop_assert!(found.indices[slots.clone()].iter().all(|&i| i == -1));
                    prop_assert!(found.values[slots].iter().all(|&v| v == 0.0));
                    prop_assert!(x_hat.iter().chain(at_once).all(|v| v.is_nan()));
                    continue;
                };
                prop_assert_eq!(found.counts[row] as usize, token.active.len(), "{}", way);
                let mut expected: Vec<_> = token.active.iter().copied().take(width).collect();
                let listed: Vec<_> = found.row(row).collect();
                prop_assert_eq!(&listed, &expected, "{}", way);
                prop_assert!(found.indices[slots.clone()][listed.len()..].iter().all(|&i| i == -1));
                prop_assert!(found.values[slots][listed.len()..].iter().all(|&v| v == 0.0));
                expected.sort_by_key(|(index, _)| *index);
                prop_assert_eq!(&by_index.row(row).collect::<Vec<_>>(), &expected, "{}", way);
                prop_assert_eq!(&shown.row(row).collect::<Vec<_>>(), &expected, "{}", way);
                let state_width = found.row_state_width;
                prop_assert!(same(&found.row_state[row * state_width..][..state_width], &token.state[..state_width]));
                let expected = oracle::decode(&sae, &token.active, &token.state, x);
                prop_assert!(same(x_hat, &expected), "{way}: {x_hat:?} is not {expected:?}");
                prop_assert!(same(at_once, &expected), "{way}");
            }
        }
    }

    #[test]
    fn dense_and_selected_are_the_definition(case in Case::any().prop_map(Case::whole_if_competing)) {
        let mut numbers = case.rng();
        let sae = Arc::new(case.sae(&mut numbers));
        let x = numbers.activations(case.rows * case.d_in);
        let input = Input::from(Tensor::new(&x, &[case.rows, case.d_in]).unwrap());
        let first = case.first_latent as i32;
        // Twice the same, one below, one above the range.
        let ids = [first, first + numbers.below(case.n) as i32, first, first - 1, first + case.n as i32, i32::MIN];
        for (way, mut session) in ways(&sae, &case) {
            let mut activations = vec![7.0; case.rows * case.n];
            let mut pre_activations = activations.clone();
            let mut selected = vec![7.0; case.rows * ids.len()];
            let shape = [case.rows, case.n];
            let z = TensorMut::new(&mut activations, &shape).unwrap();
            session.encode_dense(Run::default(), input, Wanted::Activations, z).unwrap();
            let z = TensorMut::new(&mut pre_activations, &shape).unwrap();
            session.encode_dense(Run::default(), input, Wanted::PreActivations, z).unwrap();
            let out = TensorMut::new(&mut selected, &[case.rows, ids.len()]).unwrap();
            session.encode_selected(Run::default(), input, Tensor::new(&ids, &[ids.len()]).unwrap(), out).unwrap();
            prop_assert_eq!(session.ignored_indices(), 3);
            for row in 0..case.rows {
                let activations = &activations[row * case.n..][..case.n];
                let pre_activations = &pre_activations[row * case.n..][..case.n];
                let selected = &selected[row * ids.len()..][..ids.len()];
                let Some(token) = oracle::encode(&sae, &x[row * case.d_in..][..case.d_in]) else {
                    prop_assert!(activations.iter().chain(pre_activations).chain(selected).all(|v| v.is_nan()));
                    continue;
                };
                let mut expected = vec![0.0; case.n];
                token.active.iter().for_each(|&(i, z)| expected[i as usize - case.first_latent] = z);
                prop_assert!(same(activations, &expected), "{way}");
                prop_assert!(same(pre_activations, &token.pre_activations), "{way}");
                let wanted: Vec<f32> = ids.iter().map(|&id| {
                    let i = i64::from(id) - case.first_latent as i64;
                    usize::try_from(i).ok().and_then(|i| expected.get(i)).copied().unwrap_or(0.0)
                }).collect();
                prop_assert!(same(selected, &wanted), "{way}: {selected:?} is not {wanted:?}");
            }
        }
    }

    #[test]
    fn steering_is_the_definition(
        case in Case::any().prop_map(Case::whole_if_competing), in_place in any::<bool>(), known_width in 0usize..130,
    ) {
        let mut numbers = case.rng();
        let sae = Arc::new(case.sae(&mut numbers));
        let x = numbers.activations(case.rows * case.d_in);
        let in_place = in_place && case.d_in == case.d_out;
        let y = if in_place { x.clone() } else { numbers.activations(case.rows * case.d_out) };
        let lists = [edits(&case, &mut numbers), edits(&case, &mut numbers)];
        // Slot 2 stays empty; 3 and −7 do not exist.
        let row_slot: Vec<i32> = (0..case.rows).map(|_| [0, 1, 2, 3, -1, -7][numbers.below(6)]).collect();
        let expected: Vec<f32> = (0..case.rows).flat_map(|row| {
            let y = &y[row * case.d_out..][..case.d_out];
            let list = usize::try_from(row_slot[row]).ok().and_then(|slot| lists.get(slot));
            match (list, oracle::encode(&sae, &x[row * case.d_in..][..case.d_in])) {
                (Some(edits), Some(token)) => oracle::steer(&sae, edits, &token.active, &token.state, y),
                _ => y.to_vec(),
            }
        }).collect();
        let ignored = row_slot.iter().filter(|&&s| s == 3 || s == -7).count() as u64;
        for (way, mut session) in ways(&sae, &case) {
            for (slot, edits) in lists.iter().enumerate() {
                session.set_edits(slot, edits).unwrap();
            }
            // Known features may be cut short; what is missing must then be computed.
            let known = encode(&mut session, &x, case.rows, known_width.min(case.n), Order::Index);
            for known in [None, Some(known.view())] {
                let steer = Steer {
                    row_slot: Some(Tensor::new(&row_slot, &[case.rows]).unwrap()),
                    known,
                    y: Some(Tensor::new(&y, &[case.rows, case.d_out]).unwrap()),
                };
                let mut out = vec![7.0; case.rows * case.d_out];
                let shape = [case.rows, case.d_out];
                if in_place && known.is_none() {
                    out.copy_from_slice(&x);
                    let x = TensorMut::new(&mut out, &shape).unwrap();
                    session.steer_in_place(Run::default(), x, steer.row_slot).unwrap();
                } else {
                    let input = Tensor::new(&x, &[case.rows, case.d_in]).unwrap();
                    session.steer(Run::default(), input.into(), steer, TensorMut::new(&mut out, &shape).unwrap()).unwrap();
                }
                prop_assert!(same(&out, &expected), "{way}, known: {}", known.is_some());
            }
            prop_assert_eq!(session.ignored_indices(), 2 * ignored, "{}", way);
        }
    }

    #[test]
    fn shards_merge_to_the_whole(case in Case::any().prop_map(Case::mergeable), width in 0usize..40, cuts in 1usize..4) {
        let mut numbers = case.rng();
        let whole = case.sae(&mut numbers);
        let x = numbers.activations(case.rows * case.d_in);
        let group = case.group();
        let (groups, cuts) = (case.n / group, cuts.min(case.n / group));
        let width = width.min(case.n);
        let parts: Vec<Features> = (0..cuts).map(|i| {
            let (start, end) = (groups * i / cuts * group, groups * (i + 1) / cuts * group);
            let shard = Arc::new(whole.shard(start, end - start).unwrap());
            let options = SessionOptions { max_width: case.n, ..options(&case) };
            encode(&mut Session::new(shard, options).unwrap(), &x, case.rows, width, Order::Index)
        }).collect();
        let whole = Arc::new(whole);
        for (way, mut session) in ways(&whole, &case) {
            let expected = encode(&mut session, &x, case.rows, width, Order::Value);
            let mut found = Features::new(case.rows, width, whole.spec().row_state_width());
            let views: Vec<_> = parts.iter().map(Features::view).collect();
            session.merge(Run::default(), &views, found.view_mut()).unwrap();
            prop_assert_eq!(&found.indices, &expected.indices, "{}", way);
            prop_assert_eq!(&found.values, &expected.values, "{}", way);
            prop_assert_eq!(&found.counts, &expected.counts, "{}", way);
            prop_assert!(same(&found.row_state, &expected.row_state), "{way}");
        }
    }

    #[test]
    fn element_types_strides_and_splits_make_no_difference(
        case in Case::any().prop_map(Case::whole_if_competing), kind in 0u8..3, gap in 0usize..5, layers_first in any::<bool>(),
    ) {
        let mut numbers = case.rng();
        let sae = Arc::new(case.sae(&mut numbers));
        match kind {
            0 => views_agree::<f32>(&case, &sae, &mut numbers, (gap, layers_first), |v| v),
            1 => views_agree::<f16>(&case, &sae, &mut numbers, (gap, layers_first), f16::from_f32),
            _ => views_agree::<bf16>(&case, &sae, &mut numbers, (gap, layers_first), bf16::from_f32),
        }
    }
}

fn edits(case: &Case, numbers: &mut Numbers) -> Vec<Edit> {
    let mut edits: Vec<Edit> = Vec::new();
    for _ in 0..numbers.below(8) {
        let feature = (case.first_latent + numbers.below(case.n)) as i32;
        if edits.iter().all(|edit| edit.feature != feature) {
            let op = [EditOp::Add, EditOp::Set, EditOp::Scale, EditOp::Ablate][numbers.below(4)];
            let limit = if numbers.below(3) == 0 { 0.5 } else { 0.0 };
            edits.push(Edit {
                limit,
                only_active: numbers.below(3) == 0,
                ..Edit::new(feature, op, numbers.unit() * 5.0)
            });
        }
    }
    edits
}

trait Widen: sae::tensor::Element {
    /// The largest finite number.
    const LARGEST: f32;
    fn widen(self) -> f32;
}
impl Widen for f32 {
    const LARGEST: f32 = f32::MAX;

    fn widen(self) -> f32 {
        self
    }
}
impl Widen for f16 {
    const LARGEST: f32 = 65504.0;

    fn widen(self) -> f32 {
        self.to_f32()
    }
}
impl Widen for bf16 {
    const LARGEST: f32 = 3.3895314e38;

    fn widen(self) -> f32 {
        self.to_f32()
    }
}

/// A strided tensor of T plus an addend, in one call, against the f32 sum in calls of a few tokens each.
fn views_agree<T: Widen>(
    case: &Case,
    sae: &Arc<Sae>,
    numbers: &mut Numbers,
    (gap, layers_first): (usize, bool),
    narrow: impl Fn(f32) -> T + Copy,
) {
    let (rows, d) = (case.rows, case.d_in);
    let layout = Layout::new(rows, (case.layers, d), gap, layers_first);
    let out_layout = Layout::new(rows, (case.layers_out(), case.d_out), gap, !layers_first);
    let x: Vec<T> = numbers.activations(layout.size()).into_iter().map(narrow).collect();
    let addend: Vec<T> = numbers.activations(layout.size()).into_iter().map(narrow).collect();
    let mut session = Session::new(Arc::clone(sae), options(case)).unwrap();
    for round_sum in [false, true] {
        let input = Input { x: layout.view(&x), addend: Some(layout.view(&addend)), round_sum };
        let mut at_once = Features::new(rows, case.n, sae.spec().row_state_width());
        session.encode(Run::default(), input, at_once.view_mut()).unwrap();
        let sum: Vec<f32> = std::iter::zip(layout.rows(&x), layout.rows(&addend))
            .map(|(x, addend)| {
                let sum = x.widen() + addend.widen();
                if round_sum { narrow(sum).widen() } else { sum }
            })
            .collect();
        let mut row = 0;
        while row < rows {
            let count = (1 + numbers.below(7)).min(rows - row);
            let part = encode(&mut session, &sum[row * d..(row + count) * d], count, case.n, Order::Value);
            let slots = row * case.n..(row + count) * case.n;
            assert_eq!(part.indices, at_once.indices[slots.clone()]);
            assert_eq!(part.values, at_once.values[slots]);
            assert_eq!(part.counts, at_once.counts[row..row + count]);
            row += count;
        }
        // Narrow outputs are the f32 ones, rounded once; values stay finite.
        let mut narrow_values = vec![narrow(7.0); rows * case.n];
        let mut rest = at_once.clone();
        let mut out = rest.view_mut();
        out.values = TensorMut::new(&mut narrow_values, &[rows, case.n]).unwrap();
        session.encode(Run::default(), input, out).unwrap();
        assert_eq!(rest.indices, at_once.indices);
        let expected: Vec<f32> =
            at_once.values.iter().map(|&v| narrow(v).widen().clamp(-T::LARGEST, T::LARGEST)).collect();
        assert!(narrow_values.into_iter().map(T::widen).collect::<Vec<_>>() == expected);
        narrow_outputs_agree(case, &mut session, (input, &sum), out_layout, numbers, narrow);
    }
}

/// Reconstruction and steering of x + addend into narrow outputs are those of the f32 sum, rounded once.
fn narrow_outputs_agree<T: Widen>(
    case: &Case,
    session: &mut Session,
    (input, sum): (Input<'_>, &[f32]),
    layout: Layout,
    numbers: &mut Numbers,
    narrow: impl Fn(f32) -> T + Copy,
) {
    let (rows, shape) = (case.rows, [case.rows, case.d_out]);
    let sum = Tensor::new(sum, &[rows, case.d_in]).unwrap();
    let rounded = |wide: &[f32]| wide.iter().map(|&v| narrow(v).widen()).collect::<Vec<_>>();
    let mut wide = vec![7.0; rows * case.d_out];
    let mut narrowed = vec![narrow(7.0); layout.size()];
    session.reconstruct(Run::default(), sum.into(), None, TensorMut::new(&mut wide, &shape).unwrap()).unwrap();
    session.reconstruct(Run::default(), input, None, layout.view_mut(&mut narrowed)).unwrap();
    let widened: Vec<f32> = layout.rows(&narrowed).map(T::widen).collect();
    assert!(same(&widened, &rounded(&wide)));

    session.set_edits(0, &edits(case, numbers)).unwrap();
    let y: Vec<T> = numbers.activations(layout.size()).into_iter().map(narrow).collect();
    let y_wide: Vec<f32> = layout.rows(&y).map(T::widen).collect();
    let steer = |y| Steer { y: Some(y), ..Steer::default() };
    let out = TensorMut::new(&mut wide, &shape).unwrap();
    session.steer(Run::default(), sum.into(), steer(Tensor::new(&y_wide, &shape).unwrap()), out).unwrap();
    session.steer(Run::default(), input, steer(layout.view(&y)), layout.view_mut(&mut narrowed)).unwrap();
    let widened: Vec<f32> = layout.rows(&narrowed).map(T::widen).collect();
    assert!(same(&widened, &rounded(&wide)));
}

/// A small SAE of each architecture for examples.
fn example(architecture: u8, n: usize) -> Case {
    Case {
        seed: 2,
        d_in: 6,
        d_out: 6,
        n,
        rows: 40,
        architecture,
        k: 3,
        normalization: 1,
        center: false,
        layers: 1,
        subtract: true,
        rescale: false,
        select: false,
        glu: false,
        skip: false,
        weights: 0,
        first_latent: 0,
        values: 0,
    }
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
    let memory = Session::memory(&sae, &host_options).unwrap();
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
