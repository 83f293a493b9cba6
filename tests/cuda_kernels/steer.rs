//! Steering, with activations known, encoded or computed alone.

use bytemuck::Zeroable;
use proptest::prelude::*;
use sae::backend::cuda::params::{self, *};
use sae::sae::Sae;
use sae::steering::{Edit, EditOp};
use sae::tensor::DType;

use crate::common::cases::Numbers;
use crate::common::oracle;
use crate::config;
use crate::encode::{TYPES, larger, oracle_tokens, same};
use crate::rig::{FeatureMemory, Memory, Rig, Route, at, at_mut, launch, matrix};

const SLOTS: usize = 3;
const PER_SLOT: usize = 8;

proptest! {
    #![proptest_config(config(90))]

    #[test]
    fn rows_are_steered(
        case in larger().prop_map(|case| case.whole_if_competing()), seed in 0u64..4, kind in 0usize..3, known: bool, width in 0usize..50, in_place: bool, slots: bool,
    ) {
        let mut numbers = case.rng();
        let sae = case.sae(&mut numbers);
        check(sae, &mut numbers, case.rows.min(60), kind, known.then_some(width), in_place, slots, seed);
    }
}

fn random_edits(numbers: &mut Numbers, first: usize, n: usize) -> Vec<Edit> {
    let count = numbers.below(PER_SLOT + 1).min(n);
    let start = numbers.below(n);
    let edit = |i: usize, numbers: &mut Numbers| Edit {
        feature: (first + (start + i) % n) as i32,
        op: [EditOp::Add, EditOp::Set, EditOp::Scale, EditOp::Ablate][numbers.below(4)],
        strength: [0.0, 1e38, 2.0][numbers.below(3)] * numbers.unit(),
        limit: [0.0, 0.5][numbers.below(2)],
        only_active: numbers.below(3) == 0,
    };
    (0..count).map(|i| edit(i, numbers)).collect()
}

#[allow(clippy::too_many_arguments)]
fn check(
    sae: Sae,
    numbers: &mut Numbers,
    rows: usize,
    kind: usize,
    known: Option<usize>,
    in_place: bool,
    with_slots: bool,
    seed: u64,
) {
    let spec = sae.spec().clone();
    let (d_in, d, n, first) = (spec.d_in, spec.d_out, spec.n_latents, spec.first_latent);
    let lists: Vec<Vec<Edit>> = (0..SLOTS).map(|_| random_edits(numbers, first, n)).collect();
    let mut table = vec![params::Edit::zeroed(); SLOTS * PER_SLOT];
    for (slot, list) in lists.iter().enumerate() {
        for (to, edit) in table[slot * PER_SLOT..].iter_mut().zip(list) {
            *to = params::Edit {
                feature: edit.feature,
                op: match edit.op {
                    EditOp::Add => edit_op::ADD,
                    EditOp::Set => edit_op::SET,
                    EditOp::Scale => edit_op::SCALE,
                    EditOp::Ablate => edit_op::ABLATE,
                },
                strength: edit.strength,
                limit: edit.limit,
                only_active: i32::from(edit.only_active),
                ..params::Edit::zeroed()
            };
        }
    }
    let lengths: Vec<i32> = lists.iter().map(|list| list.len() as i32).collect();
    let row_slot: Vec<i32> = (0..rows).map(|_| numbers.below(SLOTS + 2) as i32 - 1).collect();
    let edits = Edits {
        edits: at(&table),
        lengths: at(&lengths),
        row_slot: if with_slots { at(&row_slot) } else { DevicePtr::NULL },
        row_slot_stride: 1,
        slots: SLOTS as i32,
        per_slot: PER_SLOT as i32,
    };

    let mut x = Memory::new(TYPES[kind], rows, (spec.layers_in, d_in), 1, true);
    let seen = x.fill(&numbers.activations(rows * d_in));
    let mut y = Memory::new(TYPES[kind], rows, (spec.layers_out, d), 2, false);
    let before = y.fill(&numbers.activations(rows * d));
    let tokens = oracle_tokens(&sae, &seen, rows);

    // Features the host may know: as many as fit, of f32.
    let state_width = spec.row_state_width();
    let mut features = FeatureMemory::new(DType::F32, rows, known.unwrap_or(0), state_width);
    let width = features.width;
    let mut values = vec![0.0; rows * width];
    for (t, token) in tokens.iter().enumerate() {
        features.counts[t] = token.as_ref().map_or(-1, |token| token.active.len() as i32);
        features.indices[t * width..(t + 1) * width].fill(-1);
        if let Some(token) = token {
            for (slot, (index, value)) in token.active.iter().take(width).enumerate() {
                (features.indices[t * width + slot], values[t * width + slot]) = (*index, *value);
            }
            features.row_state[t * state_width..][..state_width].copy_from_slice(&token.state[..state_width]);
        }
    }
    features.values.fill(&values);
    let known_params = if known.is_some() { features.params() } else { Features::zeroed() };

    let mut rig = Rig::new(sae, seed);
    let competes = rig.latents.k > 0;
    let mut wanted = vec![7i32; rows];
    if competes {
        let plan =
            SteerPlanParams { edits, known: known_params, wanted: at_mut(&mut wanted), rows: rows as i32, reserved: 0 };
        launch([rows.div_ceil(128), 1], 128, 0, &plan, seed);
    }
    let mut prepared = rig.prepare(x.vectors(), None, rows, competes.then_some(&wanted), false);
    let gathered = rig.gathered(1);
    let (kept, kept_stride) = match competes {
        true => rig.encode(&mut prepared, Route::Dense, gathered, order::BY_VALUE, None),
        false => (vec![], 0),
    };
    let mut separate = y.alike();
    let (mut deltas, mut ignored) = (vec![f32::NAN; rows * PER_SLOT], [0u64]);
    let params = SteerParams {
        latents: rig.latents,
        edits,
        known: known_params,
        x: at(&prepared.x),
        tokens: at(&prepared.tokens),
        kept: at(&kept),
        w_dec: matrix(&rig.sae.weights().w_dec),
        norms: rig.sae.decoder_norms().filter(|_| spec.rescale_by_decoder_norm).map_or(DevicePtr::NULL, at),
        y: y.vectors(),
        out: if in_place { y.vectors() } else { separate.vectors() },
        deltas: at_mut(&mut deltas),
        ignored: at_mut(&mut ignored),
        padded: rig.padded() as i64,
        kept_stride: kept_stride as i64,
        rows: rows as i32,
        d: d as i32,
        limit: gathered as i32,
        normalization: rig.normalization(),
        center: i32::from(spec.center),
        denormalize: i32::from(spec.denormalize_output),
    };
    launch([rows, 1], 256, 0, &params, seed);

    let mut expected = Vec::new();
    let mut unknown = 0;
    for (t, token) in tokens.iter().enumerate() {
        let slot = if with_slots { row_slot[t] } else { 0 };
        let y = &before[t * d..(t + 1) * d];
        unknown += u64::from(slot == SLOTS as i32);
        let list = lists.get(slot as usize).map_or(&[][..], Vec::as_slice);
        let steered = token.as_ref().map(|token| oracle::steer(&rig.sae, list, &token.active, &token.state, y));
        expected.extend(steered.unwrap_or_else(|| y.to_vec()));
    }
    let found = if in_place { &mut y } else { &mut separate };
    let rounded = found.alike().fill(&expected);
    for (i, (found, expected)) in found.values().iter().zip(&rounded).enumerate() {
        assert!(same(*found, *expected), "element {} of token {}: {found} for {expected}", i % d, i / d);
    }
    // The gaps are as they were.
    let mut blank = found.alike();
    blank.fill(&vec![0.0; rows * d]);
    found.fill(&vec![0.0; rows * d]);
    assert_eq!(found.words(), blank.words());
    assert_eq!(ignored[0], unknown);
}
