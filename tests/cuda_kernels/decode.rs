//! Decoding, from features as hosts have them and from kept keys.

use bytemuck::Zeroable;
use proptest::prelude::*;
use sae::backend::cuda::params::*;
use sae::sae::Sae;

use crate::common::cases::Numbers;
use crate::common::oracle;
use crate::config;
use crate::encode::{TYPES, larger, oracle_tokens, same};
use crate::rig::{FeatureMemory, Memory, Rig, Route, at, at_mut, launch, launch_score, matrix};

proptest! {
    #![proptest_config(config(60))]

    #[test]
    fn features_decode(case in larger(), seed in 0u64..4, kinds in (0usize..3, 0usize..3), width in 0usize..150, gap in 0usize..3) {
        let mut numbers = case.rng();
        let sae = case.sae(&mut numbers);
        features(sae, &mut numbers, case.rows.min(40), kinds, width, gap, seed);
    }

    #[test]
    fn kept_keys_decode(case in larger(), seed in 0u64..4, kinds in (0usize..3, 0usize..3)) {
        let mut numbers = case.rng();
        let sae = case.sae(&mut numbers);
        kept(sae, &mut numbers, case.rows.min(40), kinds, seed);
    }
}

fn params(rig: &Rig, rows: usize, out: &Memory, ignored: &mut [u64; 1]) -> DecodeParams {
    let (spec, weights) = (rig.sae.spec(), rig.sae.weights());
    DecodeParams {
        w_dec: matrix(&weights.w_dec),
        b_dec: at(&weights.b_dec),
        norms: rig.sae.decoder_norms().filter(|_| spec.rescale_by_decoder_norm).map_or(DevicePtr::NULL, at),
        out: out.vectors(),
        ignored: at_mut(ignored),
        rows: rows as i32,
        d: spec.d_out as i32,
        n: spec.n_latents as i32,
        first: spec.first_latent as i32,
        normalization: rig.normalization(),
        center: i32::from(spec.center),
        denormalize: i32::from(spec.denormalize_output),
        ..DecodeParams::zeroed()
    }
}

fn grid(rig: &Rig, rows: usize) -> [usize; 2] {
    [rig.sae.spec().d_out.div_ceil(DECODE_COLUMNS), rows]
}

/// What the skip path adds to each token.
fn skip(rig: &Rig, raw: &[f32], rows: usize) -> Memory {
    let spec = rig.sae.spec();
    let out = Memory::plain(sae::tensor::DType::F32, rows, spec.d_out);
    if let Some(w_skip) = &rig.sae.weights().w_skip {
        let params = ScoreParams {
            latents: Latents { w_enc: matrix(w_skip), n: spec.d_out as i32, d: spec.d_in as i32, ..Latents::zeroed() },
            x: at(raw),
            tokens: DevicePtr::NULL,
            out: out.vectors(),
            padded: rig.padded() as i64,
            rows: rows as i32,
            what: what::DOTS,
        };
        launch_score(&params, rig.seed);
    }
    out
}

fn compare(out: &Memory, expected: &[f32], d: usize) {
    let rounded = out.alike().fill(expected);
    for (i, (found, expected)) in out.values().iter().zip(&rounded).enumerate() {
        assert!(same(*found, *expected), "element {} of token {}: {found} for {expected}", i % d, i / d);
    }
}

fn features(sae: Sae, numbers: &mut Numbers, rows: usize, kinds: (usize, usize), width: usize, gap: usize, seed: u64) {
    let spec = sae.spec().clone();
    let (n, first, d) = (spec.n_latents, spec.first_latent, spec.d_out);
    let mut given = FeatureMemory::new(TYPES[kinds.0], rows, width, spec.row_state_width());
    let values: Vec<f32> = (0..rows * width).map(|_| numbers.unit() * 3.0).collect();
    let values = given.values.fill(&values);
    // Some indices are none, some name nothing, some come twice.
    given.indices.iter_mut().for_each(|i| *i = (first + numbers.below(n + 2)) as i32 - 1);
    given.counts.iter_mut().for_each(|c| *c = numbers.below(5) as i32 - 1);
    given.row_state.iter_mut().for_each(|s| *s = numbers.unit());
    let mut x = Memory::new(TYPES[kinds.1], rows, (spec.layers_in, spec.d_in), gap, false);
    let raw = x.fill(&(0..rows * spec.d_in).map(|_| numbers.unit()).collect::<Vec<_>>());
    let rig = Rig::new(sae, seed);
    let skipped = skip(&rig, &rig.raw(x.vectors(), rows), rows);
    let out = Memory::new(TYPES[kinds.1], rows, (spec.layers_out, d), gap, true);
    let mut ignored = [0];
    let mut call = params(&rig, rows, &out, &mut ignored);
    call.features = given.params();
    if rig.sae.weights().w_skip.is_some() {
        (call.skip, call.skip_stride) = (at(skipped.words()), d as i64);
    }
    launch(grid(&rig, rows), 128, 0, &call, seed);

    let (mut expected, mut unknown) = (Vec::new(), 0);
    for t in 0..rows {
        if given.counts[t] < 0 {
            expected.extend(vec![f32::NAN; d]);
            continue;
        }
        let listed = given.indices[t * width..][..width].iter().copied().zip(values[t * width..].iter().copied());
        let is_one = |i: &i32| (first as i64..(first + n) as i64).contains(&i64::from(*i));
        unknown += listed.clone().filter(|(i, _)| !is_one(i) && *i != -1).count() as u64;
        let listed: Vec<_> = listed.filter(|(i, _)| is_one(i)).collect();
        let state = &given.row_state[t * given.state_width..][..given.state_width];
        expected.extend(oracle::decode(&rig.sae, &listed, state, &raw[t * spec.d_in..][..spec.d_in]));
    }
    compare(&out, &expected, d);
    assert_eq!(ignored[0], unknown);
}

fn kept(sae: Sae, numbers: &mut Numbers, rows: usize, kinds: (usize, usize), seed: u64) {
    let spec = sae.spec().clone();
    let mut x = Memory::new(TYPES[kinds.0], rows, (spec.layers_in, spec.d_in), 1, true);
    let raw = x.fill(&numbers.activations(rows * spec.d_in));
    let expected = oracle_tokens(&sae, &raw, rows);
    let mut rig = Rig::new(sae, seed);
    let mut prepared = rig.prepare(x.vectors(), None, rows, None, false);
    let gathered = rig.gathered(usize::MAX);
    let (keys, stride) = rig.encode(&mut prepared, Route::Dense, gathered, order::BY_VALUE, None);
    let skipped = skip(&rig, &rig.raw(x.vectors(), rows), rows);
    let out = Memory::new(TYPES[kinds.1], rows, (spec.layers_out, spec.d_out), 2, false);
    let mut ignored = [0];
    let mut call = params(&rig, rows, &out, &mut ignored);
    (call.kept, call.tokens, call.kept_stride) = (at(&keys), at(&prepared.tokens), stride as i64);
    call.limit = gathered as i32;
    if rig.sae.weights().w_skip.is_some() {
        (call.skip, call.skip_stride) = (at(skipped.words()), spec.d_out as i64);
    }
    launch(grid(&rig, rows), 128, 0, &call, seed);
    let expected = expected.iter().enumerate().flat_map(|(t, token)| match token {
        None => vec![f32::NAN; spec.d_out],
        Some(token) => oracle::decode(&rig.sae, &token.active, &token.state, &raw[t * spec.d_in..][..spec.d_in]),
    });
    compare(&out, &expected.collect::<Vec<_>>(), spec.d_out);
    assert_eq!(ignored[0], 0);
}
