//! AuxK: dead latents learn to explain what the others leave over.

use super::activation::Activation;
use super::backward::{self, LatentLists};
use super::dense::Dense;
use super::forward::{Problem, Reconstruction};
use super::levels::Levels;
use super::peers::Peers;
use super::state::{Gradient, Parameters, State};
use super::sums::squared_deviation;
use crate::backend::cpu::encode::Workers;
use crate::backend::cpu::encoder::Encoder;
use crate::backend::cpu::rows::Rows;
use crate::backend::cpu::select::Selection;
use crate::backend::training::{LossParameters, Rule, TrainingShape};
use crate::collective::{Axis, Ranks};
use crate::error::Result;
use crate::tensor::Array;

/// Rows handled at once, so that memory does not grow with the batch.
pub(super) const ROWS: usize = 512;

/// Of up to this many times `k_aux` dead latents, so large a share is active that dense products are sooner done.
const FEW: usize = 4;

/// Memory for AuxK.
pub(super) struct Aux {
    k: usize,
    rows: usize,
    /// Whether negative pre-activations count as much.
    signed: bool,
    fit: Reconstruction,
    dense: Dense,
    /// Dead latents, ascending.
    dead: Array<u32>,
    /// Their b_enc.
    b_enc: Array<f32>,
}

/// What dead latents shall explain.
#[derive(Clone, Copy)]
pub(super) struct Leftovers<'a> {
    /// The latents' numbers, ascending, and their b_enc.
    pub dead: &'a [u32],
    pub b_enc: &'a [f32],
    /// How many of them may be active.
    pub k: usize,
    /// `[T, d]`: the encoder's.
    pub inputs: &'a [f32],
    /// `[T, d]`: what the main codes left of them.
    pub errors: &'a [f32],
    /// As in [`Problem`].
    pub pull: f64,
    /// Rows handled at once.
    pub rows: usize,
}

/// A batch as the main codes left it.
#[derive(Clone, Copy)]
pub(super) struct Explained<'a> {
    /// `[T, d]`: the encoder's inputs.
    pub inputs: &'a [f32],
    /// `[T, d_out]`: what is left over.
    pub errors: &'a [f32],
    /// Tokens of all ranks.
    pub tokens: usize,
    /// Dead latents of all ranks.
    pub dead: usize,
}

impl Aux {
    pub(super) fn new(shape: &TrainingShape, rows: usize, ranks: &Ranks) -> Result<Self> {
        let n = shape.n_latents;
        let signed = shape.rule == Rule::AbsTopK;
        let fit = Reconstruction::new(rows, shape.d_out, shape.k_aux.min(n), 1, 0)?.among_peers(ranks)?;
        // Dense products are by positive activations alone, of rows of one length, and of all dead latents.
        let sparse = signed || shape.d_out != shape.d || ranks.count(Axis::Latents) > 1;
        let dense = Dense::new(if sparse { 0 } else { n.min(FEW * shape.k_aux) }, rows, shape.d)?;
        Ok(Self { k: shape.k_aux, rows, signed, fit, dense, dead: Array::zeroed(n)?, b_enc: Array::zeroed(n)? })
    }

    /// Adds AuxK's gradients. Gives the loss.
    pub(super) fn add(
        &mut self,
        workers: &Workers<'_>,
        state: &mut State,
        lists: &mut LatentLists,
        batch: &Explained<'_>,
        loss: &LossParameters,
        peers: &mut Peers,
    ) -> Result<f64> {
        let State { weights, gradient, unfired, .. } = state;
        let &Explained { inputs, errors, tokens, dead: all_dead } = batch;
        let d_out = weights.b_dec.len();
        let of_rank = (0..unfired.len()).filter(|&i| unfired[i] >= loss.dead_after_tokens);
        let mut dead = 0;
        for i in of_rank {
            (self.dead[dead], self.b_enc[dead]) = (i as u32, weights.b_enc[i]);
            dead += 1;
        }
        let deviation =
            if all_dead > 0 { squared_deviation(workers.pool, errors, d_out, tokens, &peers.ranks)? } else { 0.0 };
        if deviation == 0.0 {
            return Ok(0.0);
        }
        // Gradients are sums over tokens that the step divides by their number; the loss is a ratio, free of it.
        let task = Leftovers {
            dead: &self.dead[..dead],
            b_enc: &self.b_enc[..dead],
            k: self.k,
            inputs,
            errors,
            pull: 2.0 * loss.aux_coefficient * tokens as f64 / deviation,
            rows: self.rows,
        };
        let squares = if dead > 0 && self.dense.holds(dead) {
            self.dense.add(workers, &task, weights, gradient)
        } else {
            let selection = if self.signed { Selection::AbsTopK(self.k) } else { Selection::TopK(self.k) };
            add_sparse(workers, &task, selection, weights, gradient, (&mut self.fit, lists, peers))?
        };
        let mut squares = [squares];
        peers.ranks.sum_f64(Axis::Data, &mut squares)?;
        Ok(loss.aux_coefficient * squares[0] / deviation)
    }
}

/// Adds the gradients where only few of the dead latents are active. Gives the squared error.
fn add_sparse(
    workers: &Workers<'_>,
    task: &Leftovers<'_>,
    selection: Selection,
    weights: &Parameters,
    gradient: &mut Gradient,
    (fit, lists, peers): (&mut Reconstruction, &mut LatentLists, &mut Peers),
) -> Result<f64> {
    let &Leftovers { dead: ids, b_enc, k, inputs, errors, pull, rows } = task;
    let d_out = weights.b_dec.len();
    let d = weights.w_enc.len() / weights.b_enc.len();
    let rows_of = Rows::Picked { values: &weights.w_enc, d, ids };
    let encoder = Encoder { selection, ..Encoder::top_k(rows_of, b_enc, k) };
    let mut squares = 0.0;
    for (inputs, targets) in inputs.chunks(rows * d).zip(errors.chunks(rows * d_out)) {
        let w_dec = &weights.w_dec;
        let (levels, activation) = (Levels::One, Activation::Score);
        let problem = Problem { encoder, ids: Some(ids), inputs, targets, w_dec, pull, levels, activation };
        peers.fit(workers, &problem, k, fit)?;
        squares += fit.sums().squared_error;
        backward::add(workers, &problem, fit, lists, gradient);
    }
    Ok(squares)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Pool;
    use crate::backend::cpu::Kernels;
    use crate::backend::cpu::scratch::{Plan, Slots};
    use crate::backend::training::Parameter;
    use crate::tensor::AlignedBytes;

    /// Numbers that look random, some of them equal, so that pre-activations tie.
    fn numbers(seed: usize, count: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 7919 + seed * 104_729) % 1013) as f32 / 506.0 - 1.0).collect()
    }

    /// The loss, and all gradients, after two batches, the first of which already touched some of the dead latents.
    fn gradients(shape: &TrainingShape, kernels: Kernels, threads: usize, dense: bool) -> (Vec<f64>, Vec<Vec<f32>>) {
        let &TrainingShape { d, n_latents: n, k_aux, max_tokens, .. } = shape;
        let pool = Pool::new(threads).unwrap();
        let plan = Plan { d, limit: k_aux, width: 0, tokens: max_tokens, screen: None };
        let mut memory = AlignedBytes::zeroed(plan.bytes() * threads).unwrap();
        let mut state = State::zeroed(shape).unwrap();
        for (seed, parameter) in Parameter::COMMON.into_iter().enumerate() {
            let values = state.weights.get_mut(parameter);
            let count = values.len();
            values.copy_from_slice(&numbers(seed, count));
        }
        state.unfired.iter_mut().enumerate().for_each(|(i, tokens)| *tokens = (i % 3) as u64);
        state.gradient.touched[1] = 1;
        state.gradient.sums.w_enc[d..2 * d].fill(0.25);
        // Fewer rows at a time than the batch has.
        let rows = max_tokens / 3 + 1;
        let ranks = Ranks::alone();
        let mut aux = Aux::new(shape, rows, &ranks).unwrap();
        let mut peers = Peers::new(ranks, shape, rows, k_aux).unwrap();
        if !dense {
            aux.dense = Dense::new(0, rows, d).unwrap();
        }
        let mut lists = LatentLists::new(n, rows * k_aux, 1, 0).unwrap();
        let loss = LossParameters {
            k: 0,
            normalizer: 1.0,
            aux_coefficient: 0.5,
            sparsity_coefficient: 0.0,
            fired: 0.0,
            dead_after_tokens: 1,
        };
        let losses = [5, 6].map(|seed| {
            let slots = Slots::new(memory.as_mut_slice(), plan);
            let workers = Workers { kernels, pool: &pool, slots: &slots };
            let (inputs, errors) = (numbers(seed, max_tokens * d), numbers(seed + 10, max_tokens * d));
            let dead = state.unfired.iter().filter(|tokens| **tokens >= 1).count();
            let batch = Explained { inputs: &inputs, errors: &errors, tokens: max_tokens, dead };
            aux.add(&workers, &mut state, &mut lists, &batch, &loss, &mut peers).unwrap()
        });
        let read = |parameter: Parameter| {
            let mut values = vec![0.0; shape.len(parameter)];
            state.gradient.read(parameter, &mut values);
            values
        };
        (losses.to_vec(), Parameter::COMMON.map(read).to_vec())
    }

    #[test]
    fn dense_products_give_what_sparse_ones_give() {
        for (tokens, d, n, k_aux) in [(7, 5, 9, 3), (70, 33, 120, 20), (150, 64, 300, 64), (31, 130, 45, 30)] {
            let shape = TrainingShape { k_aux, max_tokens: tokens, ..TrainingShape::top_k(1, d, n) };
            let expected = gradients(&shape, Kernels::named("scalar").unwrap(), 1, false);
            assert!(expected.0.iter().all(|loss| *loss > 0.0));
            for kernels in Kernels::all_supported() {
                for threads in [1, 3] {
                    for dense in [false, true] {
                        let found = gradients(&shape, kernels, threads, dense);
                        assert!(found == expected, "{shape:?}, {}, {threads} threads, dense: {dense}", kernels.name);
                    }
                }
            }
        }
    }
}
