//! Gradients of the weights, latent by latent: the tokens where a latent is active are brought together, and its rows are
//! summed over them in the tokens' order.

use super::blocks::{blocks, for_each};
use super::forward::{Codes, Problem, Reconstruction, add_column_sums};
use super::state::Gradient;
use crate::backend::cpu::encode::Workers;
use crate::error::Result;
use crate::tensor::Array;

/// Latents whose gradients one body sums.
const LATENTS: usize = 16;

/// For each latent the slots of codes that it fills, in the order of tokens.
pub(super) struct LatentLists {
    /// `[n + 1]`: where each latent's slots start.
    starts: Array<u32>,
    /// Positions in the codes' `[rows, width]`.
    slots: Array<u32>,
}

impl LatentLists {
    pub(super) fn new(n_latents: usize, entries: usize) -> Result<Self> {
        Ok(Self { starts: Array::zeroed(n_latents + 1)?, slots: Array::zeroed(entries)? })
    }

    /// Sorts the slots of codes by latent, by counting.
    fn group(&mut self, codes: &Codes) {
        let indices = &codes.indices[..codes.rows * codes.width];
        self.starts.fill(0);
        for &latent in indices.iter().filter(|&&latent| latent >= 0) {
            self.starts[latent as usize] += 1;
        }
        // Each start becomes its latent's end, and moves down to the start as slots are filled in from behind.
        let mut end = 0;
        for start in self.starts.iter_mut() {
            end += *start;
            *start = end;
        }
        for (slot, &latent) in indices.iter().enumerate().rev() {
            if latent >= 0 {
                let start = &mut self.starts[latent as usize];
                *start -= 1;
                self.slots[*start as usize] = slot as u32;
            }
        }
    }

    fn of(&self, latent: usize) -> &[u32] {
        &self.slots[self.starts[latent] as usize..self.starts[latent + 1] as usize]
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
    lists.group(fit.codes());
    let (lists, kernels) = (&*lists, workers.kernels);
    let Codes { width, values, pulls, .. } = fit.codes();
    let (inputs, leftover, d, pull) = (problem.inputs, fit.leftover(), gradient.sums.b_dec.len(), problem.pull as f32);
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
            let slots = lists.of(block * LATENTS + i);
            if *touched == 0 && !slots.is_empty() {
                *touched = 1;
                w_enc.fill(0.0);
                w_dec.fill(0.0);
            }
            for &slot in slots {
                let slot = slot as usize;
                let token = slot / width * d..(slot / width + 1) * d;
                kernels.axpy(-pull * values[slot], &leftover[token.clone()], w_dec);
                kernels.axpy(pulls[slot], &inputs[token], w_enc);
                *b_enc += pulls[slot];
            }
        }
    });
}

/// Adds the gradient by b_dec as far as it comes through decoding.
pub(super) fn add_bias(workers: &Workers<'_>, problem: &Problem<'_>, fit: &Reconstruction, b_dec: &mut [f32]) {
    let d = b_dec.len();
    add_column_sums(workers.pool, fit.leftover(), d, -problem.pull, b_dec);
}
