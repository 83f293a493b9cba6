//! Dead latents that start anew (Bricken et al. 2023, "Towards Monosemanticity", appendix "Neuron resampling"): each takes the
//! direction of a token that is badly explained.

use super::state::{Parameters, State};
use crate::backend::cpu::Kernels;
use crate::backend::training::Resampling;
use crate::error::Result;
use crate::tensor::{Array, try_vec};

/// A new encoder row's norm, as a part of the living ones' mean.
const PART: f32 = 0.2;

/// The rows of the last batch.
pub(super) struct LastBatch<'a> {
    /// `[T, d]`.
    pub inputs: &'a [f32],
    /// `[T, d_out]`.
    pub targets: &'a [f32],
    /// `[T]`: the square of what was left over.
    pub errors: &'a [f64],
}

/// Starts dead latents anew, as many as there are tokens for; tells how many. A token is drawn for each, none twice, with a chance
/// that grows with the square of its squared error.
pub(super) fn resample(
    kernels: Kernels,
    state: &mut State,
    layers: usize,
    batch: &LastBatch<'_>,
    how: &mut Resampling<'_>,
) -> Result<usize> {
    let (n, d_out) = (state.unfired.len(), state.weights.b_dec.len());
    let d = state.weights.w_enc.len() / n;
    let is_dead = |tokens: u64| tokens >= how.dead_after_tokens;
    let (mut norms, mut alive) = (0.0, 0);
    for (row, _) in state.weights.w_enc.chunks_exact(d).zip(&*state.unfired).filter(|(_, t)| !is_dead(**t)) {
        norms += f64::from(kernels.dot(row, row)).sqrt();
        alive += 1;
    }
    let norm = if alive > 0 { PART * (norms / alive as f64) as f32 } else { PART };

    // The first of exponential times with rates as the chances, so that none is drawn twice.
    let mut times = try_vec((0.0, 0), batch.errors.len())?;
    for (row, (time, error)) in times.iter_mut().zip(batch.errors).enumerate() {
        *time = (-libm::log(1.0 - (how.draw)()) / (error * error), row);
    }
    times.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut usable = times.iter().filter(|(time, _)| time.is_finite()).map(|(_, row)| *row);
    let mut made = 0;
    for i in 0..n {
        if !is_dead(state.unfired[i]) {
            continue;
        }
        let Some(token) = usable.next() else { break };
        let input = &batch.inputs[token * d..(token + 1) * d];
        let target = &batch.targets[token * d_out..(token + 1) * d_out];
        made += usize::from(restart(kernels, state, i, (input, target, layers), norm, how));
    }
    Ok(made)
}

/// Gives one latent the directions of a token, if it has any.
fn restart(
    kernels: Kernels,
    state: &mut State,
    i: usize,
    (input, target, layers): (&[f32], &[f32], usize),
    norm: f32,
    how: &Resampling<'_>,
) -> bool {
    let norm_of = |v: &[f32]| kernels.dot(v, v).sqrt();
    let by_target = target.chunks_exact(target.len() / layers).map(norm_of).sum::<f32>();
    let by_input = norm_of(input);
    if !(by_input > 0.0 && by_target > 0.0 && by_input.is_finite() && by_target.is_finite()) {
        return false;
    }
    let State { weights, first_moment, second_moment, ema, unfired, .. } = state;
    let rows = |p: &mut Parameters, encoder: &dyn Fn(usize) -> f32, decoder: &dyn Fn(usize) -> f32, theta: f32| {
        let fill = |row: &mut [f32], value: &dyn Fn(usize) -> f32| {
            row.iter_mut().enumerate().for_each(|(j, w)| *w = value(j));
        };
        fill(&mut p.w_enc[i * input.len()..(i + 1) * input.len()], encoder);
        fill(&mut p.w_dec[i * target.len()..(i + 1) * target.len()], decoder);
        p.b_enc[i] = 0.0;
        let own = [(&mut p.threshold, theta), (&mut p.b_gate, 0.0), (&mut p.r_mag, 0.0)];
        own.into_iter().filter(|(v, _)| !v.is_empty()).for_each(|(v, value): (&mut Array<f32>, f32)| v[i] = value);
    };
    let (encoder, decoder) = (|j: usize| norm * input[j] / by_input, |j: usize| target[j] / by_target);
    rows(weights, &encoder, &decoder, how.threshold);
    for moment in [first_moment, second_moment] {
        rows(moment, &|_| 0.0, &|_| 0.0, 0.0);
    }
    if let Some(ema) = ema {
        // As if these weights had been there from the start.
        let all = how.ema_weight;
        rows(ema, &|j| all * encoder(j), &|j| all * decoder(j), all * how.threshold);
    }
    unfired[i] = 0;
    true
}
