//! What sessions must do, whatever computes: the definition, bit for bit.

use std::sync::Arc;

use half::{bf16, f16};
use proptest::prelude::*;
use sae::backend::{Input, Order, Run, Wanted};
use sae::features::Features;
use sae::sae::Sae;
use sae::session::{Session, SessionOptions, Steer};
use sae::steering::{Edit, EditOp};
use sae::tensor::{Tensor, TensorMut};

use super::cases::{Case, Numbers};
use super::layout::Layout;
use super::oracle;
use super::placed::Place;

/// Every way to compute that must not make a difference, with its name.
pub type Ways<'a> = &'a dyn Fn(&Arc<Sae>, &Case) -> Vec<(String, Session)>;

pub fn options(case: &Case) -> SessionOptions {
    SessionOptions {
        max_tokens: case.rows.max(1),
        max_width: case.n,
        slots: 3,
        edits_per_slot: 8,
        ..SessionOptions::default()
    }
}

/// Encoding, decoding, and both at once.
pub fn encode_and_decode(case: &Case, width: usize, ways: Ways<'_>) -> Result<(), TestCaseError> {
    let mut numbers = case.rng();
    let sae = Arc::new(case.sae(&mut numbers));
    let x = numbers.activations(case.rows * case.d_in);
    let width = width.min(case.n);
    for (way, mut session) in ways(&sae, case) {
        let place = Place::of(&session);
        let found = encode(&mut session, &x, case.rows, width, Order::Value);
        let by_index = encode(&mut session, &x, case.rows, width, Order::Index);
        let all = encode(&mut session, &x, case.rows, case.n, Order::Value);
        let mut x_hat = vec![7.0; case.rows * case.d_out];
        let raw = place.read(Tensor::new(&x, &[case.rows, case.d_in]).unwrap());
        let shape = [case.rows, case.d_out];
        let out = place.write(TensorMut::new(&mut x_hat, &shape).unwrap());
        session.decode(Run::default(), place.features(all.view()), Some(raw), out).unwrap();
        let mut at_once = vec![7.0; case.rows * case.d_out];
        let mut shown = Features::new(case.rows, width, sae.spec().row_state_width());
        session
            .reconstruct(
                Run { order: Order::Index, ..Run::default() },
                raw.into(),
                Some(place.features_mut(shown.view_mut())),
                place.write(TensorMut::new(&mut at_once, &shape).unwrap()),
            )
            .unwrap();
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
    Ok(())
}

/// All activations, pre-activations, and chosen ones.
pub fn dense_and_selected(case: &Case, ways: Ways<'_>) -> Result<(), TestCaseError> {
    let mut numbers = case.rng();
    let sae = Arc::new(case.sae(&mut numbers));
    let x = numbers.activations(case.rows * case.d_in);
    let first = case.first_latent as i32;
    // Twice the same, one below, one above the range.
    let ids = [first, first + numbers.below(case.n) as i32, first, first - 1, first + case.n as i32, i32::MIN];
    for (way, mut session) in ways(&sae, case) {
        let place = Place::of(&session);
        let input = Input::from(place.read(Tensor::new(&x, &[case.rows, case.d_in]).unwrap()));
        let mut activations = vec![7.0; case.rows * case.n];
        let mut pre_activations = activations.clone();
        let mut selected = vec![7.0; case.rows * ids.len()];
        let shape = [case.rows, case.n];
        let z = place.write(TensorMut::new(&mut activations, &shape).unwrap());
        session.encode_dense(Run::default(), input, Wanted::Activations, z).unwrap();
        let z = place.write(TensorMut::new(&mut pre_activations, &shape).unwrap());
        session.encode_dense(Run::default(), input, Wanted::PreActivations, z).unwrap();
        let out = place.write(TensorMut::new(&mut selected, &[case.rows, ids.len()]).unwrap());
        let listed = place.read(Tensor::new(&ids, &[ids.len()]).unwrap());
        session.encode_selected(Run::default(), input, listed, out).unwrap();
        prop_assert_eq!(session.ignored_indices(), if case.rows > 0 { 3 } else { 0 });
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
            let wanted: Vec<f32> = ids
                .iter()
                .map(|&id| {
                    let i = i64::from(id) - case.first_latent as i64;
                    usize::try_from(i).ok().and_then(|i| expected.get(i)).copied().unwrap_or(0.0)
                })
                .collect();
            prop_assert!(same(selected, &wanted), "{way}: {selected:?} is not {wanted:?}");
        }
    }
    Ok(())
}

/// Steering, in place or not, with features known or not.
pub fn steering(case: &Case, in_place: bool, known_width: usize, ways: Ways<'_>) -> Result<(), TestCaseError> {
    let mut numbers = case.rng();
    let sae = Arc::new(case.sae(&mut numbers));
    let x = numbers.activations(case.rows * case.d_in);
    let in_place = in_place && case.d_in == case.d_out;
    let y = if in_place { x.clone() } else { numbers.activations(case.rows * case.d_out) };
    let lists = [edits(case, &mut numbers), edits(case, &mut numbers)];
    // Slot 2 stays empty; 3 and −7 do not exist.
    let row_slot: Vec<i32> = (0..case.rows).map(|_| [0, 1, 2, 3, -1, -7][numbers.below(6)]).collect();
    let expected: Vec<f32> = (0..case.rows)
        .flat_map(|row| {
            let y = &y[row * case.d_out..][..case.d_out];
            let list = usize::try_from(row_slot[row]).ok().and_then(|slot| lists.get(slot));
            match (list, oracle::encode(&sae, &x[row * case.d_in..][..case.d_in])) {
                (Some(edits), Some(token)) => oracle::steer(&sae, edits, &token.active, &token.state, y),
                _ => y.to_vec(),
            }
        })
        .collect();
    let ignored = row_slot.iter().filter(|&&s| s == 3 || s == -7).count() as u64;
    for (way, mut session) in ways(&sae, case) {
        let place = Place::of(&session);
        for (slot, edits) in lists.iter().enumerate() {
            session.set_edits(slot, edits).unwrap();
        }
        // Known features may be cut short; what is missing must then be computed.
        let known = encode(&mut session, &x, case.rows, known_width.min(case.n), Order::Index);
        for known in [None, Some(place.features(known.view()))] {
            let steer = Steer {
                row_slot: Some(place.read(Tensor::new(&row_slot, &[case.rows]).unwrap())),
                known,
                y: Some(place.read(Tensor::new(&y, &[case.rows, case.d_out]).unwrap())),
            };
            let mut out = vec![7.0; case.rows * case.d_out];
            let shape = [case.rows, case.d_out];
            if in_place && known.is_none() {
                out.copy_from_slice(&x);
                let x = place.write(TensorMut::new(&mut out, &shape).unwrap());
                session.steer_in_place(Run::default(), x, steer.row_slot).unwrap();
            } else {
                let input = place.read(Tensor::new(&x, &[case.rows, case.d_in]).unwrap());
                let out = place.write(TensorMut::new(&mut out, &shape).unwrap());
                session.steer(Run::default(), input.into(), steer, out).unwrap();
            }
            prop_assert!(same(&out, &expected), "{way}, known: {}", known.is_some());
        }
        prop_assert_eq!(session.ignored_indices(), 2 * ignored, "{}", way);
    }
    Ok(())
}

/// Shards merge to the whole.
pub fn merging(case: &Case, width: usize, cuts: usize, ways: Ways<'_>) -> Result<(), TestCaseError> {
    let mut numbers = case.rng();
    let whole = case.sae(&mut numbers);
    let x = numbers.activations(case.rows * case.d_in);
    let group = case.group();
    let (groups, cuts) = (case.n / group, cuts.min(case.n / group));
    let width = width.min(case.n);
    let parts: Vec<Features> = (0..cuts)
        .map(|i| {
            let (start, end) = (groups * i / cuts * group, groups * (i + 1) / cuts * group);
            let shard = Arc::new(whole.shard(start, end - start).unwrap());
            let options = SessionOptions { max_width: case.n, ..options(case) };
            encode(&mut Session::new(shard, options).unwrap(), &x, case.rows, width, Order::Index)
        })
        .collect();
    let whole = Arc::new(whole);
    for (way, mut session) in ways(&whole, case) {
        let place = Place::of(&session);
        let expected = encode(&mut session, &x, case.rows, width, Order::Value);
        let mut found = Features::new(case.rows, width, whole.spec().row_state_width());
        let views: Vec<_> = parts.iter().map(|part| place.features(part.view())).collect();
        session.merge(Run::default(), &views, place.features_mut(found.view_mut())).unwrap();
        prop_assert_eq!(&found.indices, &expected.indices, "{}", way);
        prop_assert_eq!(&found.values, &expected.values, "{}", way);
        prop_assert_eq!(&found.counts, &expected.counts, "{}", way);
        prop_assert!(same(&found.row_state, &expected.row_state), "{way}");
    }
    Ok(())
}

/// Element types, strides and splits make no difference.
pub fn views(case: &Case, kind: u8, (gap, layers_first): (usize, bool), ways: Ways<'_>) {
    for (_, mut session) in ways(&Arc::new(case.sae(&mut case.rng())), case) {
        let mut numbers = case.rng();
        let sae = Arc::new(case.sae(&mut numbers));
        let session = &mut session;
        match kind {
            0 => views_agree::<f32>(case, &sae, session, &mut numbers, (gap, layers_first), |v| v),
            1 => views_agree::<f16>(case, &sae, session, &mut numbers, (gap, layers_first), f16::from_f32),
            _ => views_agree::<bf16>(case, &sae, session, &mut numbers, (gap, layers_first), bf16::from_f32),
        }
    }
}

pub fn same(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()))
}

pub fn encode(session: &mut Session, x: &[f32], rows: usize, width: usize, order: Order) -> Features {
    let spec = session.sae().spec();
    let mut out = Features::new(rows, width, spec.row_state_width());
    out.indices.fill(77);
    out.values.fill(77.0);
    let place = Place::of(session);
    let x = place.read(Tensor::new(x, &[rows, spec.d_in]).unwrap());
    session.encode(Run { order, ..Run::default() }, x.into(), place.features_mut(out.view_mut())).unwrap();
    out
}

pub fn edits(case: &Case, numbers: &mut Numbers) -> Vec<Edit> {
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
    session: &mut Session,
    numbers: &mut Numbers,
    (gap, layers_first): (usize, bool),
    narrow: impl Fn(f32) -> T + Copy,
) {
    let (rows, d) = (case.rows, case.d_in);
    let layout = Layout::new(rows, (case.layers, d), gap, layers_first);
    let out_layout = Layout::new(rows, (case.layers_out(), case.d_out), gap, !layers_first);
    let x: Vec<T> = numbers.activations(layout.size()).into_iter().map(narrow).collect();
    let addend: Vec<T> = numbers.activations(layout.size()).into_iter().map(narrow).collect();
    let place = Place::of(session);
    for round_sum in [false, true] {
        let input = place.input(Input { x: layout.view(&x), addend: Some(layout.view(&addend)), round_sum });
        let mut at_once = Features::new(rows, case.n, sae.spec().row_state_width());
        session.encode(Run::default(), input, place.features_mut(at_once.view_mut())).unwrap();
        let sum: Vec<f32> = std::iter::zip(layout.rows(&x), layout.rows(&addend))
            .map(|(x, addend)| {
                let sum = x.widen() + addend.widen();
                if round_sum { narrow(sum).widen() } else { sum }
            })
            .collect();
        let mut row = 0;
        while row < rows {
            let count = (1 + numbers.below(7)).min(rows - row);
            let part = encode(session, &sum[row * d..(row + count) * d], count, case.n, Order::Value);
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
        session.encode(Run::default(), input, place.features_mut(out)).unwrap();
        assert_eq!(rest.indices, at_once.indices);
        let expected: Vec<f32> =
            at_once.values.iter().map(|&v| narrow(v).widen().clamp(-T::LARGEST, T::LARGEST)).collect();
        assert!(narrow_values.into_iter().map(T::widen).collect::<Vec<_>>() == expected);
        narrow_outputs_agree(case, session, (input, &sum), out_layout, numbers, narrow);
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
    let place = Place::of(session);
    let sum = place.read(Tensor::new(sum, &[rows, case.d_in]).unwrap());
    let rounded = |wide: &[f32]| wide.iter().map(|&v| narrow(v).widen()).collect::<Vec<_>>();
    let mut wide = vec![7.0; rows * case.d_out];
    let mut narrowed = vec![narrow(7.0); layout.size()];
    let out = place.write(TensorMut::new(&mut wide, &shape).unwrap());
    session.reconstruct(Run::default(), sum.into(), None, out).unwrap();
    session.reconstruct(Run::default(), input, None, place.write(layout.view_mut(&mut narrowed))).unwrap();
    let widened: Vec<f32> = layout.rows(&narrowed).map(T::widen).collect();
    assert!(same(&widened, &rounded(&wide)));

    session.set_edits(0, &edits(case, numbers)).unwrap();
    let y: Vec<T> = numbers.activations(layout.size()).into_iter().map(narrow).collect();
    let y_wide: Vec<f32> = layout.rows(&y).map(T::widen).collect();
    let steer = |y| Steer { y: Some(place.read(y)), ..Steer::default() };
    let out = place.write(TensorMut::new(&mut wide, &shape).unwrap());
    session.steer(Run::default(), sum.into(), steer(Tensor::new(&y_wide, &shape).unwrap()), out).unwrap();
    let out = place.write(layout.view_mut(&mut narrowed));
    session.steer(Run::default(), input, steer(layout.view(&y)), out).unwrap();
    let widened: Vec<f32> = layout.rows(&narrowed).map(T::widen).collect();
    assert!(same(&widened, &rounded(&wide)));
}
