//! The rows of a batch, made ready to be encoded.

use crate::backend::Pool;
use crate::backend::cpu::Kernels;
use crate::backend::cpu::blocks::{blocks, for_each, optional};
use crate::backend::cpu::prepare::{Prepared, normalize_row, read_row};
use crate::backend::cpu::rows::Values;
use crate::backend::training::{BatchSums, TrainingRows, TrainingShape};
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
    d_out: usize,
    /// `[T, d]`: normalised, and for autoencoders b_dec subtracted; rows left out are closed up.
    pub inputs: Array<f32>,
    /// `[T, d_out]`, where b_dec is not subtracted from inputs: it is from these.
    targets: Array<f32>,
    /// `[T, d]`: addends as they are read.
    scratch: Array<f32>,
    fates: Vec<Fate>,
}

impl Batch {
    pub(super) fn new(shape: &TrainingShape) -> Result<Self> {
        let &TrainingShape { d, d_out, max_tokens, .. } = shape;
        let size = max_tokens.saturating_mul(d);
        let scratch = Array::zeroed(max_tokens.div_ceil(ROWS).saturating_mul(d))?;
        Ok(Self {
            d,
            d_out,
            inputs: Array::zeroed(size)?,
            targets: Array::zeroed(if shape.subtracts_b_dec() { 0 } else { max_tokens.saturating_mul(d_out) })?,
            scratch,
            fates: try_vec(Fate::Kept, max_tokens)?,
        })
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
        let (d, d_out, count) = (self.d, self.d_out, rows.input.x.rows());
        let apart = !self.targets.is_empty();
        let mask = |row: usize| rows.mask.as_ref().is_none_or(|mask| mask.element::<i32>(row) != 0);
        let parts = (
            blocks(&mut self.inputs[..count * d], ROWS * d),
            blocks(&mut self.fates[..count], ROWS),
            blocks(&mut self.scratch[..count.div_ceil(ROWS) * d], d),
            optional(apart.then(|| blocks(&mut self.targets[..count * d_out], ROWS * d_out)), count.div_ceil(ROWS)),
        );
        let layer = d / rows.scales.len();
        for_each(pool, parts, |block, (inputs, fates, scratch, mut targets)| {
            for (i, (x, fate)) in inputs.chunks_exact_mut(d).zip(fates).enumerate() {
                let row = block * ROWS + i;
                *fate = if !mask(row) {
                    Fate::Masked
                } else {
                    read_row(&rows.input, row, scratch, x);
                    let layers = x.chunks_exact_mut(layer).zip(rows.scales);
                    layers.filter(|(_, scale)| **scale != 1.0).for_each(|(x, scale)| {
                        x.iter_mut().for_each(|v| *v *= scale);
                    });
                    let prepared = normalize_row(kernels, spec, b_dec, x);
                    // A square beyond f32 would make scores and gradients infinite, and poison the weights.
                    let mut usable = prepared != Prepared::NotFinite && kernels.dot(x, x).is_finite();
                    if let Some(targets) = &mut targets {
                        let y = &mut targets[i * d_out..(i + 1) * d_out];
                        let scale = match &rows.target {
                            Some((target, scale)) => {
                                target.read_row(row, y);
                                *scale
                            }
                            None => {
                                y.copy_from_slice(x);
                                1.0
                            }
                        };
                        y.iter_mut().zip(b_dec).for_each(|(y, b)| *y = *y * scale - b);
                        usable &= kernels.dot(y, y).is_finite();
                    }
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
                        if apart {
                            self.targets.copy_within(row * d_out..(row + 1) * d_out, sums.tokens * d_out);
                        }
                    }
                    sums.tokens += 1;
                }
                Fate::Masked => sums.tokens_masked += 1,
                Fate::NotFinite => sums.tokens_not_finite += 1,
            }
        }
        sums
    }

    /// What is to be reconstructed of so many rows.
    pub(super) fn targets(&self, tokens: usize) -> &[f32] {
        if self.targets.is_empty() { &self.inputs[..tokens * self.d] } else { &self.targets[..tokens * self.d_out] }
    }

    /// Targets of so many rows, all zero, in the place of those of a batch.
    pub(super) fn zero_targets(&mut self, tokens: usize) -> &[f32] {
        let all = if self.targets.is_empty() { &mut self.inputs } else { &mut self.targets };
        let zeros = &mut all[..tokens * self.d_out];
        zeros.fill(0.0);
        zeros
    }

    /// Takes off the targets of so many rows what a skip path gives, which is left in `skipped`.
    pub(super) fn skip(&mut self, kernels: Kernels, pool: &Pool, tokens: usize, w_skip: &[f32], skipped: &mut [f32]) {
        let (d, d_out, inputs) = (self.d, self.d_out, &self.inputs[..tokens * self.d]);
        let parts = (
            blocks(&mut self.targets[..tokens * d_out], ROWS * d_out),
            blocks(&mut skipped[..tokens * d_out], ROWS * d_out),
        );
        for_each(pool, parts, |block, (targets, skipped)| {
            let inputs = &inputs[block * ROWS * d..][..targets.len() / d_out * d];
            kernels.scores(inputs, Values::F32(w_skip), d, skipped);
            targets.iter_mut().zip(skipped).for_each(|(y, skipped)| *y -= *skipped);
        });
    }
}
