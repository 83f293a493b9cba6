//! AuxK: dead latents learn to explain what the others leave over.

use super::backward::{self, LatentLists};
use super::forward::{Problem, Reconstruction, squared_deviation};
use super::state::State;
use crate::backend::cpu::encode::Workers;
use crate::backend::cpu::encoder::Encoder;
use crate::backend::cpu::rows::{Rows, pick};
use crate::backend::training::{LossParameters, TrainingShape};
use crate::error::Result;
use crate::tensor::Array;

/// Rows handled at once, so that memory does not grow with the batch.
pub(super) const ROWS: usize = 512;

/// Up to this many times `k_aux` dead latents, their encoder rows are brought together once for all tokens.
const FEW: usize = 4;

/// Memory for AuxK.
pub(super) struct Aux {
    k: usize,
    rows: usize,
    fit: Reconstruction,
    /// Dead latents, ascending.
    dead: Array<u32>,
    /// Their b_enc.
    b_enc: Array<f32>,
    /// Their rows of W_enc, brought together if they are few enough.
    w_enc: Array<f32>,
}

impl Aux {
    pub(super) fn new(shape: &TrainingShape, rows: usize) -> Result<Self> {
        let n = shape.n_latents;
        let fit = Reconstruction::new(rows, shape.d, shape.k_aux)?;
        let w_enc = Array::zeroed(n.min(FEW * shape.k_aux).saturating_mul(shape.d))?;
        Ok(Self { k: shape.k_aux, rows, fit, dead: Array::zeroed(n)?, b_enc: Array::zeroed(n)?, w_enc })
    }

    /// Adds AuxK's gradients; `errors` `[T, d]` is what the main codes left of the inputs. Gives the loss.
    pub(super) fn add(
        &mut self,
        workers: &Workers<'_>,
        state: &mut State,
        lists: &mut LatentLists,
        inputs: &[f32],
        errors: &[f32],
        loss: &LossParameters,
    ) -> f64 {
        let State { weights, gradient, unfired, .. } = state;
        let d = weights.b_dec.len();
        let all_dead = (0..unfired.len()).filter(|&i| unfired[i] >= loss.dead_after_tokens);
        let mut dead = 0;
        for i in all_dead {
            (self.dead[dead], self.b_enc[dead]) = (i as u32, weights.b_enc[i]);
            dead += 1;
        }
        let deviation = if dead > 0 { squared_deviation(workers.pool, errors, d) } else { 0.0 };
        if deviation == 0.0 {
            return 0.0;
        }
        let ids = &self.dead[..dead];
        let rows = match self.w_enc.get_mut(..dead * d) {
            Some(together) => Rows::F32 { values: pick(&weights.w_enc, d, ids, together), d },
            None => Rows::Picked { values: &weights.w_enc, d, ids },
        };
        let encoder = Encoder::top_k(rows, &self.b_enc[..dead], self.k);
        // Gradients are sums over tokens that the step divides by their number; the loss is a ratio, free of it.
        let tokens = (inputs.len() / d) as f64;
        let pull = 2.0 * loss.aux_coefficient * tokens / deviation;
        let mut squares = 0.0;
        for (inputs, targets) in inputs.chunks(self.rows * d).zip(errors.chunks(self.rows * d)) {
            let problem = Problem { encoder, ids: Some(ids), inputs, targets, w_dec: &weights.w_dec, pull };
            self.fit.fit(workers, &problem);
            squares += self.fit.squared_error();
            backward::add(workers, &problem, &self.fit, lists, gradient);
        }
        loss.aux_coefficient * squares / deviation
    }
}
