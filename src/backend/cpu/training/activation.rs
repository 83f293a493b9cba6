//! From a token's scores to its activations, and from the loss's gradient by those to the gradients by the scores and by the
//! rule's own parameters.

use crate::backend::cpu::Kernels;
use crate::backend::cpu::rows::Rows;
use crate::backend::training::{JumpRelu, Parameter, gated};

/// A token's slots in use.
pub(super) struct Slots<'a> {
    pub indices: &'a mut [u32],
    /// Scores, then activations.
    pub values: &'a mut [f32],
    /// The loss's gradient by activations, then by what `W_enc[i] · x` is in the score.
    pub pulls: &'a mut [f32],
    /// `[extras, slots]`: what must be remembered, then gradients by the parameters that [`Activation::extras`] names.
    pub extras: &'a mut [f32],
}

/// How activations follow from scores. Coefficients are those of the loss as it is minimised.
#[derive(Clone, Copy)]
pub(super) enum Activation<'a> {
    /// They are the scores.
    Score,
    /// They are the scores, which are all positive, and their sum has this coefficient.
    Relu { coefficient: f32 },
    /// They are the scores beyond a threshold; the encoder gives these raised by [`JumpRelu::lift`].
    JumpRelu { rule: &'a JumpRelu, threshold: &'a [f32], coefficient: f32 },
    /// The scores say only that a gate is open.
    Gated(Gates<'a>),
}

/// The parts of a gated SAE that its scores do not have.
#[derive(Clone, Copy)]
pub(super) struct Gates<'a> {
    /// `[n]`: exp(r_mag).
    pub gains: &'a [f32],
    pub b_gate: &'a [f32],
    pub b_enc: &'a [f32],
    pub coefficient: f32,
}

impl Activation<'_> {
    /// The parameters whose gradients are kept beside that by the score. Where b_enc is not among them, its gradient is the
    /// score's.
    pub(super) fn extras(self) -> &'static [Parameter] {
        match self {
            Self::Score | Self::Relu { .. } => &[],
            Self::JumpRelu { .. } => &[Parameter::Threshold],
            Self::Gated(_) => &[Parameter::BGate, Parameter::BEnc, Parameter::RMag],
        }
    }

    /// From scores to activations.
    pub(super) fn activate(self, slots: &mut Slots<'_>) {
        let Slots { indices, values, extras, .. } = slots;
        if matches!(self, Self::JumpRelu { .. } | Self::Gated(_)) {
            extras[..values.len()].copy_from_slice(values);
        }
        let latents = values.iter_mut().zip(indices.iter().map(|&latent| latent as usize));
        match self {
            Self::Score | Self::Relu { .. } => {}
            Self::JumpRelu { rule, threshold, .. } => {
                for ((z, i), score) in latents.zip(extras.iter_mut()) {
                    *score -= rule.lift(threshold[i]);
                    *z = JumpRelu::activate(*score, threshold[i]);
                }
            }
            Self::Gated(Gates { gains, b_gate, b_enc, .. }) => latents.for_each(|(z, i)| {
                *z = gated::magnitude(*z, gains[i], b_gate[i], b_enc[i]).max(0.0);
            }),
        }
    }

    /// Adds what holds activations down to the pulls, which are by activations and become those by scores; gives it, without
    /// its coefficient; `l0` is how many are active. Gates still lack what [`Gates::explain`] adds.
    pub(super) fn penalize(self, slots: &mut Slots<'_>, l0: f32) -> f64 {
        let Slots { indices, values, pulls, extras } = slots;
        match self {
            Self::Score => 0.0,
            Self::Relu { coefficient } => {
                pulls.iter_mut().for_each(|pull| *pull += coefficient);
                values.iter().map(|z| f64::from(*z)).sum()
            }
            Self::JumpRelu { rule, threshold, coefficient } => {
                let (penalty, slope) = rule.penalty(values, l0);
                for ((pull, score), &i) in pulls.iter_mut().zip(extras.iter_mut()).zip(indices.iter()) {
                    (*pull, *score) = rule.pull(*score, threshold[i as usize], *pull, coefficient, coefficient * slope);
                }
                penalty
            }
            Self::Gated(_) => extras[..values.len()].iter().map(|u| f64::from(*u)).sum(),
        }
    }
}

impl Gates<'_> {
    /// What the gates alone leave of a target, and from it and the pulls by activations all gradients; gives its square.
    pub(super) fn explain(
        &self,
        kernels: Kernels,
        w_dec: Rows<'_>,
        pull: f32,
        target: &[f32],
        slots: &mut Slots<'_>,
        leftover: &mut [f32],
    ) -> f64 {
        let Slots { indices, values, pulls, extras } = slots;
        let (open, rest) = extras.split_at_mut(values.len());
        let (magnitudes, logarithms) = rest.split_at_mut(values.len());
        leftover.copy_from_slice(target);
        open.iter_mut().for_each(|u| *u = -*u);
        kernels.add_rows_at(leftover, w_dec, indices, open);
        kernels.dots_at(leftover, w_dec, indices, open);
        let parts = open.iter_mut().zip(magnitudes).zip(logarithms).zip(values.iter()).zip(pulls.iter_mut());
        for (((((gate, magnitude), logarithm), z), pull_z), &i) in parts.zip(indices.iter()) {
            let i = i as usize;
            *gate = *gate * -pull + self.coefficient;
            *magnitude = if *z > 0.0 { *pull_z } else { 0.0 };
            *logarithm = *magnitude * (z - self.b_enc[i]);
            *pull_z = self.gains[i] * *magnitude + *gate;
        }
        f64::from(kernels.dot(leftover, leftover))
    }
}
