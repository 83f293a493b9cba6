//! Dense encodings, and activations of chosen latents.

use proptest::prelude::*;
use sae::backend::cuda::params::*;
use sae::sae::Sae;
use sae::tensor::DType;

use crate::common::cases::Numbers;
use crate::common::oracle;
use crate::config;
use crate::encode::{TYPES, larger, oracle_tokens, same};
use crate::rig::{Memory, Rig, Route, at, at_mut, launch};

proptest! {
    #![proptest_config(config(60))]

    #[test]
    fn dense_and_selected(case in larger(), seed in 0u64..4, kinds in (0usize..3, 0usize..3), m in 0usize..70) {
        let mut numbers = case.rng();
        let sae = case.sae(&mut numbers);
        check(sae, &mut numbers, case.rows, kinds, m, seed);
    }
}

fn check(sae: Sae, numbers: &mut Numbers, rows: usize, kinds: (usize, usize), m: usize, seed: u64) {
    let spec = sae.spec().clone();
    let (d, n, first) = (spec.d_in, spec.n_latents, spec.first_latent);
    let mut x = Memory::new(TYPES[kinds.0], rows, (spec.layers_in, d), 1, true);
    let seen = x.fill(&numbers.activations(rows * d));
    let expected = oracle_tokens(&sae, &seen, rows);
    let mut rig = Rig::new(sae, seed);
    let mut prepared = rig.prepare(x.vectors(), None, rows, None, false);
    let competes = rig.latents.k > 0;

    let out = Memory::new(TYPES[kinds.1], rows, (1, n), 3, false);
    rig.score(&prepared, what::PRE_ACTIVATIONS, out.vectors());
    compare(&out, &expected, n, |token| token.pre_activations.clone());

    let ids: Vec<i32> = (0..m).map(|_| (first + numbers.below(n + 3)) as i32 - 1).collect();
    let unknown = ids.iter().filter(|&&id| (id as usize) < first || id < 0 || id as usize >= first + n).count();
    let (dense, selected) = (Memory::new(TYPES[kinds.1], rows, (1, n), 2, false), Memory::plain(DType::F32, rows, m));
    let mut ignored = [0u64];
    if competes {
        let k = rig.gathered(n);
        let (kept, kept_stride) = rig.encode(&mut prepared, Route::Dense, k, order::BY_INDEX, None);
        let params = ScatterParams {
            kept: at(&kept),
            tokens: at(&prepared.tokens),
            out: dense.vectors(),
            kept_stride: kept_stride as i64,
            rows: rows as i32,
            n: n as i32,
            first: first as i32,
            limit: k as i32,
        };
        launch([rows, 1], 256, 0, &params, seed);
        let params = LookupParams {
            kept: at(&kept),
            tokens: at(&prepared.tokens),
            ids: at(&ids),
            out: selected.vectors(),
            ignored: at_mut(&mut ignored),
            kept_stride: kept_stride as i64,
            ids_stride: 1,
            rows: rows as i32,
            m: m as i32,
            n: n as i32,
            first: first as i32,
            limit: k as i32,
            reserved: 0,
        };
        launch([rows, 1], 128, 0, &params, seed);
    } else {
        rig.score(&prepared, what::ACTIVATIONS, dense.vectors());
        let params = ScoreSelectedParams {
            latents: rig.latents,
            x: at(&prepared.x),
            tokens: at(&prepared.tokens),
            ids: at(&ids),
            out: selected.vectors(),
            ignored: at_mut(&mut ignored),
            padded: rig.padded() as i64,
            ids_stride: 1,
            rows: rows as i32,
            m: m as i32,
        };
        launch([m.div_ceil(64), rows], 256, 0, &params, seed);
    }
    compare(&dense, &expected, n, |token| {
        let mut all = vec![0.0; n];
        token.active.iter().for_each(|&(i, v)| all[i as usize - first] = v);
        all
    });
    compare(&selected, &expected, m, |token| {
        let active = |id: &i32| token.active.iter().find(|(i, _)| i == id).map_or(0.0, |(_, v)| *v);
        ids.iter().map(active).collect()
    });
    assert_eq!(ignored[0], if rows > 0 { unknown as u64 } else { 0 });
}

fn compare(
    found: &Memory,
    expected: &[Option<oracle::Token>],
    width: usize,
    numbers: impl Fn(&oracle::Token) -> Vec<f32>,
) {
    let mut rounded = found.alike();
    let all = expected.iter().flat_map(|token| token.as_ref().map_or(vec![f32::NAN; width], &numbers));
    let (found, expected) = (found.values(), rounded.fill(&all.collect::<Vec<_>>()));
    for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
        assert!(same(*found, *expected), "column {} of token {}: {found} for {expected}", i % width, i / width);
    }
}
