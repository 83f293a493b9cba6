//! The rows of a batch, made ready to be encoded.

use crate::backend::Pool;
use crate::backend::cpu::Kernels;
use crate::backend::cpu::blocks::{blocks, for_each};
use crate::backend::cpu::prepare::{Prepared, normalize_row, read_row};
use crate::backend::training::{BatchSums, TrainingRows};
use crate::error::Result;
use crate::sae::Spec;
use crate::tensor::{Array, try_vec};

/// Rows of a batch that one body reads.
const ROWS: usize = 16;

/// What becomes of a row.
#[derive(Clone, Copy, Default, PartialEq)]
enum Fate {
    #[default]
    Kept,
    Masked,
    NotFinite,
}

/// The rows of a batch that are trained on.
pub(super) struct Batch {
    d: usize,
    /// `[T, d]`: normalised, b_dec subtracted; rows left out are closed up.
    pub inputs: Array<f32>,
    /// `[T, d]`: addends as they are read.
    scratch: Array<f32>,
    fates: Vec<Fate>,
}

impl Batch {
    pub(super) fn new(max_tokens: usize, d: usize) -> Result<Self> {
        let size = max_tokens.saturating_mul(d);
        let scratch = Array::zeroed(max_tokens.div_ceil(ROWS).saturating_mul(d))?;
        Ok(Self { d, inputs: Array::zeroed(size)?, scratch, fates: try_vec(Fate::Kept, max_tokens)? })
    }

    /// Reads a batch and counts what is kept and left out.
    pub(super) fn gather(
        &mut self,
        kernels: Kernels,
        pool: &Pool,
        rows: &TrainingRows<'_>,
        spec: &Spec,
        b_dec: &[f32],
    ) -> BatchSums {
        let (d, count) = (self.d, rows.input.x.rows());
        let mask = |row: usize| rows.mask.as_ref().is_none_or(|mask| mask.element::<i32>(row) != 0);
        let parts = (
            blocks(&mut self.inputs[..count * d], ROWS * d),
            blocks(&mut self.fates[..count], ROWS),
            blocks(&mut self.scratch[..count.div_ceil(ROWS) * d], d),
        );
        for_each(pool, parts, |block, (inputs, fates, scratch)| {
            for (i, (x, fate)) in inputs.chunks_exact_mut(d).zip(fates).enumerate() {
                let row = block * ROWS + i;
                *fate = if !mask(row) {
                    Fate::Masked
                } else {
                    read_row(&rows.input, row, scratch, x);
                    let prepared = normalize_row(kernels, spec, b_dec, x);
                    // A square beyond f32 would make scores and gradients infinite, and poison the weights.
                    let usable = prepared != Prepared::NotFinite && kernels.dot(x, x).is_finite();
                    if usable { Fate::Kept } else { Fate::NotFinite }
                };
            }
        });
        let mut sums = BatchSums::default();
        for row in 0..count {
            match self.fates[row] {
                Fate::Kept => {
                    if sums.tokens != row {
                        self.inputs.copy_within(row * d..(row + 1) * d, sums.tokens * d);
                    }
                    sums.tokens += 1;
                }
                Fate::Masked => sums.tokens_masked += 1,
                Fate::NotFinite => sums.tokens_not_finite += 1,
            }
        }
        sums
    }
}
