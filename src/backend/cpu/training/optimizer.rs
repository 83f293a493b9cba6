//! From summed gradients to the next weights: once over the gradients to know their norm, once over everything to apply
//! them, and to round the encoder's rows to bytes while they are at hand.

use super::state::{Gradient, MEASURED, Measures, Parameters, State};
use crate::backend::Pool;
use crate::backend::cpu::Kernels;
use crate::backend::cpu::blocks::{blocks, for_each, optional, panels};
use crate::backend::cpu::kernels::Loop;
use crate::backend::cpu::rounding::Round;
use crate::backend::training::{Parameter, StepParameters, TrainingShape};
use crate::collective::{Axis, Ranks};
use crate::error::Result;
use crate::sae::int8::PANEL;

/// Rows of a matrix that one body updates.
const ROWS: usize = PANEL;

/// One step; gives the gradient's global norm. Where that is not finite, or the second moment would not be (infinity is
/// then given), only the gradients are cleared.
pub(super) fn apply(
    kernels: Kernels,
    pool: &Pool,
    state: &mut State,
    shape: &TrainingShape,
    step: &StepParameters,
    ranks: &Ranks,
) -> Result<f64> {
    state.gradient.sum_up(ranks)?;
    let mean = 1.0 / step.tokens as f64;
    let norm = mean * measure(kernels, pool, state, shape, ranks)?.sqrt();
    let clip = if step.clip_norm > 0.0 { (step.clip_norm / (norm + 1e-6)).min(1.0) } else { 1.0 };
    if (norm * clip).is_nan() || (norm * clip).powi(2) > f64::from(f32::MAX) {
        state.gradient.clear();
        return Ok(if norm.is_nan() { norm } else { f64::INFINITY });
    }
    let adam = Adam::new(step, mean * clip);
    let State { weights, first_moment, second_moment, ema, int8, gradient, measures, .. } = state;
    let Gradient { sums, touched } = gradient;
    for parameter in shape.parameters() {
        // Without a gradient ever, moments stay zero and weights as they are; the moving average takes them in.
        let frozen = shape.frozen.contains(&parameter);
        let (d, layers) = if parameter == Parameter::WDec { (shape.d_out, shape.layers) } else { (shape.d, 1) };
        let g = sums.get(parameter);
        let count = g.len().div_ceil(ROWS * d);
        let bytes = int8.as_mut().filter(|_| parameter == Parameter::WEnc).map(panels);
        let parts = (
            blocks(weights.get_mut(parameter), ROWS * d),
            blocks(first_moment.get_mut(parameter), ROWS * d),
            blocks(second_moment.get_mut(parameter), ROWS * d),
            optional(ema.as_mut().map(|ema| blocks(ema.get_mut(parameter), ROWS * d)), count),
            optional(bytes, count),
        );
        for_each(pool, parts, |block, (w, m, v, mut ema, panel)| {
            let rows = w.chunks_mut(d).zip(m.chunks_mut(d)).zip(v.chunks_mut(d));
            for (i, ((w, m), v)) in rows.enumerate() {
                let row = block * ROWS + i;
                let ema = ema.as_mut().map(|ema| &mut ema[i * d..i * d + w.len()]);
                let g = Some(&g[row * d..row * d + w.len()]).filter(|_| !frozen);
                let (g, parallel) = match parameter {
                    Parameter::WEnc => (g.filter(|_| touched[row] != 0), &[0.0][..]),
                    Parameter::WDec => {
                        (g.filter(|_| touched[row] != 0), &measures.parallel[row * layers..(row + 1) * layers])
                    }
                    _ => (g, &[0.0][..]),
                };
                kernels.run(Update { adam: &adam, w, m, v, ema, g, parallel });
                if parameter == Parameter::Threshold {
                    w.iter_mut().for_each(|threshold| *threshold = threshold.max(0.0));
                }
                if parameter == Parameter::WDec && !frozen {
                    let norm = w.chunks_exact(d / layers).map(|w| kernels.dot(w, w).sqrt()).sum::<f32>();
                    if norm > 0.0 && norm.is_finite() {
                        kernels.run(Divide { row: w, by: norm });
                    }
                }
            }
            if let Some(panel) = panel {
                kernels.run(Round { panel, rows: w, d });
            }
        });
    }
    state.gradient.clear();
    Ok(norm)
}

/// Completes the gradient by b_dec, and finds what of each decoder row's gradient would change the row's norm, which is not to
/// be applied; gives the square of the gradient without it.
///
/// Of an autoencoder, b_dec is also subtracted from the encoder's input: every pre-activation's gradient g_i reaches it as −g_i W_enc[i].
/// Summed over tokens first, that is one product.
fn measure(kernels: Kernels, pool: &Pool, state: &mut State, shape: &TrainingShape, ranks: &Ranks) -> Result<f64> {
    let State { weights, gradient: Gradient { sums, touched }, measures, derived, .. } = state;
    let Measures { parallel, squares, paths } = measures;
    let Parameters { w_enc, b_enc, w_dec, b_dec, threshold, b_gate, r_mag, w_skip } = sums;
    let touched = &*touched;
    let (d, d_out) = (shape.d, shape.d_out);
    let trained = |parameter: Parameter| !shape.frozen.contains(&parameter);
    let square_of = |parameter: Parameter, g: &[f32], w: &[f32], parallel: &[f32]| {
        if trained(parameter) { kernels.run(Square { g, w, parallel }) } else { 0.0 }
    };
    let layers = shape.layers;
    let parts = (blocks(parallel, MEASURED * layers), blocks(squares, 1), blocks(paths, d));
    for_each(pool, parts, |block, (parallel, square, path)| {
        path.fill(0.0);
        square[0] = 0.0;
        for (latent, parallel) in (block * MEASURED..).zip(parallel.chunks_exact_mut(layers)) {
            if touched[latent] == 0 {
                continue;
            }
            let (row, row_out) = (latent * d..(latent + 1) * d, latent * d_out..(latent + 1) * d_out);
            let (encoder, decoder) = (&weights.w_enc[row.clone()], &weights.w_dec[row_out.clone()]);
            along(kernels, &w_dec[row_out.clone()], decoder, parallel);
            let one = latent..latent + 1;
            square[0] += square_of(Parameter::WDec, &w_dec[row_out], decoder, parallel)
                + square_of(Parameter::WEnc, &w_enc[row], encoder, &[0.0])
                + square_of(Parameter::BEnc, &b_enc[one.clone()], &b_enc[one.clone()], &[0.0]);
            let own = [(Parameter::Threshold, &*threshold), (Parameter::BGate, b_gate), (Parameter::RMag, r_mag)];
            for (parameter, g) in own.into_iter().filter(|(_, g)| !g.is_empty()) {
                square[0] += square_of(parameter, &g[one.clone()], &g[one.clone()], &[0.0]);
            }
            // Of a gated SAE, both the magnitude and the gate hold the encoder's product.
            let by_product =
                if b_gate.is_empty() { b_enc[latent] } else { derived[latent] * b_enc[latent] + b_gate[latent] };
            kernels.axpy(-by_product, encoder, path);
        }
    });
    if shape.subtracts_b_dec() {
        // Of several ranks each has its own latents' paths, which b_dec, the same on all, gets together.
        let (first, rest) = paths.split_at_mut(d);
        let together = ranks.count(Axis::Latents) > 1;
        let to: &mut [f32] = if together {
            &mut *first
        } else {
            add(b_dec, first);
            &mut *b_dec
        };
        rest.chunks_exact(d).for_each(|path| add(to, path));
        if together {
            ranks.sum(Axis::Latents, first)?;
            add(b_dec, first);
        }
    }
    let mut square = [squares.iter().sum::<f64>()];
    ranks.sum_f64(Axis::Latents, &mut square)?;
    Ok(square[0]
        + square_of(Parameter::BDec, b_dec, b_dec, &[0.0])
        + square_of(Parameter::WSkip, w_skip, w_skip, &[0.0]))
}

fn add(to: &mut [f32], from: &[f32]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
}

/// Of a decoder row of norm 1, how much of each layer is to be taken off the gradient, so that the rest does not change the
/// norm, which is the sum of the layers': their directions are its gradient.
fn along(kernels: Kernels, g: &[f32], w: &[f32], out: &mut [f32]) {
    if let [whole] = out {
        *whole = kernels.dot(g, w);
        return;
    }
    let d = w.len() / out.len();
    let (mut change, mut count) = (0.0, 0);
    for ((norm, g), w) in out.iter_mut().zip(g.chunks_exact(d)).zip(w.chunks_exact(d)) {
        *norm = kernels.dot(w, w).sqrt();
        if *norm > 0.0 {
            change += kernels.dot(g, w) / *norm;
            count += 1;
        }
    }
    // A layer that is zero has no direction.
    let share = change / count.max(1) as f32;
    out.iter_mut().for_each(|norm| *norm = if *norm > 0.0 { share / *norm } else { 0.0 });
}

/// The square of `g − parallel · w`, each layer with its own factor, in f64: gradients are sums over tokens, whose squares may go
/// beyond f32 where their means' do not.
struct Square<'a> {
    g: &'a [f32],
    w: &'a [f32],
    parallel: &'a [f32],
}

impl Loop for Square<'_> {
    type Output = f64;

    #[inline(always)]
    fn run(self) -> f64 {
        let d = (self.g.len() / self.parallel.len()).max(1);
        let layers = self.g.chunks_exact(d).zip(self.w.chunks_exact(d)).zip(self.parallel);
        let squares = layers.map(|((g, w), parallel)| {
            let square = |g: f32, w: f32| f64::from(g - parallel * w).powi(2);
            let (g, g_rest) = g.as_chunks::<8>();
            let (w, w_rest) = w.as_chunks::<8>();
            let mut lanes = [0.0f64; 8];
            for (g, w) in g.iter().zip(w) {
                for l in 0..8 {
                    lanes[l] += square(g[l], w[l]);
                }
            }
            lanes.iter().sum::<f64>() + g_rest.iter().zip(w_rest).map(|(&g, &w)| square(g, w)).sum::<f64>()
        });
        squares.sum()
    }
}

/// Adam's constants for one step (Kingma and Ba 2015), bias correction included, and the moving average's.
struct Adam {
    gradient_scale: f32,
    beta1: f32,
    beta2: f32,
    rate: f32,
    root_scale: f32,
    epsilon: f32,
    ema_decay: f32,
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
            ema_decay: step.ema_decay as f32,
        }
    }

    #[inline(always)]
    fn update(&self, w: &mut f32, m: &mut f32, v: &mut f32, g: f32) {
        *m = self.beta1 * *m + (1.0 - self.beta1) * g;
        *v = self.beta2 * *v + (1.0 - self.beta2) * g * g;
        *w -= self.rate * *m / (v.sqrt() * self.root_scale + self.epsilon);
    }
}

/// The moving average of some weights, then Adam's step by `g − parallel · w`, each layer with its own factor, or by zero.
struct Update<'a> {
    adam: &'a Adam,
    w: &'a mut [f32],
    m: &'a mut [f32],
    v: &'a mut [f32],
    ema: Option<&'a mut [f32]>,
    g: Option<&'a [f32]>,
    parallel: &'a [f32],
}

impl Loop for Update<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { adam, w, m, v, ema, g, parallel } = self;
        let decay = adam.ema_decay;
        for (ema, w) in ema.unwrap_or_default().iter_mut().zip(w.iter()) {
            *ema = decay * *ema + (1.0 - decay) * w;
        }
        let Some(g) = g else {
            w.iter_mut().zip(m).zip(v).for_each(|((w, m), v)| adam.update(w, m, v, 0.0));
            return;
        };
        let d = g.len() / parallel.len();
        let (w, m, v) = (w.chunks_exact_mut(d), m.chunks_exact_mut(d), v.chunks_exact_mut(d));
        for ((((w, m), v), g), parallel) in w.zip(m).zip(v).zip(g.chunks_exact(d)).zip(parallel) {
            for (((w, m), v), g) in w.iter_mut().zip(m).zip(v).zip(g) {
                let g = (g - parallel * *w) * adam.gradient_scale;
                adam.update(w, m, v, g);
            }
        }
    }
}

/// Divides a row by its norm.
struct Divide<'a> {
    row: &'a mut [f32],
    by: f32,
}

impl Loop for Divide<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        self.row.iter_mut().for_each(|w| *w /= self.by);
    }
}
