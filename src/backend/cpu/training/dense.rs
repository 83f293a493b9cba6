//! AuxK where a good part of the dead latents is active at a time: their rows are brought together, and everything is products
//! of dense matrices. Sums are taken in the order of the sparse ones, to which a factor of zero adds nothing as long as they are
//! finite, so results are equal.

use super::aux::Leftovers;
use super::forward::as_given;
use super::state::{Gradient, Parameters};
use crate::backend::Order;
use crate::backend::cpu::blocks::{Parts, blocks, for_each};
use crate::backend::cpu::encode::{Encoded, Job, Workers, encode};
use crate::backend::cpu::encoder::Encoder;
use crate::backend::cpu::kernels::Factors;
use crate::backend::cpu::rows::{Rows, Values, pick};
use crate::error::Result;
use crate::tensor::Array;

/// Tokens that one body explains.
const TOKENS: usize = 24;
/// Latents whose gradients one body sums.
const LATENTS: usize = 48;

/// Memory for the products of some latents with some tokens.
pub(super) struct Dense {
    latents: usize,
    d: usize,
    /// `[latents, d]` each: the latents' rows, and sums of gradients by them.
    w_enc: Array<f32>,
    w_dec: Array<f32>,
    by_w_enc: Array<f32>,
    by_w_dec: Array<f32>,
    /// `[latents]`.
    by_b_enc: Array<f32>,
    /// `[tokens, latents]` each: activations, and the loss's gradient by pre-activations.
    codes: Array<f32>,
    pulls: Array<f32>,
    /// `[tokens, d]`: what is not explained, and its square for each token.
    leftover: Array<f32>,
    errors: Array<f64>,
}

impl Dense {
    /// For so many latents and tokens at once.
    pub(super) fn new(latents: usize, tokens: usize, d: usize) -> Result<Self> {
        let rows = || Array::zeroed(latents.saturating_mul(d));
        let pairs = || Array::zeroed(latents.saturating_mul(tokens));
        Ok(Self {
            latents,
            d,
            w_enc: rows()?,
            w_dec: rows()?,
            by_w_enc: rows()?,
            by_w_dec: rows()?,
            by_b_enc: Array::zeroed(latents)?,
            codes: pairs()?,
            pulls: pairs()?,
            leftover: Array::zeroed(tokens.saturating_mul(d))?,
            errors: Array::zeroed(tokens)?,
        })
    }

    /// Whether there is room for so many latents.
    pub(super) fn holds(&self, latents: usize) -> bool {
        latents <= self.latents
    }

    /// Adds the gradients. Gives the squared error.
    pub(super) fn add(
        &mut self,
        workers: &Workers<'_>,
        task: &Leftovers<'_>,
        weights: &Parameters,
        gradient: &mut Gradient,
    ) -> f64 {
        let d = self.d;
        self.begin(task.dead, weights, gradient);
        let mut squares = 0.0;
        for (inputs, targets) in task.inputs.chunks(task.rows * d).zip(task.errors.chunks(task.rows * d)) {
            self.encode(workers, task, inputs);
            squares += self.explain(workers, task, targets);
            self.sum_gradients(workers, task, inputs);
        }
        self.end(task.dead, gradient);
        squares
    }

    /// Brings the latents' rows together, and what there is of gradients by them.
    fn begin(&mut self, dead: &[u32], weights: &Parameters, gradient: &Gradient) {
        let d = self.d;
        pick(&weights.w_enc, d, dead, &mut self.w_enc);
        pick(&weights.w_dec, d, dead, &mut self.w_dec);
        let sums = self.by_w_enc.chunks_exact_mut(d).zip(self.by_w_dec.chunks_exact_mut(d)).zip(&mut *self.by_b_enc);
        for (&latent, ((by_w_enc, by_w_dec), by_b_enc)) in dead.iter().zip(sums) {
            let row = latent as usize * d..(latent as usize + 1) * d;
            if gradient.touched[latent as usize] != 0 {
                by_w_enc.copy_from_slice(&gradient.sums.w_enc[row.clone()]);
                by_w_dec.copy_from_slice(&gradient.sums.w_dec[row]);
            } else {
                by_w_enc.fill(0.0);
                by_w_dec.fill(0.0);
            }
            *by_b_enc = gradient.sums.b_enc[latent as usize];
        }
    }

    /// The latents' activations.
    fn encode(&mut self, workers: &Workers<'_>, task: &Leftovers<'_>, inputs: &[f32]) {
        let latents = task.dead.len();
        let d = self.d;
        let encoder = Encoder::top_k(Rows::F32 { values: &self.w_enc[..latents * d], d }, task.b_enc, task.k);
        let rows = inputs.len() / d;
        let codes = blocks(&mut self.codes[..rows * latents], latents);
        let prepare = as_given(inputs, d);
        let write = |encoded: Encoded<'_>| {
            // SAFETY: the encoder gives each row once, and there are as many rows as blocks.
            let codes = unsafe { codes.part(encoded.row) };
            codes.fill(0.0);
            encoded.keys.iter().for_each(|key| codes[key.index() as usize] = key.value());
        };
        let job = Job { encoder, rows, limit: encoder.limit(task.k), order: Order::Index, prepare: &prepare };
        encode(workers, &job, &|encoded, _| write(encoded));
    }

    /// What activations leave of the targets, how the loss pulls at them, and by how much leftovers go into the gradient by
    /// W_dec, in the activations' place. Gives the squared error.
    fn explain(&mut self, workers: &Workers<'_>, task: &Leftovers<'_>, targets: &[f32]) -> f64 {
        let (latents, kernels, pull) = (task.dead.len(), workers.kernels, task.pull as f32);
        let d = self.d;
        let rows = targets.len() / d;
        let w_dec = &self.w_dec[..latents * d];
        let parts = (
            blocks(&mut self.leftover[..rows * d], TOKENS * d),
            blocks(&mut self.codes[..rows * latents], TOKENS * latents),
            blocks(&mut self.pulls[..rows * latents], TOKENS * latents),
            blocks(&mut self.errors[..rows], TOKENS),
        );
        for_each(workers.pool, parts, |block, (leftover, codes, pulls, errors)| {
            leftover.copy_from_slice(&targets[block * TOKENS * d..][..leftover.len()]);
            pulls.iter_mut().zip(&*codes).for_each(|(pull, z)| *pull = -z);
            kernels.add_rows(leftover, w_dec, d, Factors { values: pulls, by_sum: latents, by_row: 1 });
            let rows = errors.iter_mut().zip(leftover.chunks_exact(d));
            rows.for_each(|(error, row)| *error = f64::from(kernels.dot(row, row)));
            kernels.scores(leftover, Values::F32(w_dec), d, pulls);
            for (z, dot) in codes.iter_mut().zip(pulls) {
                *dot = if *z == 0.0 { 0.0 } else { *dot * -pull };
                *z *= -pull;
            }
        });
        self.errors[..rows].iter().sum()
    }

    fn sum_gradients(&mut self, workers: &Workers<'_>, task: &Leftovers<'_>, inputs: &[f32]) {
        let (latents, kernels) = (task.dead.len(), workers.kernels);
        let d = self.d;
        let rows = inputs.len() / d;
        let (codes, pulls) = (&self.codes[..rows * latents], &self.pulls[..rows * latents]);
        let leftover = &self.leftover[..rows * d];
        let parts = (
            blocks(&mut self.by_w_enc[..latents * d], LATENTS * d),
            blocks(&mut self.by_w_dec[..latents * d], LATENTS * d),
            blocks(&mut self.by_b_enc[..latents], LATENTS),
        );
        for_each(workers.pool, parts, |block, (by_w_enc, by_w_dec, by_b_enc)| {
            let first = block * LATENTS;
            let of = |values| Factors { values, by_sum: 1, by_row: latents };
            kernels.add_rows(by_w_enc, inputs, d, of(&pulls[first..]));
            kernels.add_rows(by_w_dec, leftover, d, of(&codes[first..]));
            for pulls in pulls.chunks_exact(latents) {
                by_b_enc.iter_mut().zip(&pulls[first..]).for_each(|(sum, pull)| *sum += pull);
            }
        });
    }

    /// Puts the sums back where all latents' are.
    fn end(&self, dead: &[u32], gradient: &mut Gradient) {
        let d = self.d;
        for (i, &latent) in dead.iter().enumerate() {
            let (to, from) = (latent as usize * d..(latent as usize + 1) * d, i * d..(i + 1) * d);
            gradient.sums.w_enc[to.clone()].copy_from_slice(&self.by_w_enc[from.clone()]);
            gradient.sums.w_dec[to].copy_from_slice(&self.by_w_dec[from]);
            gradient.sums.b_enc[latent as usize] = self.by_b_enc[i];
            gradient.touched[latent as usize] = 1;
        }
    }
}
