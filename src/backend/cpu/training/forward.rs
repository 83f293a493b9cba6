//! From rows to sparse codes, what they leave unexplained, and how the loss pulls at each code.

use super::codes::{Codes, spans};
use super::levels::Levels;
use crate::backend::cpu::Kernels;
use crate::backend::cpu::blocks::{Parts, blocks, for_each, optional};
use crate::backend::cpu::encode::{Encoded, Job, Workers, encode};
use crate::backend::cpu::encoder::Encoder;
use crate::backend::cpu::prepare::Prepared;
use crate::backend::cpu::rows::Rows;
use crate::error::Result;
use crate::tensor::{Array, try_vec};

/// Rows to encode, and what their codes shall explain. The loss is `pull / 2 · Σ (target − Σ z_i W_dec[i])²`, summed with
/// their weights over the levels.
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
    pub levels: Levels<'a>,
}

/// What came of a row.
#[derive(Clone, Copy, Default)]
struct Report {
    /// The square of what is left over.
    error: f64,
    /// The weighted sum of the levels' squares.
    reconstruction: f64,
    /// Active latents.
    active: u32,
}

/// Rows explained by codes.
pub(super) struct Reconstruction {
    d: usize,
    codes: Codes,
    /// `[rows, d]`: target − Σ z_i W_dec[i].
    leftover: Array<f32>,
    /// `[rows, levels, d]`, if there are several: for each level the weighted sum of its leftover and those after it.
    levels: Array<f32>,
    reports: Vec<Report>,
}

/// One row's part of a reconstruction, as far as its codes are in use.
struct Row<'a> {
    indices: &'a [u32],
    values: &'a [f32],
    pulls: &'a mut [f32],
    leftover: &'a mut [f32],
    levels: Option<&'a mut [f32]>,
    report: &'a mut Report,
}

impl Reconstruction {
    /// For rows of length `d`, up to `width` codes for each, on average where spans are not all alike.
    pub(super) fn new(max_rows: usize, d: usize, width: usize, levels: usize) -> Result<Self> {
        let all_levels = if levels > 1 { levels } else { 0 };
        Ok(Self {
            d,
            codes: Codes::new(max_rows, width)?,
            leftover: Array::zeroed(max_rows.saturating_mul(d))?,
            levels: Array::zeroed(max_rows.saturating_mul(d).saturating_mul(all_levels))?,
            reports: try_vec(Report::default(), max_rows)?,
        })
    }

    /// Encodes the inputs, up to `width` latents of each, and explains the targets by the codes.
    pub(super) fn fit(&mut self, workers: &Workers<'_>, problem: &Problem<'_>, width: usize) {
        let &Problem { encoder, ids, inputs, levels, .. } = problem;
        let d = encoder.d();
        let rows = inputs.len() / d;
        self.codes.rows = rows;
        let Codes { starts, counts, indices, values, pulls, .. } = &mut self.codes;
        let starts = &starts[..=rows];
        let parts = (
            (blocks(&mut counts[..rows], 1), spans(indices, starts), spans(values, starts), spans(pulls, starts)),
            blocks(&mut self.leftover[..rows * self.d], self.d),
            several(&mut self.levels, self.d, levels, rows),
            blocks(&mut self.reports[..rows], 1),
        );
        let prepare = as_given(inputs, d);
        let sink = |encoded: Encoded<'_>| {
            // SAFETY: the encoder gives each row once, and there are as many rows as parts.
            let ((count, indices, values, pulls), leftover, levels, report) = unsafe { parts.part(encoded.row) };
            let used = encoded.keys.len();
            let (indices, values, pulls) = (&mut indices[..used], &mut values[..used], &mut pulls[..used]);
            count[0] = used as u32;
            for (slot, key) in encoded.keys.iter().enumerate() {
                let latent = key.index() as u32;
                indices[slot] = ids.map_or(latent, |ids| ids[latent as usize]);
                values[slot] = key.value();
            }
            let row = Row { indices, values, pulls, leftover, levels, report: &mut report[0] };
            row.explain(workers.kernels, problem, encoded.row);
        };
        // Found in the order they are wanted in, they need no sorting unless there were too many.
        let job = Job { encoder, rows, limit: encoder.limit(width), order: levels.order(), prepare: &prepare };
        encode(workers, &job, &|encoded, _| sink(encoded));
    }

    /// Explains the targets by codes that are there already.
    pub(super) fn explain(&mut self, workers: &Workers<'_>, problem: &Problem<'_>) {
        let Codes { rows, starts, counts, indices, values, pulls } = &mut self.codes;
        let rows = *rows;
        let starts = &starts[..=rows];
        let parts = (
            (blocks(&mut counts[..rows], 1), spans(indices, starts), spans(values, starts), spans(pulls, starts)),
            blocks(&mut self.leftover[..rows * self.d], self.d),
            several(&mut self.levels, self.d, problem.levels, rows),
            blocks(&mut self.reports[..rows], 1),
        );
        for_each(workers.pool, parts, |row, ((count, indices, values, pulls), leftover, levels, report)| {
            let used = count[0] as usize;
            let (indices, values, pulls) = (&indices[..used], &values[..used], &mut pulls[..used]);
            let parts = Row { indices, values, pulls, leftover, levels, report: &mut report[0] };
            parts.explain(workers.kernels, problem, row);
        });
    }

    pub(super) fn codes(&self) -> &Codes {
        &self.codes
    }

    pub(super) fn codes_mut(&mut self) -> &mut Codes {
        &mut self.codes
    }

    pub(super) fn leftover(&self) -> &[f32] {
        &self.leftover[..self.codes.rows * self.d]
    }

    /// What the gradients are made of: for each row as many vectors as there are levels.
    pub(super) fn weighted_leftover(&self, levels: Levels<'_>) -> &[f32] {
        match levels.count() {
            1 => self.leftover(),
            count => &self.levels[..self.codes.rows * count * self.d],
        }
    }

    pub(super) fn squared_error(&self) -> f64 {
        self.reports[..self.codes.rows].iter().map(|report| report.error).sum()
    }

    /// What the loss makes of the squared errors of the levels.
    pub(super) fn reconstruction(&self) -> f64 {
        self.reports[..self.codes.rows].iter().map(|report| report.reconstruction).sum()
    }

    /// Of each row, the norm of what is left over.
    pub(super) fn error_norms(&self) -> impl Iterator<Item = f64> {
        self.reports[..self.codes.rows].iter().map(|report| report.error.sqrt())
    }

    /// How many latents are active, over all rows.
    pub(super) fn active(&self) -> u64 {
        self.reports[..self.codes.rows].iter().map(|report| u64::from(report.active)).sum()
    }

    /// Starts anew to count the tokens since latents fired, for those that did.
    pub(super) fn mark_fired(&self, levels: Levels<'_>, unfired: &mut [u64], threshold: f32) {
        let Codes { indices, values, .. } = &self.codes;
        for (_, slots) in self.codes.used() {
            let main = levels.end(levels.main(), &indices[slots.clone()]);
            for slot in slots.take(main) {
                if values[slot].abs() > threshold {
                    unfired[indices[slot] as usize] = 0;
                }
            }
        }
    }
}

impl Row<'_> {
    /// From values to what they leave of the row's target, and how the loss pulls at them.
    fn explain(self, kernels: Kernels, problem: &Problem<'_>, row: usize) {
        let Self { indices, values, pulls, leftover, levels, report } = self;
        let d = leftover.len();
        let w_dec = Rows::F32 { values: problem.w_dec, d };
        let pull = problem.pull as f32;
        leftover.copy_from_slice(&problem.targets[row * d..(row + 1) * d]);
        pulls.iter_mut().zip(values).for_each(|(pull, z)| *pull = -z);
        match levels {
            None => {
                kernels.add_rows_at(leftover, w_dec, indices, pulls);
                report.error = f64::from(kernels.dot(leftover, leftover));
                report.reconstruction = report.error;
                kernels.dots_at(leftover, w_dec, indices, pulls);
            }
            Some(sums) => explain_levels(kernels, problem.levels, w_dec, (indices, pulls), leftover, sums, report),
        }
        pulls.iter_mut().for_each(|dot| *dot *= -pull);
        let main = problem.levels.end(problem.levels.main(), indices);
        report.active = values[..main].iter().filter(|z| **z != 0.0).count() as u32;
    }
}

/// [`Row::explain`] for several reconstructions: `leftover` holds the target, `pulls` the negative values; the pulls become
/// products with the sums that `sums` is filled with.
fn explain_levels(
    kernels: Kernels,
    levels: Levels<'_>,
    w_dec: Rows<'_>,
    (indices, pulls): (&[u32], &mut [f32]),
    leftover: &mut [f32],
    sums: &mut [f32],
    report: &mut Report,
) {
    let d = leftover.len();
    report.reconstruction = 0.0;
    let mut start = 0;
    for level in 0..levels.count() {
        let end = levels.end(level, indices);
        let (before, rest) = sums.split_at_mut(level * d);
        let sum = &mut rest[..d];
        sum.copy_from_slice(if level == 0 { leftover } else { &before[(level - 1) * d..] });
        kernels.add_rows_at(sum, w_dec, &indices[start..end], &pulls[start..end]);
        let square = f64::from(kernels.dot(sum, sum));
        report.reconstruction += f64::from(levels.weight(level)) * square;
        if level == levels.main() {
            report.error = square;
        }
        start = end;
    }
    leftover.copy_from_slice(&sums[levels.main() * d..][..d]);
    for level in (0..levels.count()).rev() {
        let (sum, after) = sums[level * d..].split_at_mut(d);
        sum.iter_mut().for_each(|v| *v *= levels.weight(level));
        if level + 1 < levels.count() {
            kernels.axpy(1.0, &after[..d], sum);
        }
        let start = if level == 0 { 0 } else { levels.end(level - 1, indices) };
        let end = levels.end(level, indices);
        kernels.dots_at(sum, w_dec, &indices[start..end], &mut pulls[start..end]);
    }
}

/// The parts of the levels' sums, if there are several.
fn several<'a>(
    sums: &'a mut [f32],
    d: usize,
    levels: Levels<'_>,
    rows: usize,
) -> impl Parts<Part = Option<&'a mut [f32]>> + use<'a> {
    let (count, size) = (levels.count(), levels.count() * d);
    optional((count > 1).then(|| blocks(&mut sums[..rows * size], size)), rows)
}

/// Vectors `[rows, d]` that are prepared already, for [`Job::prepare`].
pub(super) fn as_given(rows: &[f32], d: usize) -> impl Fn(usize, &mut [f32], &mut [f32]) -> Prepared + Sync {
    move |row, x, _| {
        x.copy_from_slice(&rows[row * d..(row + 1) * d]);
        Prepared::Ready([0.0; 2])
    }
}
