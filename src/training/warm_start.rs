//! The weights of an SAE as those of a run.

use super::TrainOptions;
use super::options::written;
use super::stats::Scales;
use crate::backend::training::{Parameter, Role, Training};
use crate::error::{Result, fail};
use crate::sae::{Matrix, Normalization, Sae};
use crate::tensor::{Array, DType};

/// Refuses an SAE of which a run would not keep everything, and one that its recipe does not train.
pub(super) fn check(sae: &Sae, options: &TrainOptions) -> Result<()> {
    let (spec, ours) = (sae.spec(), options.spec());
    if spec.is_shard() {
        let (first, whole) = (spec.first_latent, spec.whole_latents());
        return fail!(
            Unsupported,
            "model: is a shard, latents {first}..+{} of {whole}; train on the whole SAE",
            spec.n_latents
        );
    }
    if (spec.layers_in, spec.layers_out) != (ours.layers_in, ours.layers_out) {
        let (found, wanted) = ([spec.layers_in, spec.layers_out], options.layers);
        return fail!(InvalidArgument, "model: reads and writes layers {found:?}, the run {wanted} (layers)");
    }
    if (spec.d_in, spec.d_out, spec.n_latents) != (ours.d_in, ours.d_out, ours.n_latents) {
        return fail!(
            InvalidArgument,
            "model: d_in {}, d_out {} and n_latents {} do not fit a run of d {}, d_out {} and n_latents {}",
            spec.d_in,
            spec.d_out,
            spec.n_latents,
            ours.d_in,
            ours.d_out,
            ours.n_latents
        );
    }
    if spec.normalization != ours.normalization {
        return fail!(
            InvalidArgument,
            "model: normalization is {}, the run's is {}",
            written(&spec.normalization),
            written(&ours.normalization)
        );
    }
    let recipe = options.recipe;
    if !recipe.starts_from(spec.architecture) {
        let (found, recipe) = (spec.architecture.name(), recipe.name());
        return fail!(Unsupported, "model: a {found} SAE cannot be trained on by recipe {recipe}");
    }
    // What a run does not make would be lost without a word.
    let hooks = (&spec.convention.hook_point, &spec.convention.hook_point_out);
    let missing = [
        (spec.center, "it centres its inputs (center)"),
        (sae.weights().glu.is_some(), "its encoder is a gated linear unit (W_glu)"),
        (sae.weights().w_skip.is_some() && !options.skip, "it has a skip path (W_skip)"),
        (
            options.layers > 1 && spec.uses_decoder_norms(),
            "it weighs latents by their decoders' norms over all layers (rescale_by_decoder_norm, select_by_decoder_norm)",
        ),
        (
            spec.denormalize_output && options.transcoder && spec.normalization != Normalization::None,
            "its output is denormalised (denormalize_output)",
        ),
        (
            !spec.denormalize_output && !options.transcoder && spec.normalization != Normalization::None,
            "its output stays normalised (denormalize_output is false)",
        ),
        (
            !options.transcoder && hooks.1.is_some() && hooks.0 != hooks.1,
            "its output belongs elsewhere than its input (hook_point_out), as a transcoder's does",
        ),
    ];
    match missing.iter().find(|(found, _)| *found) {
        Some((_, what)) => fail!(Unsupported, "model: {what}, which training does not do; it would be lost"),
        None => Ok(()),
    }
}

/// Hands the weights to a backend. Decoder rows are scaled to norm 1 and the encoder inversely, so that each latent
/// contributes what it did; norms by which the SAE multiplied its scores are thereby folded in. If it did not subtract b_dec
/// from its inputs, its biases take in what that would change. Then all is on the scale of the run's activations. For one rank of
/// several, `sae` is the shard that it holds.
pub(super) fn write(sae: &Sae, options: &TrainOptions, scales: &Scales, backend: &mut dyn Training) -> Result<()> {
    let (spec, weights, n) = (sae.spec(), sae.weights(), sae.spec().n_latents);
    let (input, output) = (f64::from(scales.input), f64::from(scales.output));
    let shape = options.shape();
    let (d, d_out) = (shape.d, shape.d_out);
    let layer = |row: usize| scales.layers.get(row % shape.layers).map_or(1.0, |scale| f64::from(*scale));
    let scale_layers = |rows: &mut [f32], by: &dyn Fn(f64) -> f64| {
        if shape.layers > 1 {
            scale_rows(rows, d / shape.layers, |row| by(layer(row)));
        }
    };
    let mut all = Array::zeroed(n * d.max(d_out))?;
    let rows = &mut all[..n * d_out];
    read_rows(&weights.w_dec, rows);
    scale_layers(rows, &|scale| scale);
    let mut norms = Array::<f32>::zeroed(n)?;
    for (i, (norm, row)) in norms.iter_mut().zip(rows.chunks_exact(d_out)).enumerate() {
        *norm = decoder_norm(row, shape.layers);
        if *norm == 0.0 || !norm.is_finite() {
            let i = spec.first_latent + i;
            return fail!(InvalidArgument, "model: W_dec row {i} has norm {norm} and cannot be scaled to 1");
        }
    }
    let norm = |i: usize| f64::from(norms[i]);
    scale_rows(rows, d_out, |i| 1.0 / norm(i));
    backend.write(Role::Weight, Parameter::WDec, rows)?;

    let rows = &mut all[..n * d];
    read_rows(&weights.w_enc, rows);
    let mut shifts = Array::<f64>::zeroed(n)?;
    // What the encoder's biases take in, if b_dec is now subtracted from its input, or no longer.
    let sign = f64::from(i8::from(shape.subtracts_b_dec()) - i8::from(spec.subtract_b_dec));
    if sign != 0.0 {
        for (shift, row) in shifts.iter_mut().zip(rows.chunks_exact(d)) {
            let dot: f64 = row.iter().zip(&weights.b_dec).map(|(&w, &b)| f64::from(w) * f64::from(b)).sum();
            *shift = sign * dot;
        }
    }
    scale_rows(rows, d, |i| norm(i) * output / input);
    scale_layers(rows, &|scale| 1.0 / scale);
    backend.write(Role::Weight, Parameter::WEnc, rows)?;

    let mut vector = Array::<f32>::zeroed(n)?;
    let mut fill = |parameter: Parameter, value: &dyn Fn(usize) -> f64| {
        vector.iter_mut().enumerate().for_each(|(i, v)| *v = value(i) as f32);
        backend.write(Role::Weight, parameter, &vector)
    };
    let gains = sae.magnitude_gains();
    let gain = |i: usize| gains.get(i).map_or(1.0, |gain| f64::from(*gain));
    fill(Parameter::BEnc, &|i| (f64::from(weights.b_enc[i]) + gain(i) * shifts[i]) * norm(i) * output)?;
    for parameter in shape.rule.parameters() {
        let compared = |i: usize| if spec.uses_decoder_norms() { output } else { norm(i) * output };
        match (parameter, &weights.threshold, &weights.gate) {
            (Parameter::Threshold, Some(threshold), _) => {
                fill(*parameter, &|i| f64::from(threshold[i]).max(0.0) * compared(i))?;
            }
            (Parameter::Threshold, None, _) => fill(*parameter, &|_| f64::from(options.initial_threshold))?,
            (Parameter::BGate, _, Some(gate)) => {
                fill(*parameter, &|i| (f64::from(gate.b_gate[i]) + shifts[i]) * norm(i) * output)?;
            }
            (Parameter::RMag, _, Some(gate)) => fill(*parameter, &|i| f64::from(gate.r_mag[i]))?,
            _ => {}
        }
    }
    if let Some(w_skip) = weights.w_skip.as_ref().filter(|_| options.skip) {
        let mut rows = Array::<f32>::zeroed(d_out * d)?;
        read_rows(w_skip, &mut rows);
        scale_rows(&mut rows, d, |_| output / input);
        backend.write(Role::Weight, Parameter::WSkip, &rows)?;
    }
    let mut b_dec = Array::<f32>::zeroed(d_out)?;
    b_dec.iter_mut().zip(&weights.b_dec).for_each(|(to, &b)| *to = (f64::from(b) * output) as f32);
    scale_layers(&mut b_dec, &|scale| scale);
    backend.write(Role::Weight, Parameter::BDec, &b_dec)
}

/// All rows of a matrix, as f32.
fn read_rows(matrix: &Matrix, out: &mut [f32]) {
    if matrix.dtype() == DType::F32 {
        out.copy_from_slice(matrix.rows_f32(0, matrix.rows(), &mut []));
    } else {
        matrix.rows_f32(0, matrix.rows(), out);
    }
}

/// The norm of a decoder row, summed in f64 and rounded once: the sum of its layers' Euclidean ones.
pub(super) fn decoder_norm(row: &[f32], layers: usize) -> f32 {
    let norm_of = |layer: &[f32]| layer.iter().map(|&w| f64::from(w) * f64::from(w)).sum::<f64>().sqrt();
    row.chunks_exact(row.len() / layers).map(norm_of).sum::<f64>() as f32
}

pub(super) fn scale_rows(rows: &mut [f32], d: usize, scale: impl Fn(usize) -> f64) {
    for (i, row) in rows.chunks_exact_mut(d).enumerate() {
        row.iter_mut().for_each(|w| *w = (f64::from(*w) * scale(i)) as f32);
    }
}
