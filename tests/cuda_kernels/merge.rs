//! Features of shards, merged.

use bytemuck::Zeroable;
use proptest::prelude::*;
use sae::backend::cuda::params::*;
use sae::tensor::DType;

use crate::common::cases::numbers;
use crate::config;
use crate::encode::same;
use crate::rig::{FeatureMemory, at_mut, launch};

proptest! {
    #![proptest_config(config(60))]

    #[test]
    fn parts_make_a_whole(
        parts in 1usize..5, rows in 0usize..20, width in 0usize..60, limit in 0usize..80, k in 0usize..90, state in 0usize..3,
        by_index: bool, twice: bool, seed: u64,
    ) {
        let mut numbers = numbers(seed);
        let mut given: Vec<FeatureMemory> = Vec::new();
        for part in 0..parts {
            let mut features = FeatureMemory::new(DType::BF16, rows, width, state);
            let values: Vec<f32> = (0..rows * width)
                .map(|_| match numbers.below(12) { 0 => f32::NAN, 1 => f32::INFINITY, 2 => 0.0, _ => numbers.below(9) as f32 - 4.0 })
                .collect();
            features.values.fill(&values);
            let index = |i: usize, pick: usize| match pick { 0 => -1, 1 => -5, _ => (part * 1000 + i % width.max(1)) as i32 };
            features.indices.iter_mut().enumerate().for_each(|(i, to)| *to = index(i, numbers.below(8)));
            if let Some(first) = given.first().filter(|_| twice) {
                // Every latent is listed again.
                features.values.fill(&first.values.values());
                features.indices.copy_from_slice(&first.indices);
            }
            features.counts.iter_mut().for_each(|c| *c = numbers.below(40) as i32 - i32::from(numbers.below(20) == 0) * 60);
            features.row_state.iter_mut().for_each(|s| *s = numbers.unit());
            given.push(features);
        }
        let keys_stride = (parts * width).max(1);
        let (mut keys, mut tokens) = (vec![7u64; rows * keys_stride], vec![Token::zeroed(); rows]);
        let mut ignored = [0u64];
        for (i, part) in given.iter().enumerate() {
            let params = MergePartParams {
                part: part.params(),
                keys: at_mut(&mut keys),
                tokens: at_mut(&mut tokens),
                ignored: at_mut(&mut ignored),
                keys_stride: keys_stride as i64,
                offset: (i * width) as i64,
                rows: rows as i32,
                is_first: i32::from(i == 0),
            };
            launch([rows, 1], 128, 0, &params, seed % 5);
        }
        let out = FeatureMemory::new(DType::F32, rows, limit, state);
        let gathered = if k > 0 { limit.min(k) } else { limit };
        let params = SelectParams {
            latents: Latents { k: k as i32, ..Latents::zeroed() },
            keys: at_mut(&mut keys),
            tokens: at_mut(&mut tokens),
            out: out.params(),
            keys_stride: keys_stride as i64,
            kept_stride: gathered.next_power_of_two() as i64,
            rows: rows as i32,
            length: (parts * width) as i32,
            gathered: gathered as i32,
            order: i32::from(by_index),
            counted: 1,
            ..SelectParams::zeroed()
        };
        launch([rows, 1], 256, 0, &params, seed % 5);

        let found = out.values.values();
        let mut unknown = 0;
        for t in 0..rows {
            let mut all = Vec::new();
            for part in &given {
                let values = part.values.values();
                let slots = t * width..(t + 1) * width;
                for (&index, &value) in part.indices[slots.clone()].iter().zip(&values[slots]) {
                    unknown += u64::from(index < -1);
                    if index >= 0 && value.is_finite() {
                        all.push((index, value));
                    }
                }
            }
            all.sort_by(|a, b| b.1.abs().total_cmp(&a.1.abs()).then(a.0.cmp(&b.0)));
            let finite = given.iter().all(|part| part.counts[t] >= 0);
            all.truncate(if finite { gathered } else { 0 });
            if by_index {
                all.sort_by_key(|(i, _)| *i);
            }
            let active: i32 = given.iter().map(|part| part.counts[t].max(0)).sum();
            let active = if k > 0 { active.min(k as i32) } else { active };
            prop_assert_eq!(out.counts[t], if finite { active } else { -1 });
            for slot in 0..limit {
                let (index, value) = all.get(slot).copied().unwrap_or((-1, 0.0));
                prop_assert_eq!((out.indices[t * limit + slot], found[t * limit + slot].to_bits()), (index, value.to_bits()));
            }
            for i in 0..state {
                let expected = if finite { given[0].row_state[t * state + i] } else { f32::NAN };
                prop_assert!(same(out.row_state[t * state + i], expected));
            }
        }
        prop_assert_eq!(ignored[0], unknown);
    }
}
