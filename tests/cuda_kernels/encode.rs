//! Encoding, by scores of all latents and by bounds first.

use proptest::prelude::*;
use sae::backend::cuda::params::order;
use sae::sae::{Architecture, Matrix, Sae, Spec, Weights};
use sae::tensor::DType;

use crate::common::cases::{Case, Numbers};
use crate::common::oracle;
use crate::config;
use crate::rig::{FeatureMemory, Memory, Rig, Route};

/// The same number, or both none.
pub fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())
}

pub const TYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

/// A token's features as they must be listed in `width` slots.
fn listed(active: &[(i32, f32)], width: usize, by_index: bool) -> Vec<(i32, f32)> {
    let mut shown = active[..active.len().min(width)].to_vec();
    if by_index {
        shown.sort_by_key(|(i, _)| *i);
    }
    shown
}

fn clamped(v: f32, dtype: DType) -> f32 {
    let mut memory = Memory::plain(dtype, 1, 1);
    let most = match dtype {
        DType::F16 => 65504.0,
        DType::BF16 => half::bf16::MAX.to_f32(),
        _ => f32::MAX,
    };
    memory.fill(&[v.clamp(-most, most)])[0]
}

/// What the encoder sees: x, a sum of two, or one that was rounded.
pub fn oracle_tokens(sae: &Sae, x: &[f32], rows: usize) -> Vec<Option<oracle::Token>> {
    let d = sae.spec().d_in;
    (0..rows).map(|t| oracle::encode(sae, &x[t * d..(t + 1) * d])).collect()
}

/// Encodes and holds everything to the oracle.
#[allow(clippy::too_many_arguments)]
fn check(
    sae: Sae,
    numbers: &mut Numbers,
    rows: usize,
    kinds: (usize, usize),
    route: Route,
    width: usize,
    by_index: bool,
    seed: u64,
) {
    let spec = sae.spec().clone();
    let (d, layers) = (spec.d_in, spec.layers_in);
    let (x_type, value_type) = (TYPES[kinds.0], TYPES[kinds.1]);
    let mut x = Memory::new(x_type, rows, (layers, d), numbers.below(4), numbers.below(2) == 1);
    let mut seen = x.fill(&numbers.activations(rows * d));
    let mut addend = Memory::new(TYPES[numbers.below(3)], rows, (layers, d), numbers.below(3), false);
    let round = numbers.below(2) == 1;
    let with_addend = numbers.below(2) == 1;
    if with_addend {
        let more = addend.fill(&numbers.activations(rows * d));
        seen.iter_mut().zip(more).for_each(|(x, a)| *x += a);
        if round {
            seen = Memory::plain(x_type, rows, d).fill(&seen);
        }
    }
    let expected = oracle_tokens(&sae, &seen, rows);

    let mut rig = Rig::new(sae, seed);
    let screened = matches!(route, Route::Screen { .. });
    let mut prepared = rig.prepare(x.vectors(), with_addend.then(|| (addend.vectors(), round)), rows, None, screened);
    let gathered = rig.gathered(width);
    let out = FeatureMemory::new(value_type, rows, width, spec.row_state_width());
    let order = if by_index { order::BY_INDEX } else { order::BY_VALUE };
    let (kept, stride) = rig.encode(&mut prepared, route, gathered, order, Some(&out));

    let values = out.values.values();
    for (t, token) in expected.iter().enumerate() {
        let (values, indices) = (&values[t * width..][..width], &out.indices[t * width..][..width]);
        let state = &out.row_state[t * out.state_width..][..out.state_width];
        let active = token.as_ref().map_or(&[][..], |token| &token.active);
        assert_eq!(out.counts[t], token.as_ref().map_or(-1, |token| token.active.len() as i32), "count of token {t}");
        let shown = listed(active, width, by_index);
        for slot in 0..width {
            let (index, value) = shown.get(slot).map_or((-1, 0.0), |&(i, v)| (i, clamped(v, value_type)));
            assert_eq!(
                (indices[slot], values[slot].to_bits()),
                (index, value.to_bits()),
                "token {t}, slot {slot} of {shown:?}, found {indices:?} {values:?}"
            );
        }
        for (i, &s) in state.iter().enumerate() {
            assert!(same(s, token.as_ref().map_or(f32::NAN, |token| token.state[i])), "state of token {t}");
        }
        let kept = &kept[t * stride..][..stride];
        for (e, &key) in kept.iter().enumerate() {
            let expected = active.get(e).filter(|_| e < gathered).map_or(0, |&(index, value)| {
                let low = ((i32::MAX - index) as u64) << 1 | u64::from(value.is_sign_negative());
                u64::from(value.abs().to_bits()) << 32 | low
            });
            assert_eq!(key, expected, "kept key {e} of token {t}");
        }
    }
}

/// A case as large as tiles, whose rows may be read four numbers at a time.
fn sized(case: &Case, d: usize, n: usize, rows: usize) -> Case {
    let case = Case { d_in: d * case.layers, d_out: d * case.layers, n, rows, ..case.clone() };
    if case.architecture == 4 {
        let k = case.k.min(n);
        return Case { n: n / k * k, k, first_latent: case.first_latent / (n / k) * (n / k), ..case };
    }
    case
}

pub fn larger() -> impl Strategy<Value = Case> {
    (Case::any(), 1usize..80, 1usize..600, 1usize..150, any::<bool>())
        .prop_map(|(case, d, n, rows, fours)| sized(&case, if fours { 4 * d.div_ceil(4) } else { d }, n, rows))
}

proptest! {
    #![proptest_config(config(60))]

    #[test]
    fn all_scores_first(case in larger(), width in 0usize..40, kinds in (0usize..3, 0usize..3), by_index: bool, seed in 0u64..4) {
        let mut numbers = case.rng();
        let sae = case.sae(&mut numbers);
        check(sae, &mut numbers, case.rows, kinds, Route::Dense, width, by_index, seed);
    }

    #[test]
    fn bounds_first(
        case in larger(), width in 0usize..40, kinds in (0usize..3, 0usize..3), by_index: bool, seed in 0u64..4,
        room in 0usize..600, first in 1usize..300,
    ) {
        prop_assume!(case.architecture != 4 && !case.glu);
        let mut numbers = case.rng();
        let sae = case.sae(&mut numbers);
        let capacity = case.k.max(width) + 1024 + room;
        check(sae, &mut numbers, case.rows, kinds, Route::Screen { capacity, first }, width, by_index, seed);
    }
}

/// More winners than a block keeps on its chip; features cut short, by value and by index.
#[test]
fn many_winners() {
    for (architecture, select, values) in [(0, false, 0), (3, false, 1), (0, true, 0), (1, false, 1)] {
        let case = Case { architecture, select, values, ..Case::plain(20, 3000, 3, 1500) };
        for (route, width, by_index) in [
            (Route::Dense, 2000, false),
            (Route::Dense, 1200, true),
            (Route::Screen { capacity: 3100, first: 700 }, 1500, true),
            (Route::Screen { capacity: 3100, first: 3000 }, 40, false),
        ] {
            let mut numbers = case.rng();
            let sae = case.sae(&mut numbers);
            check(sae, &mut numbers, case.rows, (0, 0), route, width, by_index, 3);
        }
    }
}

/// More latents than one block winnows.
#[test]
fn many_latents() {
    for (architecture, rows, seed) in [(0, 2, 1), (1, 1, 1), (0, 1, 2)] {
        let case = Case { architecture, ..Case::plain(8, 9000, rows, 50) };
        let mut numbers = case.rng();
        let sae = case.sae(&mut numbers);
        check(sae, &mut numbers, rows, (0, 0), Route::Dense, 70, false, seed);
    }
}

/// Lists that cannot hold what waits: some tokens', or all, of which many are ties.
#[test]
fn lists_overflow() {
    for (architecture, values) in [(0, 0), (0, 1), (0, 2), (0, 4), (0, 5), (3, 1), (2, 0), (5, 2)] {
        let case = Case { architecture, values, ..Case::plain(24, 4000, 7, 4) };
        let mut numbers = case.rng();
        let sae = case.sae(&mut numbers);
        check(sae, &mut numbers, case.rows, (0, 0), Route::Screen { capacity: 1100, first: 4000 }, 30, false, 2);
    }
    let case = Case::plain(24, 4000, 7, 4);
    let mut numbers = case.rng();
    let mut rig = Rig::new(case.sae(&mut numbers), 1);
    let mut x = Memory::plain(DType::F32, 7, 24);
    x.fill(&numbers.activations(7 * 24));
    let mut prepared = rig.prepare(x.vectors(), None, 7, None, true);
    rig.encode(&mut prepared, Route::Screen { capacity: 1100, first: 4000 }, 4, order::BY_VALUE, None);
    assert_eq!(prepared.overflowed[0], 7);
}

/// Scores that differ by less than bounds can tell: rows that are one row, but for the last bit of some numbers.
#[test]
fn scores_closer_than_bounds() {
    for weights in [DType::F32, DType::BF16] {
        let (d, n, rows, k) = (200, 700, 20, 9);
        let case = Case::plain(d, n, rows, k);
        let mut numbers = case.rng();
        let (spec, mut parts) = case.sae(&mut numbers).into_parts();
        let row: Vec<f32> = (0..d).map(|_| numbers.unit()).collect();
        let near = |i: usize| f32::from_bits(row[i % d].to_bits() ^ u32::from(i * 7919 % 1009 < 30));
        let w_enc = Matrix::from_f32(&(0..n * d).map(near).collect::<Vec<_>>(), n, d).unwrap();
        parts.w_enc = w_enc.to_dtype(weights).unwrap();
        parts
            .b_enc
            .iter_mut()
            .enumerate()
            .for_each(|(i, b)| *b = if weights == DType::F32 { 0.0 } else { (i % 5) as f32 * 1e-6 });
        let sae = Sae::new(spec, parts).unwrap();
        check(sae, &mut numbers, rows, (0, 0), Route::Screen { capacity: 1100, first: 100 }, k, false, 1);
    }
}

/// Latents of this encoder that win on a token, by bounds first, must be the definition's.
fn winners(w_enc: &[f32], b_enc: Vec<f32>, x: &[f32], k: usize) {
    let (d, n) = (x.len(), b_enc.len());
    let mut spec = Spec::new(Architecture::TopK { k }, d, n);
    spec.subtract_b_dec = false;
    let matrix = |w: &[f32]| Matrix::from_f32(w, n, d).unwrap();
    let sae = Sae::new(spec, Weights::new(matrix(w_enc), b_enc, matrix(&vec![1.0; n * d]), vec![0.0; d])).unwrap();
    let expected = oracle::encode(&sae, x).unwrap().active;
    let mut memory = Memory::plain(DType::F32, 1, d);
    memory.fill(x);
    for seed in 0..4 {
        let mut rig = Rig::new(sae.to_dtype(DType::F32).unwrap(), seed);
        let mut prepared = rig.prepare(memory.vectors(), None, 1, None, true);
        let out = FeatureMemory::new(DType::F32, 1, k, 0);
        let route = Route::Screen { capacity: k + 1024, first: 100 };
        rig.encode(&mut prepared, route, k, order::BY_VALUE, Some(&out));
        let found: Vec<_> = out.indices.into_iter().zip(out.values.values()).filter(|(i, _)| *i >= 0).collect();
        assert_eq!((found, prepared.overflowed[0]), (expected.clone(), 0));
    }
}

/// Winners look like losers in bf16, where they lie just below a number's upper half and the losers just above its lower one:
/// once the weights, then the token. A bias puts the losers ahead by half of what is lost.
#[test]
fn what_rounding_lost_decides() {
    let (d, n, k) = (192, 300, 30);
    let (up, down) = (1.0 + 0.49 / 128.0, 1.0 - 0.49 / 256.0);
    let wins = |i: usize| i % 10 == 3;
    let bias = |per_number: f32| (0..n).map(|i| if wins(i) { 0.0 } else { per_number }).collect::<Vec<f32>>();
    let weights: Vec<f32> = (0..n * d).map(|at| if wins(at / d) { up } else { down }).collect();
    winners(&weights, bias(d as f32 * 0.4 / 128.0), &vec![1.0; d], k);
    let x: Vec<f32> = (0..d).map(|j| if j % 2 == 0 { up } else { down }).collect();
    let weights: Vec<f32> = (0..n * d).map(|at| f32::from(u8::from(wins(at / d) == (at % d % 2 == 0)))).collect();
    winners(&weights, bias(d as f32 * 0.2 / 128.0), &x, k);
}

/// Winners have many small products beside a large one, of which tensor cores cut all off.
#[test]
fn what_tensor_cores_cut_off_decides() {
    let (d, n, k) = (192, 300, 30);
    let wins = |i: usize| i % 10 == 3;
    let small = |i: usize| if wins(i) { 115.0 / 128.0 / 128.0 } else { 0.0 };
    let weights: Vec<f32> = (0..n * d).map(|at| if at % d == 0 { 1024.0 } else { small(at / d) }).collect();
    let x: Vec<f32> = (0..d).map(|j| if j == 0 { 1.0 } else { 1.0 / 64.0 }).collect();
    winners(&weights, (0..n).map(|i| if wins(i) { 0.0 } else { 0.0105 }).collect(), &x, k);
}

/// The likeliest by their bounds turn out to be no candidates: they must not stand in the others' way.
#[test]
fn the_likeliest_are_none() {
    let (d, n, k) = (64, 40, 4);
    let row = |i: usize, j: usize| match i {
        0..3 => [1e4, -1e4][j % 2],
        3..9 => (i - 2) as f32 / d as f32,
        _ => -1.0,
    };
    let weights: Vec<f32> = (0..n * d).map(|at| row(at / d, at % d)).collect();
    winners(&weights, vec![-1e-3; n], &vec![1.0; d], k);
}

/// Bounds are of use: of smooth numbers few latents wait for exact scores, and no list overflows.
#[test]
fn few_wait_for_exact_scores() {
    for (weights, copies) in [(0u8, true), (2, false), (2, true)] {
        let (d, n, rows, k) = (512, 2048, 40, 8);
        let case = Case { normalization: 1, weights, ..Case::plain(d, n, rows, k) };
        let mut numbers = case.rng();
        let mut rig = Rig::new(case.sae(&mut numbers), 1);
        rig.copies = copies;
        let mut x = Memory::plain(DType::BF16, rows, d);
        x.fill(&numbers.activations(rows * d));
        let mut prepared = rig.prepare(x.vectors(), None, rows, None, true);
        let route = Route::Screen { capacity: 1024, first: 256 };
        rig.encode(&mut prepared, route, k, order::BY_VALUE, None);
        assert_eq!(prepared.overflowed[0], 0);
        let waited: u32 = prepared.tokens.iter().map(|token| token.waiting).sum();
        let each = waited as f32 / rows as f32;
        assert!(each < 2.5 * k as f32, "{each} latents waited for each token, of which {k} win");
    }
}
