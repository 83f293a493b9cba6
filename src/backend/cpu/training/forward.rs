//! From a batch to sparse codes, what they leave unexplained, and how the loss pulls at each code.

use std::ops::Range;

use crate::backend::cpu::Kernels;
use crate::backend::cpu::blocks::{Parts, blocks, for_each};
use crate::backend::cpu::encode::{Encoded, Job, Workers, encode};
use crate::backend::cpu::encoder::Encoder;
use crate::backend::cpu::prepare::{Prepared, normalize_row, read_row};
use crate::backend::cpu::rows::Rows;
use crate::backend::training::{BatchSums, TrainingRows};
use crate::backend::{Order, Pool};
use crate::error::Result;
use crate::sae::Spec;
use crate::tensor::{Array, try_vec};

/// Rows of a batch that one body reads.
const ROWS: usize = 16;
/// Columns that one body sums.
const COLUMNS: usize = 64;

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

/// Sparse codes of rows.
pub(super) struct Codes {
    /// Slots per row.
    pub width: usize,
    pub rows: usize,
    /// `[rows]`: slots in use.
    pub counts: Array<u32>,
    /// `[rows, width]`: latents, ascending.
    pub indices: Array<u32>,
    /// `[rows, width]`: their activations.
    pub values: Array<f32>,
    /// `[rows, width]`: the loss's gradient by each pre-activation.
    pub pulls: Array<f32>,
}

impl Codes {
    /// The slots in use, row by row: where they are in `[rows, width]`.
    pub(super) fn used(&self) -> impl DoubleEndedIterator<Item = (usize, Range<usize>)> {
        let start = |row: usize| row * self.width;
        self.counts[..self.rows].iter().enumerate().map(move |(row, &n)| (row, start(row)..start(row) + n as usize))
    }
}

/// Rows to encode, and what their codes shall explain. The loss is `pull / 2 · Σ (target − Σ z_i W_dec[i])²`.
#[derive(Clone, Copy)]
pub(super) struct Problem<'a> {
    pub encoder: Encoder<'a>,
    /// The latents' numbers, where the encoder holds a choice of them.
    pub ids: Option<&'a [u32]>,
    /// `[rows, d]`.
    pub inputs: &'a [f32],
    /// `[rows, d]`.
    pub targets: &'a [f32],
    /// `[n, d]`.
    pub w_dec: &'a [f32],
    pub pull: f64,
}

/// Rows explained by codes.
pub(super) struct Reconstruction {
    d: usize,
    codes: Codes,
    /// `[rows, d]`: target − Σ z_i W_dec[i].
    leftover: Array<f32>,
    /// `[rows]`: its square.
    errors: Array<f64>,
}

impl Reconstruction {
    pub(super) fn new(max_rows: usize, d: usize, width: usize) -> Result<Self> {
        let slots = max_rows.saturating_mul(width);
        Ok(Self {
            d,
            codes: Codes {
                width,
                rows: 0,
                counts: Array::zeroed(max_rows)?,
                indices: Array::zeroed(slots)?,
                values: Array::zeroed(slots)?,
                pulls: Array::zeroed(slots)?,
            },
            leftover: Array::zeroed(max_rows.saturating_mul(d))?,
            errors: Array::zeroed(max_rows)?,
        })
    }

    /// Encodes the inputs and explains the targets by the codes.
    pub(super) fn fit(&mut self, workers: &Workers<'_>, problem: &Problem<'_>) {
        let &Problem { encoder, ids, inputs, targets, w_dec, pull } = problem;
        let (d, width, kernels) = (self.d, self.codes.width, workers.kernels);
        let rows = inputs.len() / d;
        self.codes.rows = rows;
        let pull = pull as f32;
        let w_dec = Rows::F32 { values: w_dec, d };
        let parts = (
            (
                blocks(&mut self.codes.counts[..rows], 1),
                blocks(&mut self.codes.indices[..rows * width], width),
                blocks(&mut self.codes.values[..rows * width], width),
                blocks(&mut self.codes.pulls[..rows * width], width),
            ),
            blocks(&mut self.leftover[..rows * d], d),
            blocks(&mut self.errors[..rows], 1),
        );
        let prepare = as_given(inputs, d);
        let explain = |encoded: Encoded<'_>| {
            let row = encoded.row;
            // SAFETY: the encoder gives each row once, and there are as many rows as blocks.
            let ((count, indices, values, pulls), leftover, error) = unsafe { parts.part(row) };
            let used = encoded.keys.len();
            let (indices, values, pulls) = (&mut indices[..used], &mut values[..used], &mut pulls[..used]);
            count[0] = used as u32;
            for (slot, key) in encoded.keys.iter().enumerate() {
                let latent = key.index() as u32;
                indices[slot] = ids.map_or(latent, |ids| ids[latent as usize]);
                (values[slot], pulls[slot]) = (key.value(), -key.value());
            }
            leftover.copy_from_slice(&targets[row * d..(row + 1) * d]);
            kernels.add_rows_at(leftover, w_dec, indices, pulls);
            error[0] = f64::from(kernels.dot(leftover, leftover));
            kernels.dots_at(leftover, w_dec, indices, pulls);
            pulls.iter_mut().for_each(|dot| *dot *= -pull);
        };
        // Found in this order, they need no sorting unless there were too many.
        let job = Job { encoder, rows, limit: encoder.limit(width), order: Order::Index, prepare: &prepare };
        encode(workers, &job, &|encoded, _| explain(encoded));
    }

    pub(super) fn codes(&self) -> &Codes {
        &self.codes
    }

    pub(super) fn leftover(&self) -> &[f32] {
        &self.leftover[..self.codes.rows * self.d]
    }

    pub(super) fn squared_error(&self) -> f64 {
        self.errors[..self.codes.rows].iter().sum()
    }

    /// Of each row, the norm of what is left over.
    pub(super) fn error_norms(&self) -> impl Iterator<Item = f64> {
        self.errors[..self.codes.rows].iter().map(|e| e.sqrt())
    }

    /// How many slots are in use.
    pub(super) fn active(&self) -> u64 {
        self.codes.counts[..self.codes.rows].iter().map(|&n| u64::from(n)).sum()
    }

    /// Counts the rows' tokens for latents that did not fire, and starts anew for those that did.
    pub(super) fn mark_fired(&self, unfired: &mut [u64], threshold: f32) {
        let Codes { rows, indices, values, .. } = &self.codes;
        unfired.iter_mut().for_each(|tokens| *tokens = tokens.saturating_add(*rows as u64));
        for slot in self.codes.used().flat_map(|(_, slots)| slots) {
            if values[slot] > threshold {
                unfired[indices[slot] as usize] = 0;
            }
        }
    }
}

/// Vectors `[rows, d]` that are prepared already, for [`Job::prepare`].
pub(super) fn as_given(rows: &[f32], d: usize) -> impl Fn(usize, &mut [f32], &mut [f32]) -> Prepared + Sync {
    move |row, x, _| {
        x.copy_from_slice(&rows[row * d..(row + 1) * d]);
        Prepared::Ready([0.0; 2])
    }
}

/// `Σ (x − mean_rows(x))²` over `[T, d]`, T at least 1.
pub(super) fn squared_deviation(pool: &Pool, rows: &[f32], d: usize) -> f64 {
    let mut sums = vec![0.0f64; d.div_ceil(COLUMNS)];
    for_each(pool, blocks(&mut sums, 1), |block, sum| {
        let columns = block * COLUMNS..((block + 1) * COLUMNS).min(d);
        let mut mean = [0.0f64; COLUMNS];
        column_sums(rows, d, columns.clone(), &mut mean);
        let count = (rows.len() / d) as f64;
        mean.iter_mut().for_each(|m| *m /= count);
        let mut squares = [0.0f64; COLUMNS];
        for row in rows.chunks_exact(d) {
            for ((square, mean), &x) in squares.iter_mut().zip(&mean).zip(&row[columns.clone()]) {
                *square += (f64::from(x) - mean) * (f64::from(x) - mean);
            }
        }
        sum[0] = squares.iter().sum();
    });
    sums.iter().sum()
}

/// Adds up some columns of `[T, d]`.
fn column_sums(rows: &[f32], d: usize, columns: std::ops::Range<usize>, sums: &mut [f64; COLUMNS]) {
    for row in rows.chunks_exact(d) {
        for (sum, &x) in sums.iter_mut().zip(&row[columns.clone()]) {
            *sum += f64::from(x);
        }
    }
}

/// `out += factor · Σ_rows x`, over `[T, d]`.
pub(super) fn add_column_sums(pool: &Pool, rows: &[f32], d: usize, factor: f64, out: &mut [f32]) {
    for_each(pool, blocks(out, COLUMNS), |block, out| {
        let mut sums = [0.0f64; COLUMNS];
        column_sums(rows, d, block * COLUMNS..block * COLUMNS + out.len(), &mut sums);
        for (out, sum) in out.iter_mut().zip(sums) {
            *out += (factor * sum) as f32;
        }
    });
}
