//! Sums over the rows of a batch, column by column.

use std::ops::Range;

use crate::backend::Pool;
use crate::backend::cpu::blocks::{blocks, for_each};
use crate::collective::{Axis, Ranks};
use crate::error::Result;

/// Columns that one body sums.
const COLUMNS: usize = 64;

/// `Σ (x − mean_rows(x))²` over `[T, d]`, where all ranks together have `tokens` rows, at least 1.
pub(super) fn squared_deviation(pool: &Pool, rows: &[f32], d: usize, tokens: usize, ranks: &Ranks) -> Result<f64> {
    let mut means = vec![0.0f64; d];
    for_each(pool, blocks(&mut means, COLUMNS), |block, means| {
        let mut sums = [0.0f64; COLUMNS];
        column_sums(rows, d, block * COLUMNS..block * COLUMNS + means.len(), &mut sums);
        means.copy_from_slice(&sums[..means.len()]);
    });
    ranks.sum_f64(Axis::Data, &mut means)?;
    means.iter_mut().for_each(|mean| *mean /= tokens as f64);
    let mut sums = vec![0.0f64; d.div_ceil(COLUMNS)];
    for_each(pool, blocks(&mut sums, 1), |block, sum| {
        let columns = block * COLUMNS..((block + 1) * COLUMNS).min(d);
        let mut squares = [0.0f64; COLUMNS];
        for row in rows.chunks_exact(d) {
            for ((square, mean), &x) in squares.iter_mut().zip(&means[columns.clone()]).zip(&row[columns.clone()]) {
                *square += (f64::from(x) - mean) * (f64::from(x) - mean);
            }
        }
        sum[0] = squares.iter().sum();
    });
    let mut sum = [sums.iter().sum()];
    ranks.sum_f64(Axis::Data, &mut sum)?;
    Ok(sum[0])
}

/// Adds up some columns of rows of length `d`.
fn column_sums(rows: &[f32], d: usize, columns: Range<usize>, sums: &mut [f64; COLUMNS]) {
    for row in rows.chunks_exact(d) {
        for (sum, &x) in sums.iter_mut().zip(&row[columns.clone()]) {
            *sum += f64::from(x);
        }
    }
}

/// `out += factor · Σ_rows x`, over the first columns of rows of length `d`.
pub(super) fn add_column_sums(pool: &Pool, rows: &[f32], d: usize, factor: f64, out: &mut [f32]) {
    for_each(pool, blocks(out, COLUMNS), |block, out| {
        let mut sums = [0.0f64; COLUMNS];
        column_sums(rows, d, block * COLUMNS..block * COLUMNS + out.len(), &mut sums);
        for (out, sum) in out.iter_mut().zip(sums) {
            *out += (factor * sum) as f32;
        }
    });
}
