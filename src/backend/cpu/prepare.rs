//! From the host's activations to what the encoder sees: sum, finiteness, normalisation, b_dec.

use half::{bf16, f16};

use super::Kernels;
use crate::backend::Input;
use crate::sae::{Normalization, Spec, all_finite};
use crate::tensor::DType;

/// What became of one token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Prepared {
    /// Not finite: no features.
    NotFinite,
    /// Ready, with what decoding needs, as in a row state: the mean if one was subtracted, then σ or the factor; zeros
    /// beyond.
    Ready([f32; 2]),
}

/// Reads `x` (+ addend) of a token as f32.
pub(crate) fn read_row(input: &Input<'_>, row: usize, scratch: &mut [f32], out: &mut [f32]) {
    input.x.read_row(row, out);
    let Some(addend) = &input.addend else { return };
    addend.read_row(row, scratch);
    for (x, a) in out.iter_mut().zip(scratch) {
        *x += *a;
    }
    if input.round_sum {
        match input.x.dtype() {
            DType::F16 => out.iter_mut().for_each(|x| *x = f16::from_f32(*x).to_f32()),
            DType::BF16 => out.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32()),
            DType::F32 | DType::I32 => {}
        }
    }
}

/// Centres and normalises a token in place, as the spec says, and subtracts b_dec.
pub(crate) fn normalize_row(kernels: Kernels, spec: &Spec, b_dec: &[f32], x: &mut [f32]) -> Prepared {
    if !all_finite(x) {
        return Prepared::NotFinite;
    }
    let mean = if spec.subtracts_mean() { kernels.sum(x) / x.len() as f32 } else { 0.0 };
    if spec.subtracts_mean() {
        x.iter_mut().for_each(|v| *v -= mean);
    }
    let scale = match spec.normalization {
        Normalization::None => 0.0,
        Normalization::LayerNorm => {
            let deviation = (kernels.dot(x, x) / (x.len() as f32 - 1.0)).sqrt();
            let divisor = deviation + 1e-5;
            x.iter_mut().for_each(|v| *v /= divisor);
            deviation
        }
        Normalization::ConstantNorm => {
            let factor = (x.len() as f32).sqrt() / kernels.dot(x, x).sqrt();
            x.iter_mut().for_each(|v| *v *= factor);
            factor
        }
    };
    if !mean.is_finite() || !scale.is_finite() {
        return Prepared::NotFinite;
    }
    if spec.subtract_b_dec {
        x.iter_mut().zip(b_dec).for_each(|(v, b)| *v -= b);
    }
    Prepared::Ready(if spec.subtracts_mean() { [mean, scale] } else { [scale, 0.0] })
}

/// Mean, and σ or factor, of a row state.
fn statistics(spec: &Spec, state: [f32; 2]) -> (f32, f32) {
    if spec.subtracts_mean() { (state[0], state[1]) } else { (0.0, state[0]) }
}

/// By what a change in the decoder's space is multiplied to become a change of the activation.
pub(crate) fn output_scale(spec: &Spec, state: [f32; 2]) -> f32 {
    let (_, scale) = statistics(spec, state);
    match spec.normalization {
        _ if !spec.denormalize_output => 1.0,
        Normalization::None => 1.0,
        Normalization::LayerNorm => scale,
        Normalization::ConstantNorm => 1.0 / scale,
    }
}

/// Undoes the normalisation and centring of a reconstruction; `scratch` is as long.
pub(crate) fn denormalize_row(kernels: Kernels, spec: &Spec, state: [f32; 2], x_hat: &mut [f32], scratch: &mut [f32]) {
    if !spec.denormalize_output {
        return;
    }
    let (mean, scale) = statistics(spec, state);
    match spec.normalization {
        Normalization::None => {}
        Normalization::LayerNorm => {
            scratch.fill(mean);
            kernels.axpy(scale, x_hat, scratch);
            return x_hat.copy_from_slice(scratch);
        }
        Normalization::ConstantNorm => x_hat.iter_mut().for_each(|v| *v /= scale),
    }
    if spec.center {
        x_hat.iter_mut().for_each(|v| *v += mean);
    }
}
