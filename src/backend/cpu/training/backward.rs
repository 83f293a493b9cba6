//! Gradients of the weights, latent by latent: the tokens where a latent is active are brought together, and its rows are
//! summed over them in the tokens' order.

use std::ops::Range;

use super::codes::Codes;
use super::forward::{Problem, Reconstruction};
use super::levels::Levels;
use super::state::{Gradient, Parameters};
use super::sums::add_column_sums;
use crate::backend::cpu::blocks::{Blocks, Optional, blocks, for_each, optional};
use crate::backend::cpu::encode::Workers;
use crate::backend::cpu::kernels::Factors;
use crate::backend::cpu::rows::Rows;
use crate::backend::training::Parameter;
use crate::error::Result;
use crate::tensor::Array;

/// Latents whose gradients one body sums.
const LATENTS: usize = 16;

/// For each latent the tokens where it is active, in their order.
pub(super) struct LatentLists {
    /// `[n + 1]`: where each latent's list starts.
    starts: Array<u32>,
    tokens: Array<u32>,
    /// Their leftovers, where each token has several.
    leftovers: Array<u32>,
    /// `−pull · z`: how much of the token's leftover goes into the gradient by W_dec.
    values: Array<f32>,
    /// The loss's gradient by the pre-activation: how much of the token goes into the gradient by W_enc.
    pulls: Array<f32>,
    /// `[extra, entries]`: gradients by the rule's own parameters.
    extras: Array<f32>,
}

impl LatentLists {
    pub(super) fn new(n_latents: usize, entries: usize, levels: usize, extra: usize) -> Result<Self> {
        Ok(Self {
            starts: Array::zeroed(n_latents + 1)?,
            tokens: Array::zeroed(entries)?,
            leftovers: Array::zeroed(if levels > 1 { entries } else { 0 })?,
            values: Array::zeroed(entries)?,
            pulls: Array::zeroed(entries)?,
            extras: Array::zeroed(entries.saturating_mul(extra))?,
        })
    }

    /// Sorts the slots of codes by latent, by counting.
    fn group(&mut self, codes: &Codes, levels: Levels<'_>, pull: f32) {
        self.starts.fill(0);
        for slot in codes.used().flat_map(|(_, slots)| slots) {
            self.starts[codes.indices[slot] as usize] += 1;
        }
        // Each start becomes its latent's end, and moves down to the start as the list is filled in from behind.
        let mut end = 0;
        for start in self.starts.iter_mut() {
            end += *start;
            *start = end;
        }
        let (count, entries) = (levels.count(), self.tokens.len());
        for (row, slots) in codes.used().rev() {
            let (used, levels) = (slots.len(), codes.levels(row, levels));
            let extras = &codes.extras[codes.extra * slots.start..][..codes.extra * used];
            for (rank, slot) in slots.enumerate() {
                let latent = codes.indices[slot];
                let start = &mut self.starts[latent as usize];
                *start -= 1;
                let place = *start as usize;
                self.tokens[place] = row as u32;
                if count > 1 {
                    self.leftovers[place] = (row * count + levels.of(rank, latent)) as u32;
                }
                (self.values[place], self.pulls[place]) = (-pull * codes.values[slot], codes.pulls[slot]);
                for extra in 0..codes.extra {
                    self.extras[extra * entries + place] = extras[extra * used + rank];
                }
            }
        }
    }

    fn of(&self, latent: usize) -> Range<usize> {
        self.starts[latent] as usize..self.starts[latent + 1] as usize
    }

    /// The sum of some entries' gradients by one of the rule's own parameters.
    fn extra_sum(&self, extra: usize, list: Range<usize>) -> f32 {
        self.extras[extra * self.tokens.len()..][list].iter().sum()
    }

    /// The leftovers of some entries.
    fn leftovers(&self, list: Range<usize>, levels: Levels<'_>) -> &[u32] {
        if levels.count() > 1 { &self.leftovers[list] } else { &self.tokens[list] }
    }
}

/// Adds the gradients of a problem's loss by what latents have.
pub(super) fn add(
    workers: &Workers<'_>,
    problem: &Problem<'_>,
    fit: &Reconstruction,
    lists: &mut LatentLists,
    gradient: &mut Gradient,
) {
    let levels = problem.levels;
    lists.group(fit.codes(), levels, problem.pull as f32);
    let (lists, kernels) = (&*lists, workers.kernels);
    let (d, d_out) = (problem.encoder.d(), gradient.sums.b_dec.len());
    let inputs = Rows::F32 { values: problem.inputs, d };
    let leftover = Rows::F32 { values: fit.weighted_leftover(levels), d: d_out };
    let extras = problem.activation.extras();
    let Gradient { sums: Parameters { w_enc, b_enc, w_dec, threshold, b_gate, r_mag, .. }, touched } = gradient;
    let count = touched.len().div_ceil(LATENTS);
    let parts = (
        blocks(w_enc, LATENTS * d),
        blocks(w_dec, LATENTS * d_out),
        blocks(b_enc, LATENTS),
        blocks(touched, LATENTS),
        (own(threshold, count), own(b_gate, count), own(r_mag, count)),
    );
    for_each(workers.pool, parts, |block, (w_enc, w_dec, b_enc, touched, (mut threshold, mut b_gate, mut r_mag))| {
        let rows = w_enc.chunks_exact_mut(d).zip(w_dec.chunks_exact_mut(d_out)).zip(b_enc).zip(touched);
        for (i, (((w_enc, w_dec), b_enc), touched)) in rows.enumerate() {
            let list = lists.of(block * LATENTS + i);
            if list.is_empty() {
                continue;
            }
            if *touched == 0 {
                *touched = 1;
                w_enc.fill(0.0);
                w_dec.fill(0.0);
            }
            let (tokens, pulls) = (&lists.tokens[list.clone()], &lists.pulls[list.clone()]);
            kernels.add_rows_at(w_enc, inputs, tokens, pulls);
            kernels.add_rows_at(w_dec, leftover, lists.leftovers(list.clone(), levels), &lists.values[list.clone()]);
            if !extras.contains(&Parameter::BEnc) {
                pulls.iter().for_each(|pull| *b_enc += pull);
            }
            for (extra, parameter) in extras.iter().enumerate() {
                let sum = lists.extra_sum(extra, list.clone());
                match parameter {
                    Parameter::Threshold => add_to(&mut threshold, i, sum),
                    Parameter::BGate => add_to(&mut b_gate, i, sum),
                    Parameter::RMag => add_to(&mut r_mag, i, sum),
                    _ => *b_enc += sum,
                }
            }
        }
    });
}

/// Blocks of sums that only some rules have.
fn own(sums: &mut [f32], count: usize) -> Optional<Blocks<'_, f32>> {
    optional((!sums.is_empty()).then(|| blocks(sums, LATENTS)), count)
}

fn add_to(sums: &mut Option<&mut [f32]>, i: usize, sum: f32) {
    if let Some(sums) = sums {
        sums[i] += sum;
    }
}

/// Adds the gradient by b_dec as far as it comes through decoding.
pub(super) fn add_bias(workers: &Workers<'_>, problem: &Problem<'_>, fit: &Reconstruction, b_dec: &mut [f32]) {
    let d = b_dec.len();
    let leftover = fit.weighted_leftover(problem.levels);
    add_column_sums(workers.pool, leftover, problem.levels.count() * d, -problem.pull, b_dec);
}

/// Adds the gradient by W_skip; `scratch` has room for `[rows, d_out]`.
pub(super) fn add_skip(
    workers: &Workers<'_>,
    problem: &Problem<'_>,
    fit: &Reconstruction,
    d_out: usize,
    scratch: &mut [f32],
    w_skip: &mut [f32],
) {
    let (d, pull, kernels) = (problem.encoder.d(), problem.pull as f32, workers.kernels);
    let leftover = fit.weighted_leftover(problem.levels);
    let scratch = &mut scratch[..problem.inputs.len() / d * d_out];
    let rows = scratch.chunks_exact_mut(d_out).zip(leftover.chunks_exact(problem.levels.count() * d_out));
    rows.for_each(|(to, from)| to.iter_mut().zip(from).for_each(|(to, from)| *to = -pull * from));
    let factors = &*scratch;
    for_each(workers.pool, blocks(w_skip, LATENTS * d), |block, w_skip| {
        let values = &factors[block * LATENTS..];
        kernels.add_rows(w_skip, problem.inputs, d, Factors { values, by_sum: 1, by_row: d_out });
    });
}
