//! From rows to sparse codes, what they leave unexplained, and how the loss pulls at each code.

use super::activation::{Activation, Slots};
use super::codes::{Codes, spans};
use super::levels::Levels;
use crate::backend::cpu::Kernels;
use crate::backend::cpu::blocks::{Parts, blocks, for_each, optional};
use crate::backend::cpu::encode::{Encoded, Job, Workers, encode};
use crate::backend::cpu::encoder::Encoder;
use crate::backend::cpu::prepare::Prepared;
use crate::backend::cpu::rows::Rows;
use crate::collective::{Axis, Ranks};
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
    pub activation: Activation<'a>,
}

/// What came of a row.
#[derive(Clone, Copy, Default)]
struct Report {
    /// The square of what is left over.
    error: f64,
    /// The weighted sum of the levels' squares.
    reconstruction: f64,
    /// The square of what the gates leave over.
    gates: f64,
    /// What holds activations down, without its coefficient.
    penalty: f64,
    /// Active latents.
    active: u32,
    /// The same, where it matters of all ranks.
    l0: f32,
}

/// Sums over rows.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct FitSums {
    pub squared_error: f64,
    /// What the loss makes of the squared errors of the levels.
    pub reconstruction: f64,
    pub gates: f64,
    pub penalty: f64,
    pub active: u64,
}

impl FitSums {
    pub(super) fn add(&mut self, other: Self) {
        self.squared_error += other.squared_error;
        self.reconstruction += other.reconstruction;
        self.gates += other.gates;
        self.penalty += other.penalty;
        self.active += other.active;
    }

    /// Becomes that of all ranks. What is left over of a token is known alike to all that see it.
    pub(super) fn sum_up(&mut self, ranks: &Ranks) -> Result<()> {
        let mut own = [self.penalty, self.active as f64];
        ranks.sum_f64(Axis::Latents, &mut own)?;
        let mut all = [self.squared_error, self.reconstruction, self.gates, own[0], own[1]];
        ranks.sum_f64(Axis::Data, &mut all)?;
        [self.squared_error, self.reconstruction, self.gates, self.penalty, _] = all;
        self.active = all[4] as u64;
        Ok(())
    }
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
    slots: Slots<'a>,
    leftover: &'a mut [f32],
    levels: Levels<'a>,
    /// What [`Reconstruction::levels`] has of it.
    sums: Option<&'a mut [f32]>,
    report: &'a mut Report,
    /// As long as the leftover.
    scratch: &'a mut [f32],
}

impl Reconstruction {
    /// Makes room to tell which of a row's codes are among its largest, where other ranks hold further ones.
    pub(super) fn among_peers(mut self, ranks: &Ranks) -> Result<Self> {
        if ranks.count(Axis::Latents) > 1 {
            self.codes.firsts = Array::zeroed(self.codes.counts.len())?;
        }
        Ok(self)
    }

    /// For rows of length `d`, up to `width` codes for each, on average where spans are not all alike, with `extra` numbers
    /// more for each.
    pub(super) fn new(max_rows: usize, d: usize, width: usize, levels: usize, extra: usize) -> Result<Self> {
        let all_levels = if levels > 1 { levels } else { 0 };
        Ok(Self {
            d,
            codes: Codes::new(max_rows, width, extra)?,
            leftover: Array::zeroed(max_rows.saturating_mul(d))?,
            levels: Array::zeroed(max_rows.saturating_mul(d).saturating_mul(all_levels))?,
            reports: try_vec(Report::default(), max_rows)?,
        })
    }

    /// Encodes the inputs, up to `width` latents of each, and explains the targets by the codes.
    pub(super) fn fit(&mut self, workers: &Workers<'_>, problem: &Problem<'_>, width: usize) {
        self.encode(workers, problem, width, |row, i| row.explain(workers.kernels, problem, i));
    }

    /// Encodes the inputs alone.
    pub(super) fn encode_only(&mut self, workers: &Workers<'_>, problem: &Problem<'_>, width: usize) {
        self.encode(workers, problem, width, |_, _| ());
    }

    /// Encodes the inputs, up to `width` latents of each, and runs `body` with the scores of each row.
    fn encode(
        &mut self,
        workers: &Workers<'_>,
        problem: &Problem<'_>,
        width: usize,
        body: impl Fn(Row<'_>, usize) + Sync,
    ) {
        let &Problem { encoder, ids, inputs, levels, .. } = problem;
        let d = encoder.d();
        let rows = inputs.len() / d;
        self.codes.rows = rows;
        let Codes { starts, counts, indices, values, pulls, extras, extra, .. } = &mut self.codes;
        let (starts, extra) = (&starts[..=rows], *extra);
        let parts = (
            blocks(&mut counts[..rows], 1),
            (
                spans(indices, starts, 1),
                spans(values, starts, 1),
                spans(pulls, starts, 1),
                spans(extras, starts, extra),
            ),
            blocks(&mut self.leftover[..rows * self.d], self.d),
            several(&mut self.levels, self.d, levels, rows),
            blocks(&mut self.reports[..rows], 1),
        );
        let prepare = as_given(inputs, d);
        let sink = |encoded: Encoded<'_>, scratch: &mut [f32]| {
            // SAFETY: the encoder gives each row once, and there are as many rows as parts.
            let (count, slots, leftover, sums, report) = unsafe { parts.part(encoded.row) };
            let used = encoded.keys.len();
            let (indices, values) = (&mut slots.0[..used], &mut slots.1[..used]);
            let (pulls, extras) = (&mut slots.2[..used], &mut slots.3[..extra * used]);
            count[0] = used as u32;
            for (slot, key) in encoded.keys.iter().enumerate() {
                let latent = key.index() as u32;
                indices[slot] = ids.map_or(latent, |ids| ids[latent as usize]);
                values[slot] = key.value();
            }
            let slots = Slots { indices, values, pulls, extras };
            body(Row { slots, leftover, levels, sums, report: &mut report[0], scratch }, encoded.row);
        };
        // Found in the order they are wanted in, they need no sorting unless there were too many.
        let job = Job { encoder, rows, limit: encoder.limit(width), order: levels.order(), prepare: &prepare };
        let width = self.d;
        encode(workers, &job, &|encoded, scratch| sink(encoded, &mut scratch.sum[..width]));
    }

    /// Explains the targets by codes that are there already.
    pub(super) fn explain(&mut self, workers: &Workers<'_>, problem: &Problem<'_>) {
        self.each_row(workers, problem, |row, i| row.explain(workers.kernels, problem, i));
    }

    /// The first half of [`Self::explain`], for codes of which other ranks hold a part: what these alone add to what is left
    /// over, from the targets on where `first` says so, from zero elsewhere. Its sum over the ranks is wanted in
    /// [`Self::partial`] for the second half.
    pub(super) fn begin(&mut self, workers: &Workers<'_>, problem: &Problem<'_>, first: bool) {
        self.each_row(workers, problem, |mut row, i| {
            let start = if first { Start::Target(i) } else { Start::Zero };
            row.subtract(workers.kernels, problem, start, false);
        });
    }

    /// What [`Self::begin`] left.
    pub(super) fn partial(&mut self, levels: Levels<'_>) -> &mut [f32] {
        match levels.count() {
            1 => &mut self.leftover[..self.codes.rows * self.d],
            count => &mut self.levels[..self.codes.rows * count * self.d],
        }
    }

    /// The second half of [`Self::explain`].
    pub(super) fn finish(&mut self, workers: &Workers<'_>, problem: &Problem<'_>) {
        self.each_row(workers, problem, |mut row, _| {
            row.add_levels_up();
            row.pull(workers.kernels, problem, &[]);
        });
    }

    /// How many latents are active here of each row.
    pub(super) fn active(&self) -> impl Iterator<Item = u32> {
        self.reports[..self.codes.rows].iter().map(|report| report.active)
    }

    /// How many are active on all ranks, for penalties that ask for it.
    pub(super) fn set_l0(&mut self, l0: &[f32]) {
        self.reports.iter_mut().zip(l0).for_each(|(report, l0)| report.l0 = *l0);
    }

    /// Leaves the telling of penalties to another rank.
    pub(super) fn forget_penalties(&mut self) {
        self.reports[..self.codes.rows].iter_mut().for_each(|report| report.penalty = 0.0);
    }

    /// Runs `body` with the codes that each row has.
    fn each_row(&mut self, workers: &Workers<'_>, problem: &Problem<'_>, body: impl Fn(Row<'_>, usize) + Sync) {
        let Codes { rows, starts, counts, indices, values, pulls, extras, extra, firsts } = &mut self.codes;
        let (rows, extra, firsts) = (*rows, *extra, &*firsts);
        let starts = &starts[..=rows];
        let parts = (
            blocks(&mut counts[..rows], 1),
            (
                spans(indices, starts, 1),
                spans(values, starts, 1),
                spans(pulls, starts, 1),
                spans(extras, starts, extra),
            ),
            blocks(&mut self.leftover[..rows * self.d], self.d),
            several(&mut self.levels, self.d, problem.levels, rows),
            blocks(&mut self.reports[..rows], 1),
        );
        for_each(workers.pool, parts, |row, (count, (indices, values, pulls, extras), leftover, sums, report)| {
            let used = count[0] as usize;
            let slots = Slots {
                indices: &mut indices[..used],
                values: &mut values[..used],
                pulls: &mut pulls[..used],
                extras: &mut extras[..extra * used],
            };
            let levels = problem.levels.of_row(row, firsts);
            body(Row { slots, leftover, levels, sums, report: &mut report[0], scratch: &mut [] }, row);
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

    /// Sums over the rows.
    pub(super) fn sums(&self) -> FitSums {
        let reports = self.reports[..self.codes.rows].iter();
        let sum = |of: fn(&Report) -> f64| reports.clone().map(of).sum();
        FitSums {
            squared_error: sum(|report| report.error),
            reconstruction: sum(|report| report.reconstruction),
            gates: sum(|report| report.gates),
            penalty: sum(|report| report.penalty),
            active: reports.clone().map(|report| u64::from(report.active)).sum(),
        }
    }

    /// Of each row, the square of what is left over.
    pub(super) fn squares(&self) -> impl Iterator<Item = f64> {
        self.reports[..self.codes.rows].iter().map(|report| report.error)
    }

    /// Starts anew to count the tokens since latents fired, for those that did.
    pub(super) fn mark_fired(&self, levels: Levels<'_>, unfired: &mut [u64], threshold: f32) {
        let Codes { indices, values, .. } = &self.codes;
        for (row, slots) in self.codes.used() {
            let levels = self.codes.levels(row, levels);
            let main = levels.end(levels.main(), &indices[slots.clone()]);
            for slot in slots.take(main) {
                if values[slot].abs() > threshold {
                    unfired[indices[slot] as usize] = 0;
                }
            }
        }
    }
}

/// What codes are subtracted from.
#[derive(Clone, Copy)]
enum Start {
    /// The target of so many a row.
    Target(usize),
    Zero,
}

impl Row<'_> {
    /// From scores to activations, what they leave of the row's target, and how the loss pulls at the scores.
    fn explain(mut self, kernels: Kernels, problem: &Problem<'_>, row: usize) {
        let d = self.leftover.len();
        self.subtract(kernels, problem, Start::Target(row), true);
        self.pull(kernels, problem, &problem.targets[row * d..(row + 1) * d]);
    }

    /// From scores to activations, and what they leave of what is there; of several levels each is what is left `after` those
    /// before it, or what it adds alone.
    fn subtract(&mut self, kernels: Kernels, problem: &Problem<'_>, start: Start, after: bool) {
        let (d, levels) = (self.leftover.len(), self.levels);
        let w_dec = Rows::F32 { values: problem.w_dec, d };
        problem.activation.activate(&mut self.slots);
        let Slots { indices, values, pulls, .. } = &mut self.slots;
        let main = levels.end(levels.main(), indices);
        self.report.active = values[..main].iter().filter(|z| **z != 0.0).count() as u32;
        self.report.l0 = self.report.active as f32;
        pulls.iter_mut().zip(&**values).for_each(|(pull, z)| *pull = -z);
        let begin = |to: &mut [f32]| match start {
            Start::Target(row) => to.copy_from_slice(&problem.targets[row * d..(row + 1) * d]),
            Start::Zero => to.fill(0.0),
        };
        let Some(sums) = self.sums.as_deref_mut() else {
            begin(self.leftover);
            kernels.add_rows_at(self.leftover, w_dec, indices, pulls);
            return;
        };
        let mut first = 0;
        for level in 0..levels.count() {
            let end = levels.end(level, indices);
            let (before, rest) = sums.split_at_mut(level * d);
            let sum = &mut rest[..d];
            match level {
                0 => begin(sum),
                _ if after => sum.copy_from_slice(&before[(level - 1) * d..]),
                _ => sum.fill(0.0),
            }
            kernels.add_rows_at(sum, w_dec, &indices[first..end], &pulls[first..end]);
            first = end;
        }
    }

    /// Of several levels, from what each adds to what it leaves.
    fn add_levels_up(&mut self) {
        let (d, Some(sums)) = (self.leftover.len(), self.sums.as_deref_mut()) else { return };
        for level in 1..self.levels.count() {
            let (before, sum) = sums[(level - 1) * d..].split_at_mut(d);
            sum[..d].iter_mut().zip(before).for_each(|(sum, before)| *sum += *before);
        }
    }

    /// From what is left over to how the loss pulls at the scores; a gated SAE needs the target once more.
    fn pull(mut self, kernels: Kernels, problem: &Problem<'_>, target: &[f32]) {
        let w_dec = Rows::F32 { values: problem.w_dec, d: self.leftover.len() };
        self.multiply(kernels, w_dec);
        let Self { mut slots, report, scratch, .. } = self;
        let pull = problem.pull as f32;
        slots.pulls.iter_mut().for_each(|dot| *dot *= -pull);
        report.penalty = problem.activation.penalize(&mut slots, report.l0);
        if let Activation::Gated(gates) = problem.activation {
            report.gates = gates.explain(kernels, w_dec, pull, target, &mut slots, scratch);
        }
    }

    /// Pulls become products with what is left over: of several levels, with the weighted sum of those that a slot is part of,
    /// which takes the place of what is left over after each.
    fn multiply(&mut self, kernels: Kernels, w_dec: Rows<'_>) {
        let Self { slots: Slots { indices, pulls, .. }, leftover, levels, sums, report, .. } = self;
        let (d, levels) = (leftover.len(), *levels);
        let Some(sums) = sums else {
            report.error = f64::from(kernels.dot(leftover, leftover));
            report.reconstruction = report.error;
            kernels.dots_at(leftover, w_dec, indices, pulls);
            return;
        };
        report.reconstruction = 0.0;
        for (level, sum) in sums.chunks_exact(d).enumerate() {
            let square = f64::from(kernels.dot(sum, sum));
            report.reconstruction += f64::from(levels.weight(level)) * square;
            if level == levels.main() {
                report.error = square;
            }
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
