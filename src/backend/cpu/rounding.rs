//! Rows of weights rounded to bytes.

use super::Kernels;
use super::blocks::{Parts, blocks, panels};
use super::kernels::Loop;
use super::rows::{Rows, Values};
use crate::backend::Pool;
use crate::error::Result;
use crate::sae::int8::{Int8Rows, PANEL, PanelMut};
use crate::tensor::Array;

/// Rounds all rows, of which there are as many as `int8` has, or up to 15 fewer.
pub(super) fn round_rows(kernels: Kernels, pool: &Pool, rows: Rows<'_>, n: usize, int8: &mut Int8Rows) -> Result<()> {
    let d = rows.d();
    let panels = panels(int8);
    // Memory for rows that are not kept in f32.
    let mut scratch = Array::zeroed(pool.threads().saturating_mul(PANEL).saturating_mul(d))?;
    let scratch = blocks(&mut scratch, PANEL * d);
    pool.run_ranges(panels.count(), &|slot, range| {
        // SAFETY: no two ranges run with the same slot at once, and slots are fewer than threads.
        let scratch = unsafe { scratch.part(slot) };
        for i in range {
            let span = (i * PANEL, PANEL.min(n - i * PANEL));
            let Values::F32(rows) = rows.get(kernels, span, usize::MAX, scratch) else {
                unreachable!("for many tokens, rows are widened");
            };
            // SAFETY: ranges do not overlap.
            let panel = unsafe { panels.part(i) };
            kernels.run(Round { panel, rows, d });
        }
    });
    Ok(())
}

/// Rounds up to 16 rows.
pub(super) struct Round<'a> {
    pub panel: PanelMut<'a>,
    pub rows: &'a [f32],
    pub d: usize,
}

impl Loop for Round<'_> {
    type Output = ();

    #[inline(always)]
    fn run(mut self) {
        self.panel.set(self.rows, self.d);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sae::Matrix;
    use crate::tensor::DType;

    #[test]
    fn panels_hold_rows_and_what_is_known_of_them() {
        let (n, d) = (37, 70);
        let w: Vec<f32> = (0..n * d).map(|i| ((i * 7919 % 1009) as f32 / 500.0 - 1.0) * (1 + i / d) as f32).collect();
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let matrix = Matrix::from_f32(&w, n, d).unwrap().to_dtype(dtype).unwrap();
            let w = matrix.rows_f32(0, n, &mut vec![0.0; n * d]).to_vec();
            for (kernels, threads) in Kernels::all_supported().into_iter().flat_map(|k| [(k, 1), (k, 4)]) {
                let mut rows = Int8Rows::zeroed(n, d).unwrap();
                round_rows(kernels, &Pool::new(threads).unwrap(), Rows::Matrix(&matrix), n, &mut rows).unwrap();
                let (q, facts) = (rows.panels(0, 3), rows.facts(0, 3));
                assert_eq!((q.len(), facts.scale.len()), (48 * 128, 48));
                for i in 0..48 {
                    let at = |j: usize| i32::from(q[(i / PANEL * 32 + j / 4) * 64 + i % PANEL * 4 + j % 4]);
                    assert_eq!(facts.sum[i], (0..128).map(at).sum::<i32>());
                    for j in 0..128 {
                        let w = if i < n && j < d { w[i * d + j] } else { 0.0 };
                        let lost = (w - facts.scale[i] * at(j) as f32).abs();
                        assert!(lost <= facts.scale[i] * 0.5001, "row {i}, column {j}, {}", kernels.name);
                    }
                }
            }
        }
        assert!(Int8Rows::byte_size(n, d) == 48 * 128 + 48 * 16 && Int8Rows::fits(d) && !Int8Rows::fits(1 << 17));
    }
}
