//! From summed gradients to the next weights.

use super::blocks::{blocks, for_each};
use super::state::State;
use crate::backend::Pool;
use crate::backend::cpu::Kernels;
use crate::backend::training::{Parameter, StepParameters};

/// Rows of a matrix that one body updates.
const ROWS: usize = 16;
/// Columns that one body sums.
const COLUMNS: usize = 64;

/// One step; gives the gradient's global norm. Where that is not finite, or the second moment would not be (infinity is
/// then given), only the gradients are cleared.
pub(super) fn apply(kernels: Kernels, pool: &Pool, state: &mut State, d: usize, step: &StepParameters) -> f64 {
    subtract_encoder_path(kernels, pool, state, d);
    let mean = 1.0 / step.tokens as f64;
    let norm = mean * project_and_square(kernels, pool, state, d).sqrt();
    let clip = if step.clip_norm > 0.0 { (step.clip_norm / (norm + 1e-6)).min(1.0) } else { 1.0 };
    if (norm * clip).is_nan() || (norm * clip).powi(2) > f64::from(f32::MAX) {
        state.gradient.fill_zero();
        return if norm.is_nan() { norm } else { f64::INFINITY };
    }
    let adam = Adam::new(step, mean * clip);
    let State { weights, first_moment, second_moment, ema, gradient, .. } = state;
    for parameter in Parameter::ALL {
        if let Some(ema) = ema {
            average(pool, step.ema_decay as f32, weights.get(parameter), ema.get_mut(parameter), ROWS * d);
        }
        let parts = (
            blocks(weights.get_mut(parameter), ROWS * d),
            blocks(first_moment.get_mut(parameter), ROWS * d),
            blocks(second_moment.get_mut(parameter), ROWS * d),
            blocks(gradient.get_mut(parameter), ROWS * d),
        );
        for_each(pool, parts, |_, (w, m, v, g)| {
            adam.update(w, m, v, g);
            g.fill(0.0);
            if parameter == Parameter::WDec {
                w.chunks_exact_mut(d).for_each(|row| scale_to_unit(kernels, row));
            }
        });
    }
    norm
}

/// b_dec is also subtracted from the encoder's input: every pre-activation's gradient g_i reaches it as −g_i W_enc[i].
/// Summed over tokens first, that is one product.
fn subtract_encoder_path(kernels: Kernels, pool: &Pool, state: &mut State, d: usize) {
    let State { weights, gradient, .. } = state;
    let (w_enc, b_enc) = (&weights.w_enc, &gradient.b_enc);
    for_each(pool, blocks(&mut gradient.b_dec, COLUMNS), |block, b_dec| {
        for (row, &g) in w_enc.chunks_exact(d).zip(b_enc.iter()) {
            if g != 0.0 {
                let first = block * COLUMNS;
                kernels.axpy(-g, &row[first..first + b_dec.len()], b_dec);
            }
        }
    });
}

/// Removes the part of each decoder row's gradient that is parallel to the row; gives the square of the whole gradient.
fn project_and_square(kernels: Kernels, pool: &Pool, state: &mut State, d: usize) -> f64 {
    let State { weights, gradient, squares, .. } = state;
    let (w_dec, w_enc, b_enc) = (&weights.w_dec, &gradient.w_enc, &gradient.b_enc);
    let parts = (blocks(&mut gradient.w_dec, ROWS * d), blocks(&mut *squares, ROWS));
    for_each(pool, parts, |block, (gradients, squares)| {
        for (i, (gradient, square)) in gradients.chunks_exact_mut(d).zip(squares).enumerate() {
            let latent = block * ROWS + i;
            let row = latent * d..(latent + 1) * d;
            kernels.axpy(-kernels.dot(gradient, &w_dec[row.clone()]), &w_dec[row.clone()], gradient);
            *square = square_of(gradient) + square_of(&w_enc[row]) + f64::from(b_enc[latent]).powi(2);
        }
    });
    squares.iter().sum::<f64>() + square_of(&gradient.b_dec)
}

/// The sum of squares, in f64: gradients are sums over tokens, whose squares may go beyond f32 where their means' do not.
fn square_of(values: &[f32]) -> f64 {
    let (chunks, rest) = values.as_chunks::<8>();
    let mut lanes = [0.0f64; 8];
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(lane, &v)| *lane += f64::from(v) * f64::from(v));
    }
    lanes.iter().sum::<f64>() + rest.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>()
}

/// `ema = decay · ema + (1 − decay) · w`.
fn average(pool: &Pool, decay: f32, weights: &[f32], ema: &mut [f32], block: usize) {
    for_each(pool, blocks(ema, block), |i, ema| {
        for (ema, w) in ema.iter_mut().zip(&weights[i * block..]) {
            *ema = decay * *ema + (1.0 - decay) * w;
        }
    });
}

fn scale_to_unit(kernels: Kernels, row: &mut [f32]) {
    let norm = kernels.dot(row, row).sqrt();
    if norm > 0.0 && norm.is_finite() {
        row.iter_mut().for_each(|w| *w /= norm);
    }
}

/// Adam's constants for one step (Kingma and Ba 2015), bias correction included.
struct Adam {
    gradient_scale: f32,
    beta1: f32,
    beta2: f32,
    rate: f32,
    root_scale: f32,
    epsilon: f32,
}

impl Adam {
    fn new(step: &StepParameters, gradient_scale: f64) -> Self {
        let correction = |beta: f64| 1.0 - beta.powf(step.step as f64);
        Self {
            gradient_scale: gradient_scale as f32,
            beta1: step.beta1 as f32,
            beta2: step.beta2 as f32,
            rate: (step.learning_rate / correction(step.beta1)) as f32,
            root_scale: correction(step.beta2).sqrt().recip() as f32,
            epsilon: step.epsilon as f32,
        }
    }

    fn update(&self, weights: &mut [f32], first: &mut [f32], second: &mut [f32], gradient: &[f32]) {
        for (((w, m), v), g) in weights.iter_mut().zip(first).zip(second).zip(gradient) {
            let g = g * self.gradient_scale;
            *m = self.beta1 * *m + (1.0 - self.beta1) * g;
            *v = self.beta2 * *v + (1.0 - self.beta2) * g * g;
            *w -= self.rate * *m / (v.sqrt() * self.root_scale + self.epsilon);
        }
    }
}
