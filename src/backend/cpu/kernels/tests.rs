//! Every instruction set against the definition, bit for bit.

use proptest::prelude::*;

use super::Factors;
use super::Kernels;
use super::int8::Product;
use crate::backend::cpu::rows::{Rows, Values};
use crate::sae::Matrix;
use crate::tensor::DType;

/// The definition of the canonical dot product, written as the documentation says it.
fn by_definition(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 16];
    for j in 0..a.len().next_multiple_of(16) {
        let at = |v: &[f32]| v.get(j).copied().unwrap_or(0.0);
        lanes[j % 16] = at(a).mul_add(at(b), lanes[j % 16]);
    }
    for w in [8, 4, 2, 1] {
        for l in 0..w {
            lanes[l] += lanes[l + w];
        }
    }
    lanes[0]
}

/// Same bits, where every NaN counts as the same: their payloads are not specified.
fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())
}

/// Numbers that hurt: cancellation, denormals, signed zeros, infinities, NaN.
fn awkward() -> impl Strategy<Value = f32> {
    prop_oneof![
        8 => -2.0f32..2.0,
        1 => prop::sample::select(vec![
            0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 1e-38, 3e38, -3e38, 1e20, -1e20, f32::INFINITY, f32::NEG_INFINITY, f32::NAN,
        ]),
    ]
}

proptest! {
    #[test]
    fn scores_are_the_definition(
        d in 1usize..70, rows in 1usize..10, cols in 1usize..16, seed in prop::collection::vec(awkward(), 97),
    ) {
        let x: Vec<f32> = (0..rows * d).map(|i| seed[i * 31 % 97]).collect();
        let w: Vec<f32> = (0..cols * d).map(|i| seed[(i * 17 + 5) % 97]).collect();
        for kernels in Kernels::all_supported() {
            let mut out = vec![0.0; rows * cols];
            kernels.scores(&x, Values::F32(&w), d, &mut out);
            for (i, &found) in out.iter().enumerate() {
                let (a, b) = (&x[i / cols * d..][..d], &w[i % cols * d..][..d]);
                let expected = by_definition(a, b);
                prop_assert!(same(found, expected), "{}: {found:?} is not {expected:?}", kernels.name);
                prop_assert!(same(kernels.dot(a, b), expected));
            }
        }
    }

    #[test]
    fn sums_and_axpy_are_the_definition(x in prop::collection::vec(awkward(), 0..70), a in awkward()) {
        let ones = vec![1.0; x.len()];
        let y: Vec<f32> = x.iter().rev().copied().collect();
        for kernels in Kernels::all_supported() {
            prop_assert!(same(kernels.sum(&x), by_definition(&x, &ones)), "{}", kernels.name);
            let mut found = y.clone();
            kernels.axpy(a, &x, &mut found);
            for j in 0..x.len() {
                prop_assert!(same(found[j], a.mul_add(x[j], y[j])), "{} at {j}", kernels.name);
            }
        }
    }

    #[test]
    fn sums_of_rows_are_the_definition(
        d in 1usize..150, sums in 0usize..15, rows in 0usize..300, seed in prop::collection::vec(awkward(), 97),
        by_row_first in any::<bool>(),
    ) {
        let values = |count: usize, step: usize| -> Vec<f32> { (0..count).map(|i| seed[i * step % 97]).collect() };
        let (before, matrix, factors) = (values(sums * d, 31), values(rows * d, 17), values(sums * rows, 7));
        let (by_sum, by_row) = if by_row_first { (rows, 1) } else { (1, sums) };
        for kernels in Kernels::all_supported() {
            let mut found = before.clone();
            kernels.add_rows(&mut found, &matrix, d, Factors { values: &factors, by_sum, by_row });
            for (i, (&found, &before)) in found.iter().zip(&before).enumerate() {
                let (s, j) = (i / d, i % d);
                let add = |sum: f32, p: usize| factors[s * by_sum + p * by_row].mul_add(matrix[p * d + j], sum);
                let expected = (0..rows).fold(before, add);
                prop_assert!(same(found, expected), "{}, sum {s} at {j}", kernels.name);
            }
        }
    }

    #[test]
    fn listed_rows_are_the_definition_in_every_type(
        d in 1usize..130, n in 1usize..20, picks in prop::collection::vec(any::<u32>(), 0..23),
        seed in prop::collection::vec(awkward(), 97),
    ) {
        let ids: Vec<u32> = picks.iter().map(|pick| pick % n as u32).collect();
        let z: Vec<f32> = (0..ids.len()).map(|i| seed[i * 7 % 97]).collect();
        let x: Vec<f32> = (0..d).map(|i| seed[i * 31 % 97]).collect();
        let values: Vec<f32> = (0..n * d).map(|i| seed[(i * 17 + 5) % 97]).collect();
        let matrix = Matrix::from_f32(&values, n, d).unwrap();
        let back: Vec<u32> = (0..n as u32).rev().collect();
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let matrix = matrix.to_dtype(dtype).unwrap();
            let row = |id: u32| matrix.row_f32(id as usize, &mut vec![0.0; d]).to_vec();
            let whole = matrix.rows_f32(0, n, &mut vec![0.0; n * d]).to_vec();
            let sources = [
                (Rows::Matrix(&matrix), ids.clone()),
                (Rows::F32 { values: &whole, d }, ids.clone()),
                (Rows::Picked { values: &whole, d, ids: &back }, ids.iter().map(|id| n as u32 - 1 - id).collect()),
            ];
            for kernels in Kernels::all_supported() {
                for (rows, ids_there) in &sources {
                    for tokens in [1, 5] {
                        let x: Vec<f32> = (0..tokens * d).map(|i| seed[i * 31 % 97]).collect();
                        let mut scratch = vec![0.0; n * d];
                        let block = rows.get(kernels, (0, n), tokens, &mut scratch);
                        let mut scores = vec![0.0; tokens * n];
                        kernels.scores(&x, block, d, &mut scores);
                        for (i, &found) in scores.iter().enumerate() {
                            let id = if matches!(rows, Rows::Picked { .. }) { n - 1 - i % n } else { i % n };
                            let expected = by_definition(&x[i / n * d..][..d], &row(id as u32));
                            prop_assert!(same(found, expected), "{} {dtype}: {found:?}, {expected:?}", kernels.name);
                        }
                    }
                    let mut dots = vec![0.0; ids.len()];
                    kernels.dots_at(&x, *rows, ids_there, &mut dots);
                    for (&id, &found) in ids.iter().zip(&dots) {
                        let expected = by_definition(&x, &row(id));
                        prop_assert!(same(found, expected), "{} {dtype}: {found:?}, {expected:?}", kernels.name);
                    }
                    let mut sum = x.clone();
                    kernels.add_rows_at(&mut sum, *rows, ids_there, &z);
                    for j in 0..d {
                        let add = |sum: f32, (&id, z): (&u32, &f32)| z.mul_add(row(id)[j], sum);
                        let expected = ids.iter().zip(&z).fold(x[j], add);
                        prop_assert!(same(sum[j], expected), "{} {dtype} at {j}", kernels.name);
                    }
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn products_of_bytes_are_the_definition(
        rows in 1usize..30, panels in 1usize..3, steps in 1usize..4, seed in prop::collection::vec(any::<u8>(), 113),
    ) {
        let padded = 64 * steps;
        // −128 occurs in x, and never in w.
        let x: Vec<u8> = (0..rows * padded).map(|i| seed[i * 31 % 113]).collect();
        let w: Vec<i8> = (0..panels * 16 * padded).map(|i| (seed[(i * 17 + 5) % 113] as i8).max(-127)).collect();
        let at = |latent: usize, j: usize| i32::from(w[(latent / 16 * padded / 4 + j / 4) * 64 + latent % 16 * 4 + j % 4]);
        let sums: Vec<i32> = (0..panels * 16).map(|latent| (0..padded).map(|j| at(latent, j)).sum()).collect();
        for kernels in Kernels::all_supported() {
            let mut out = vec![7; rows * panels * 16];
            kernels.product(&Product { x: &x, w: &w, sums: &sums, padded }, &mut out);
            for (i, &found) in out.iter().enumerate() {
                let (row, latent) = (i / (panels * 16), i % (panels * 16));
                let expected: i32 = (0..padded).map(|j| (i32::from(x[row * padded + j]) - 128) * at(latent, j)).sum();
                prop_assert_eq!(found, expected, "{}: row {}, latent {}", kernels.name, row, latent);
            }
        }
    }
}
