//! Gradients of the weights, latent by latent: the tokens where a latent is active are brought together, and its rows are
//! summed over them in the tokens' order.

use std::ops::Range;

use super::codes::Codes;
use super::forward::{Problem, Reconstruction};
use super::levels::Levels;
use super::state::Gradient;
use super::sums::add_column_sums;
use crate::backend::cpu::blocks::{blocks, for_each};
use crate::backend::cpu::encode::Workers;
use crate::backend::cpu::rows::Rows;
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
}

impl LatentLists {
    pub(super) fn new(n_latents: usize, entries: usize, levels: usize) -> Result<Self> {
        Ok(Self {
            starts: Array::zeroed(n_latents + 1)?,
            tokens: Array::zeroed(entries)?,
            leftovers: Array::zeroed(if levels > 1 { entries } else { 0 })?,
            values: Array::zeroed(entries)?,
            pulls: Array::zeroed(entries)?,
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
        let count = levels.count();
        for (row, slots) in codes.used().rev() {
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
            }
        }
    }

    fn of(&self, latent: usize) -> Range<usize> {
        self.starts[latent] as usize..self.starts[latent + 1] as usize
    }

    /// The leftovers of some entries.
    fn leftovers(&self, list: Range<usize>, levels: Levels<'_>) -> &[u32] {
        if levels.count() > 1 { &self.leftovers[list] } else { &self.tokens[list] }
    }
}

/// Adds the gradients of a problem's loss by W_enc, b_enc and W_dec.
pub(super) fn add(
    workers: &Workers<'_>,
    problem: &Problem<'_>,
    fit: &Reconstruction,
    lists: &mut LatentLists,
    gradient: &mut Gradient,
) {
    let levels = problem.levels;
    lists.group(fit.codes(), levels, problem.pull as f32);
    let (lists, kernels, d) = (&*lists, workers.kernels, gradient.sums.b_dec.len());
    let inputs = Rows::F32 { values: problem.inputs, d };
    let leftover = Rows::F32 { values: fit.weighted_leftover(levels), d };
    let Gradient { sums, touched } = gradient;
    let parts = (
        blocks(&mut sums.w_enc, LATENTS * d),
        blocks(&mut sums.w_dec, LATENTS * d),
        blocks(&mut sums.b_enc, LATENTS),
        blocks(touched, LATENTS),
    );
    for_each(workers.pool, parts, |block, (w_enc, w_dec, b_enc, touched)| {
        let rows = w_enc.chunks_exact_mut(d).zip(w_dec.chunks_exact_mut(d)).zip(b_enc).zip(touched);
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
            kernels.add_rows_at(w_dec, leftover, lists.leftovers(list.clone(), levels), &lists.values[list]);
            pulls.iter().for_each(|pull| *b_enc += pull);
        }
    });
}

/// Adds the gradient by b_dec as far as it comes through decoding.
pub(super) fn add_bias(workers: &Workers<'_>, problem: &Problem<'_>, fit: &Reconstruction, b_dec: &mut [f32]) {
    let d = b_dec.len();
    let leftover = fit.weighted_leftover(problem.levels);
    add_column_sums(workers.pool, leftover, problem.levels.count() * d, -problem.pull, b_dec);
}
