//! Products of matrices as sums of rows. Each sum takes the rows in their order, as it would alone; several sums and several
//! columns are in registers at once.

use super::lanes::{LANES, Lanes, whole};

/// Rows gone through for all sums before the next ones: some columns of them stay in the first-level cache.
const DEPTH: usize = 128;

/// What each row counts in each sum.
#[derive(Clone, Copy)]
pub(crate) struct Factors<'a> {
    /// Row p counts `values[s · by_sum + p · by_row]` in sum s.
    pub values: &'a [f32],
    /// From one sum's factors to the next one's.
    pub by_sum: usize,
    /// From one row's factors to the next one's.
    pub by_row: usize,
}

/// See [`Kernels::add_rows`](super::Kernels::add_rows). `S` sums by `C` times 16 columns are in registers.
///
/// # Safety
/// The machine must have `L`'s instructions; there must be a factor for each row in each sum.
#[inline(always)]
pub(super) unsafe fn add_rows<L: Lanes, const S: usize, const C: usize>(
    sums: &mut [f32],
    rows: &[f32],
    d: usize,
    z: Factors<'_>,
) {
    let (sum_count, whole) = (sums.len() / d, whole(d));
    for (block, rows) in rows.chunks(DEPTH * d).enumerate() {
        let z = Factors { values: &z.values[block * DEPTH * z.by_row..], ..z };
        let mut column = 0;
        while column < whole {
            let wide = column + C * LANES <= whole;
            let mut sum = 0;
            while sum < sum_count {
                let many = sum + S <= sum_count;
                // SAFETY: the caller's promises; the sums and columns are there, as just checked.
                unsafe {
                    let at = (sums.as_mut_ptr().add(sum * d + column), rows.as_ptr().add(column));
                    let z = Factors { values: &z.values[sum * z.by_sum..], ..z };
                    match (many, wide) {
                        (true, true) => tile::<L, S, C>(at, rows.len() / d, d, z),
                        (true, false) => tile::<L, S, 1>(at, rows.len() / d, d, z),
                        (false, true) => tile::<L, 1, C>(at, rows.len() / d, d, z),
                        (false, false) => tile::<L, 1, 1>(at, rows.len() / d, d, z),
                    }
                }
                sum += if many { S } else { 1 };
            }
            column += if wide { C * LANES } else { LANES };
        }
        for (s, sum) in sums.chunks_exact_mut(d).enumerate() {
            for (p, row) in rows.chunks_exact(d).enumerate() {
                let factor = z.values[s * z.by_sum + p * z.by_row];
                sum[whole..].iter_mut().zip(&row[whole..]).for_each(|(sum, v)| *sum = factor.mul_add(*v, *sum));
            }
        }
    }
}

/// Adds `depth` rows to `S` sums, `C` times 16 columns of them.
///
/// # Safety
/// As [`add_rows`]; the sums and the rows must have the columns.
#[inline(always)]
unsafe fn tile<L: Lanes, const S: usize, const C: usize>(
    (sums, rows): (*mut f32, *const f32),
    depth: usize,
    d: usize,
    z: Factors<'_>,
) {
    // SAFETY: the caller's promises.
    unsafe {
        let mut lanes = [[L::zero(); C]; S];
        for (s, lanes) in lanes.iter_mut().enumerate() {
            for (c, lanes) in lanes.iter_mut().enumerate() {
                *lanes = L::load(sums.add(s * d + c * LANES));
            }
        }
        for p in 0..depth {
            let mut row = [L::zero(); C];
            for (c, row) in row.iter_mut().enumerate() {
                *row = L::load(rows.add(p * d + c * LANES));
            }
            for (s, lanes) in lanes.iter_mut().enumerate() {
                let factor = L::splat(*z.values.as_ptr().add(s * z.by_sum + p * z.by_row));
                for c in 0..C {
                    lanes[c] = factor.fma(row[c], lanes[c]);
                }
            }
        }
        for (s, lanes) in lanes.iter().enumerate() {
            for (c, lanes) in lanes.iter().enumerate() {
                lanes.store(sums.add(s * d + c * LANES));
            }
        }
    }
}
