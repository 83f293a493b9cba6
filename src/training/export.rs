//! What was trained, as an SAE.

use super::warm_start::{decoder_norm, scale_rows};
use super::{Export, Progress, TrainOptions};
use crate::backend::training::{Parameter, Role, Training};
use crate::collective::{Axis, Ranks};
use crate::error::{Result, fail};
use crate::sae::{Gate, Matrix, Normalization, Reference, Sae, Weights};
use crate::tensor::{Array, DType, try_vec};

/// The SAE as trained so far. What the run multiplied activations by is folded in.
pub(super) fn export(
    options: &TrainOptions,
    progress: &Progress,
    (backend, ranks): (&dyn Training, &Ranks),
    what: Export,
) -> Result<Sae> {
    let (role, correction) = match what {
        Export::Weights => (Role::Weight, 1.0),
        Export::Ema if options.no_ema => {
            return fail!(BadState, "no_ema was asked for, so there is no moving average to export");
        }
        Export::Ema if progress.step == 0 => {
            return fail!(BadState, "the moving average is empty before the first step");
        }
        Export::Ema => {
            let decay = f64::from(options.ema_decay);
            (Role::Ema, 1.0 / (1.0 - decay.powf(progress.step as f64)))
        }
    };
    let threshold = progress.threshold.value();
    if options.recipe.competes_over_batch() && threshold.is_none() {
        return fail!(
            BadState,
            "recipe {} exports the threshold that batches measure, and none with an active latent was seen yet; call step first",
            options.recipe.name()
        );
    }
    let (shape, n) = (options.shape(), options.n_latents);
    let (d, d_out) = (shape.d, shape.d_out);
    let (input, output) = (f64::from(progress.scales.input), f64::from(progress.scales.output));
    // Reads a parameter, multiplied by `factor` on the way.
    let read = |parameter: Parameter, factor: f64, values: &mut [f32]| -> Result<()> {
        read_whole((backend, ranks), (role, parameter), n, values)?;
        let factor = factor * correction;
        if factor != 1.0 {
            values.iter_mut().for_each(|v| *v = (f64::from(*v) * factor) as f32);
        }
        Ok(())
    };
    let matrix = |parameter: Parameter, factor: f64| -> Result<Array<f32>> {
        let mut values = Array::zeroed(shape.len(parameter))?;
        read(parameter, factor, &mut values)?;
        Ok(values)
    };
    let vector = |parameter: Parameter, factor: f64| -> Result<Vec<f32>> {
        let mut values = try_vec(0.0, shape.len(parameter))?;
        read(parameter, factor, &mut values)?;
        Ok(values)
    };
    // Activations are divided by the output's scale, so that decoder rows keep their norms.
    let mut w_enc = matrix(Parameter::WEnc, input / output)?;
    let mut w_dec = matrix(Parameter::WDec, 1.0)?;
    if role == Role::Ema {
        for row in w_dec.chunks_exact_mut(d_out) {
            let norm = decoder_norm(row, shape.layers);
            scale_rows(row, d_out, |_| if norm > 0.0 { 1.0 / f64::from(norm) } else { 1.0 });
        }
    }
    let (b_enc, mut b_dec) = (vector(Parameter::BEnc, 1.0 / output)?, vector(Parameter::BDec, 1.0 / output)?);
    // Of several layers, each decoder's takes its scale off, and activations stay as they were trained.
    let layers = &progress.scales.layers[..];
    if !layers.is_empty() {
        let scale = |row: usize| f64::from(layers[row % layers.len()]);
        scale_rows(&mut w_enc, d / layers.len(), scale);
        scale_rows(&mut w_dec, d / layers.len(), |row| 1.0 / scale(row));
        scale_rows(&mut b_dec, d / layers.len(), |row| 1.0 / scale(row));
    }
    let finish = |values: Array<f32>, rows, cols| Matrix::new(values.into_storage(), DType::F32, rows, cols);
    let mut weights = Weights::new(finish(w_enc, n, d)?, b_enc, finish(w_dec, n, d_out)?, b_dec);
    if options.skip {
        weights.w_skip = Some(finish(matrix(Parameter::WSkip, input / output)?, d_out, d)?);
    }
    let own = shape.rule.parameters();
    if own.contains(&Parameter::Threshold) {
        weights.threshold = Some(vector(Parameter::Threshold, 1.0 / output)?);
    }
    if own.contains(&Parameter::RMag) {
        let (r_mag, b_gate) = (vector(Parameter::RMag, 1.0)?, vector(Parameter::BGate, 1.0 / output)?);
        weights.gate = Some(Gate { r_mag, b_gate });
    }
    if let Some(threshold) = threshold {
        weights.threshold = Some(try_vec((f64::from(threshold) / output) as f32, n)?);
    }
    let mut spec = options.spec();
    // What is measured of normalised rows is not what others would measure of the inputs.
    let fvu = progress.reference.fvu.filter(|_| spec.normalization == Normalization::None);
    let measured = Reference { fvu, ..progress.reference };
    spec.convention.reference = Some(spec.convention.reference.unwrap_or_default().or(Some(measured)));
    Sae::new(spec, weights)
}

/// An SAE of few numbers whose spec is that of what resolved options make, but for its sizes.
pub(super) fn specimen(options: &TrainOptions) -> Result<Sae> {
    let prefixes: Vec<usize> = (1..=options.prefixes.len()).map(|i| 2 * i).collect();
    let n_latents = prefixes.last().map_or(2, |&last| last);
    let d_out = if options.d_out == options.d { 2 } else { 3 };
    let (k, k_start) = (options.k.min(1), options.k_start.min(1));
    let options = TrainOptions { d: 2, d_out, n_latents, prefixes, k, k_start, ..options.clone() };
    let (spec, shape) = (options.spec(), options.shape());
    let (d, d_out) = (shape.d, shape.d_out);
    let matrix = |rows: usize, cols: usize, value: f32| Matrix::from_f32(&vec![value; rows * cols], rows, cols);
    // Rows of norm 1, which thresholds need not be alike for.
    let w_dec = matrix(n_latents, d_out, (1.0 / d_out as f64).sqrt() as f32)?;
    let mut weights = Weights::new(matrix(n_latents, d, 0.5)?, vec![0.0; n_latents], w_dec, vec![0.0; d_out]);
    let own = shape.rule.parameters();
    if own.contains(&Parameter::Threshold) {
        weights.threshold = Some((0..n_latents).map(|i| 0.5 + i as f32).collect());
    } else if options.recipe.competes_over_batch() {
        weights.threshold = Some(vec![0.5; n_latents]);
    }
    if own.contains(&Parameter::RMag) {
        weights.gate = Some(Gate { r_mag: vec![0.0; n_latents], b_gate: vec![0.0; n_latents] });
    }
    if options.skip {
        weights.w_skip = Some(matrix(d_out, d, 0.5)?);
    }
    Sae::new(spec, weights)
}

/// A parameter of all `n` latents, whichever ranks hold them.
fn read_whole(
    (backend, ranks): (&dyn Training, &Ranks),
    (role, parameter): (Role, Parameter),
    n: usize,
    out: &mut [f32],
) -> Result<()> {
    if !parameter.is_of_latents() {
        return backend.read(role, parameter, out);
    }
    let d = out.len() / n;
    for place in 0..ranks.count(Axis::Latents) {
        let part = ranks.part_of(n, place);
        let rows = &mut out[part.start * d..part.end * d];
        if place == ranks.place(Axis::Latents) {
            ranks.settle(backend.read(role, parameter, rows))?;
        }
        ranks.broadcast(Axis::Latents, place, rows)?;
    }
    Ok(())
}
