//! Scores that are tensor cores' products: near the canonical ones, the same whatever the order and the split, and selected from
//! exactly.

use std::sync::Arc;

use proptest::prelude::*;
use sae::backend::cuda::CudaModel;
use sae::backend::cuda::params::Kernel;
use sae::backend::{Run, Screen, Wanted};
use sae::features::Features;
use sae::sae::{Architecture, Matrix, Sae, Spec, Weights};
use sae::session::{Session, SessionOptions};
use sae::tensor::{DType, Tensor, TensorMut};

use crate::common::cases::Case;
use crate::common::definition::{options, same};
use crate::common::placed::Place;
use crate::launches::{HOT_CALLS, sae, session};
use crate::recorder::Recorder;
use crate::stand_in::StandInDriver;

fn run(fast: bool) -> Run<'static> {
    Run { fast, ..Run::default() }
}

fn dense(session: &mut Session, run: Run<'_>, x: &[f32], what: Wanted) -> Vec<f32> {
    let spec = session.sae().spec();
    let (rows, n, d) = (x.len() / spec.d_in, spec.n_latents, spec.d_in);
    let place = Place::of(session);
    let mut z = vec![7.0; rows * n];
    let out = place.write(TensorMut::new(&mut z, &[rows, n]).unwrap());
    session.encode_dense(run, place.read(Tensor::new(x, &[rows, d]).unwrap()).into(), what, out).unwrap();
    z
}

fn encode(session: &mut Session, run: Run<'_>, x: &[f32], width: usize) -> Features {
    let spec = session.sae().spec();
    let (rows, d) = (x.len() / spec.d_in, spec.d_in);
    let mut out = Features::new(rows, width, spec.row_state_width());
    let place = Place::of(session);
    let x = place.read(Tensor::new(x, &[rows, d]).unwrap());
    session.encode(run, x.into(), place.features_mut(out.view_mut())).unwrap();
    out
}

/// What must be found by selecting from scores of all latents: those of candidates, or pre-activations where latents compete.
fn selected(spec: &Spec, scores: &[f32], width: usize) -> (Vec<(i32, f32)>, i32) {
    let signed = matches!(spec.architecture, Architecture::AbsTopK { .. });
    let mut found: Vec<(i32, f32)> =
        (0..).zip(scores).filter(|(_, v)| if signed { **v != 0.0 } else { **v > 0.0 }).map(|(i, v)| (i, *v)).collect();
    found.sort_by(|a, b| b.1.abs().total_cmp(&a.1.abs()).then(a.0.cmp(&b.0)));
    found.truncate(spec.architecture.k().unwrap_or(usize::MAX));
    let count = found.len() as i32;
    found.truncate(width);
    found.iter_mut().for_each(|(i, _)| *i += spec.first_latent as i32);
    (found, count)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn the_largest_are_found_exactly_and_repeatably(
        case in Case::any(), values in prop::sample::select(vec![0u8, 1, 3, 5]), width in 1usize..40,
    ) {
        let case = Case { values, ..case };
        let mut numbers = case.rng();
        let sae = Arc::new(case.sae(&mut numbers));
        let spec = sae.spec();
        let x = numbers.activations(case.rows * case.d_in);
        let mut sessions = [1, 2].map(|salt| {
            let model = CudaModel::on(Arc::clone(&sae), StandInDriver::new(case.seed.wrapping_mul(2).wrapping_add(salt))).unwrap();
            Session::new(model, SessionOptions { screen: Screen::Always, max_width: 40, ..options(&case) }).unwrap()
        });
        let found = encode(&mut sessions[0], run(true), &x, width);
        // In other orders, and token by token.
        for (row, x) in x.chunks(case.d_in).enumerate() {
            let again = encode(&mut sessions[1], run(true), x, width);
            prop_assert_eq!(&again.indices[..], &found.indices[row * width..][..width]);
            prop_assert!(same(&again.values, &found.values[row * width..][..width]));
        }
        if case.glu || case.group() > 1 || (spec.select_by_decoder_norm && spec.architecture.k().is_some()) {
            // These are always scored exactly.
            let exact = encode(&mut sessions[0], run(false), &x, width);
            let is_same = found.indices == exact.indices && same(&found.values, &exact.values);
            prop_assert!(is_same && found.counts == exact.counts, "{found:?} is not {exact:?}");
            return Ok(());
        }
        let competes = spec.architecture.k().is_some();
        let what = if competes { Wanted::PreActivations } else { Wanted::Activations };
        let scores = dense(&mut sessions[0], run(true), &x, what);
        for row in 0..case.rows {
            let scores = &scores[row * case.n..][..case.n];
            if scores.iter().any(|v| v.is_nan()) {
                prop_assert!(found.counts[row] == -1 && scores.iter().all(|v| v.is_nan()));
                continue;
            }
            let (expected, count) = selected(spec, scores, width);
            prop_assert_eq!(found.counts[row], count);
            let row: Vec<(i32, f32)> = found.row(row).collect();
            prop_assert_eq!(row, expected);
        }
    }

    #[test]
    fn scores_are_near_the_canonical_ones(case in Case::any(), values in prop::sample::select(vec![0u8, 3])) {
        let case = Case { values, glu: false, normalization: 0, center: false, layers: 1, ..case };
        let case = Case { architecture: if case.architecture == 4 { 0 } else { case.architecture }, ..case };
        let mut numbers = case.rng();
        let sae = Arc::new(case.sae(&mut numbers));
        let x = numbers.activations(case.rows * case.d_in);
        let model = CudaModel::on(Arc::clone(&sae), StandInDriver::new(case.seed | 1)).unwrap();
        let mut session = Session::new(model, SessionOptions { screen: Screen::Always, ..options(&case) }).unwrap();
        let fast = dense(&mut session, run(true), &x, Wanted::PreActivations);
        let exact = dense(&mut session, run(false), &x, Wanted::PreActivations);
        let norm = |v: &[f32]| v.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
        let b_dec = if case.subtract { norm(&sae.weights().b_dec) } else { 0.0 };
        let mut scratch = vec![0.0; case.d_in];
        for (at, (fast, exact)) in fast.iter().zip(&exact).enumerate() {
            prop_assert_eq!(fast.is_nan(), exact.is_nan());
            if fast.is_nan() {
                continue;
            }
            let (row, i) = (at / case.n, at % case.n);
            // Both factors lose less than 2^-8 of themselves, and all else much less.
            let w = norm(sae.weights().w_enc.row_f32(i, &mut scratch));
            let mut room = w * (norm(&x[row * case.d_in..][..case.d_in]) + b_dec) / 100.0 + 1e-5 * f64::from(exact.abs());
            room *= sae.decoder_norms().filter(|_| case.rescale).map_or(1.0, |norms| f64::from(norms[i]).max(1.0));
            room *= sae.magnitude_gains().get(i).map_or(1.0, |gain| f64::from(*gain).max(1.0));
            prop_assert!(f64::from((fast - exact).abs()) <= room + 1e-5, "{fast} for {exact} within {room}");
        }
    }
}

/// Numbers that bf16 holds, whose sums f32 holds: there is nothing to round, so the two ways must agree to the bit, with edges of tiles
/// in every place.
#[test]
fn where_nothing_is_rounded_the_scores_are_the_canonical_ones() {
    for (d, n, rows) in [(1, 1, 1), (8, 127, 128), (31, 128, 127), (33, 129, 129), (96, 300, 257), (130, 5, 3)] {
        let mut numbers = crate::common::cases::numbers(d as u64);
        let mut whole = |len: usize, most: usize| -> Vec<f32> {
            (0..len).map(|_| numbers.below(2 * most + 1) as f32 - most as f32).collect()
        };
        let w = whole(n * d, 3);
        let matrix = Matrix::from_f32(&w, n, d).unwrap();
        let mut weights = Weights::new(matrix.clone(), whole(n, 9), matrix, vec![0.0; d]);
        weights.threshold = Some(whole(n, 9).iter().map(|v| v.abs()).collect());
        let sae = Arc::new(Sae::new(Spec::new(Architecture::JumpRelu, d, n), weights).unwrap());
        let model = CudaModel::on(Arc::clone(&sae), StandInDriver::new(9)).unwrap();
        let options = SessionOptions { max_tokens: rows, max_width: n, screen: Screen::Always, ..Default::default() };
        let mut session = Session::new(model, options).unwrap();
        let x = whole(rows * d, 20);
        for what in [Wanted::PreActivations, Wanted::Activations] {
            let [fast, exact] = [true, false].map(|fast| dense(&mut session, run(fast), &x, what));
            assert!(same(&fast, &exact), "{d}, {n}, {rows}, {what:?}");
        }
        let [fast, exact] = [true, false].map(|fast| encode(&mut session, run(fast), &x, n));
        assert!(fast == exact, "{d}, {n}, {rows}");
    }
}

/// Scores that are too close for bf16, of more latents than may wait: such a token's features are its exact ones. Another's, whose
/// scores differ, are found by products as ever.
#[test]
fn tokens_whose_lists_overflow_are_scored_exactly() {
    let (d, n, k) = (16, 6000, 5);
    let mut numbers = crate::common::cases::numbers(3);
    let mut w: Vec<f32> = (0..n * d).map(|_| numbers.unit()).collect();
    for (i, row) in w.chunks_mut(d).enumerate() {
        row[0] = 1.0 + (i * 7919 % n) as f32 / (1 << 20) as f32;
    }
    let matrix = Matrix::from_f32(&w, n, d).unwrap();
    let weights = Weights::new(matrix.clone(), vec![0.0; n], matrix, vec![0.0; d]);
    let sae = Arc::new(Sae::new(Spec::new(Architecture::TopK { k }, d, n), weights).unwrap());
    let model = CudaModel::on(sae, StandInDriver::new(9)).unwrap();
    // With so many tokens, few latents may wait of each.
    let rows = 130;
    let options = SessionOptions { max_tokens: rows, max_width: k, screen: Screen::Always, ..Default::default() };
    let mut session = Session::new(model, options).unwrap();
    let overflows = |row: usize| row.is_multiple_of(13);
    let mut x: Vec<f32> = (0..rows * d).map(|_| numbers.unit()).collect();
    for (_, x) in x.chunks_mut(d).enumerate().filter(|(row, _)| overflows(*row)) {
        x.fill(0.0);
        x[0] = 1.5;
    }
    let [fast, exact] = [true, false].map(|fast| encode(&mut session, run(fast), &x, k));
    let products = dense(&mut session, run(true), &x, Wanted::PreActivations);
    for row in 0..rows {
        let found: Vec<_> = fast.row(row).collect();
        let products = &products[row * n..][..n];
        let by_product = selected(session.sae().spec(), products, k).0;
        let told_apart: std::collections::HashSet<u32> = products.iter().map(|v| v.to_bits()).collect();
        assert_eq!(told_apart.len() < 10, overflows(row));
        assert_eq!(found == exact.row(row).collect::<Vec<_>>(), overflows(row), "row {row}: {found:?}");
        assert_eq!(found == by_product, !overflows(row), "row {row}: {found:?}");
        assert_eq!(fast.counts[row], k as i32);
    }
}

#[test]
fn fast_calls_take_no_exact_scores_but_for_lists_that_overflow() {
    let recorder = Recorder::new();
    let options = SessionOptions { max_tokens: 600, max_width: 8, ..SessionOptions::default() };
    let mut session = session(&recorder, &sae(Architecture::TopK { k: 8 }, false, DType::F32), options);
    let kernels = |session: &mut Session, call: usize| {
        HOT_CALLS[call].1(session, run(true), 600).unwrap();
        recorder.launches().iter().map(|launch| launch.kernel).collect::<Vec<_>>()
    };
    use Kernel::{Exact, Fast, Prepare, Product, Select, Tighten};
    assert_eq!(kernels(&mut session, 0), [Prepare, Fast, Tighten, Fast, Tighten, Exact, Select]);
    assert_eq!(kernels(&mut session, 3), [Prepare, Product]);
}
