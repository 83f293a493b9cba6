//! What every backend does for a trainer. The trainer keeps the policy: options, schedule, statistics, files; the backend
//! keeps the numbers, wherever it likes, and is asked for them only to save or export.

mod rule;

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::Input;
use crate::error::Result;
use crate::sae::Normalization;
use crate::tensor::Tensor;

pub(crate) use rule::gated;
pub use rule::{JumpRelu, Level, MULTI_FACTOR, MULTI_WEIGHT, Penalty, Rule};

/// The sizes of a run; a backend's memory follows from them.
#[derive(Clone, Debug)]
pub struct TrainingShape {
    /// From scores to activations and losses.
    pub rule: Rule,
    /// Width of the activations.
    pub d: usize,
    /// Width of what is reconstructed; another than `d` only for transcoders.
    pub d_out: usize,
    /// Whether it is something else than the input that is reconstructed; b_dec is not subtracted from inputs then.
    pub transcoder: bool,
    /// Whether a matrix goes from the input straight to the output.
    pub skip: bool,
    /// Of so many layers of the model, one after another, are `d` and `d_out` made. More than one: a crosscoder, which
    /// reconstructs its input, but does not subtract b_dec from it, and of which the norm of a decoder row is the sum of its
    /// layers' (Lindsey et al. 2024, "Sparse Crosscoders for Cross-Layer Features and Model Diffing").
    pub layers: usize,
    /// What stays as it is.
    pub frozen: Vec<Parameter>,
    /// Number of latents here.
    pub n_latents: usize,
    /// Which one of the whole SAE's they begin with, where other ranks hold the others.
    pub first_latent: usize,
    /// Latents of the whole SAE.
    pub whole_latents: usize,
    /// The most latents kept per token at any time of the run, on average where the batch chooses; of no meaning to rules
    /// that count none.
    pub k: usize,
    /// Dead latents used per token by AuxK; 0 without AuxK.
    pub k_aux: usize,
    /// Tokens per batch.
    pub max_tokens: usize,
    /// Whether a moving average of the weights is kept.
    pub ema: bool,
    /// What is done to activations first.
    pub normalization: Normalization,
}

impl TrainingShape {
    /// A run by TopK for one token at a time, without AuxK, moving average or normalisation.
    pub fn top_k(k: usize, d: usize, n_latents: usize) -> Self {
        let normalization = Normalization::None;
        Self {
            rule: Rule::TopK,
            d,
            d_out: d,
            transcoder: false,
            skip: false,
            layers: 1,
            frozen: Vec::new(),
            n_latents,
            first_latent: 0,
            whole_latents: n_latents,
            k,
            k_aux: 0,
            max_tokens: 1,
            ema: false,
            normalization,
        }
    }

    /// Whether b_dec is subtracted from inputs.
    pub fn subtracts_b_dec(&self) -> bool {
        !self.transcoder && self.layers == 1
    }

    /// What is trained, in the order in which it is stored.
    pub fn parameters(&self) -> impl Iterator<Item = Parameter> + use<> {
        let skip = self.skip.then_some(Parameter::WSkip);
        Parameter::COMMON.into_iter().chain(self.rule.parameters().iter().copied()).chain(skip)
    }

    /// The dimensions of a parameter.
    pub fn dims(&self, parameter: Parameter) -> Vec<usize> {
        let Self { d, d_out, n_latents: n, .. } = *self;
        match parameter {
            Parameter::WEnc => vec![n, d],
            Parameter::WDec => vec![n, d_out],
            Parameter::BEnc | Parameter::Threshold | Parameter::BGate | Parameter::RMag => vec![n],
            Parameter::BDec => vec![d_out],
            Parameter::WSkip => vec![d_out, d],
        }
    }

    /// The latents `part` of a whole SAE alone, for one of several ranks.
    pub fn shard(&self, part: Range<usize>) -> Self {
        let mut shard = Self { n_latents: part.len(), first_latent: part.start, ..self.clone() };
        if let Rule::BatchTopK { levels } = &mut shard.rule {
            let prefixes = levels.iter_mut().map(|level| &mut level.prefix);
            prefixes.for_each(|prefix| *prefix = prefix.saturating_sub(part.start).min(part.len()));
        }
        shard
    }

    /// How many numbers a parameter has; at most `usize::MAX`.
    pub fn len(&self, parameter: Parameter) -> usize {
        self.dims(parameter).into_iter().fold(1, usize::saturating_mul)
    }
}

/// What is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Parameter {
    /// `[n, d]`.
    WEnc,
    /// `[n]`.
    BEnc,
    /// `[n, d_out]`.
    WDec,
    /// `[d_out]`.
    BDec,
    /// `[n]`, at least 0: JumpReLU's θ.
    Threshold,
    /// `[n]`: the gate's bias.
    BGate,
    /// `[n]`: the logarithm of the magnitude's factor.
    RMag,
    /// `[d_out, d]`: the skip path.
    WSkip,
}

impl Parameter {
    /// What every run has.
    pub const COMMON: [Self; 4] = [Self::WEnc, Self::BEnc, Self::WDec, Self::BDec];

    /// Whether it has a row for each latent.
    pub fn is_of_latents(self) -> bool {
        !matches!(self, Self::BDec | Self::WSkip)
    }

    /// Its name in the field.
    pub fn name(self) -> &'static str {
        match self {
            Self::WEnc => "W_enc",
            Self::BEnc => "b_enc",
            Self::WDec => "W_dec",
            Self::BDec => "b_dec",
            Self::Threshold => "threshold",
            Self::BGate => "b_gate",
            Self::RMag => "r_mag",
            Self::WSkip => "W_skip",
        }
    }
}

/// What is kept of each parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The parameter itself.
    Weight,
    /// Adam's moving average of the gradient.
    FirstMoment,
    /// Adam's moving average of the squared gradient.
    SecondMoment,
    /// The moving average of the weights, from zero and not bias-corrected; only if the shape has one.
    Ema,
    /// The gradients of accumulated batches: sums over tokens of each token's share. b_dec's is still without what comes
    /// through the encoder's input.
    Gradient,
}

/// The activations of a batch.
#[derive(Clone, Copy)]
pub struct TrainingRows<'a> {
    /// `[T, d]`.
    pub input: Input<'a>,
    /// By what each layer of it is multiplied.
    pub scales: &'a [f32],
    /// `[T, d_out]`: what is reconstructed, for transcoders, and by what it is multiplied.
    pub target: Option<(Tensor<'a>, f32)>,
    /// `[T]` i32: rows with 0 are left out.
    pub mask: Option<Tensor<'a>>,
}

impl<'a> From<Input<'a>> for TrainingRows<'a> {
    fn from(input: Input<'a>) -> Self {
        Self { input, scales: &[1.0], target: None, mask: None }
    }
}

/// The constants of the losses. A token's is `(‖x − x̂‖² + λ S) / (d · normalizer)`, and AuxK's or another part beside it.
#[derive(Clone, Copy, Debug)]
pub struct LossParameters {
    /// Latents kept per token now. 0: as many as the shape has.
    pub k: usize,
    /// By what the mean squared error is divided.
    pub normalizer: f64,
    /// AuxK's coefficient.
    pub aux_coefficient: f64,
    /// The coefficient λ of what holds activations down.
    pub sparsity_coefficient: f64,
    /// A latent has fired when its activation exceeds this.
    pub fired: f32,
    /// Tokens without firing after which a latent is dead.
    pub dead_after_tokens: u64,
}

/// What a batch came to: sums over its tokens, of all ranks.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct BatchSums {
    /// Tokens trained on.
    pub tokens: usize,
    /// Tokens left out by the mask.
    pub tokens_masked: usize,
    /// Tokens left out because they, or their squares' sum, were not finite.
    pub tokens_not_finite: usize,
    /// `Σ (x̂ − x)²`.
    pub squared_error: f64,
    /// What the loss makes of it: the same, but for rules with several reconstructions, whose squares are weighted.
    pub reconstruction: f64,
    /// `Σ (x − mean_rows(x))²`.
    pub squared_deviation: f64,
    /// `α · Σ (ê − e)² / Σ (e − mean_rows(e))²`, or 0. For Gated, the mean squared error of what the gates decode to, divided
    /// by the normalizer.
    pub aux_loss: f64,
    /// `Σ S` of what holds activations down, without its coefficient.
    pub penalty: f64,
    /// Active latents.
    pub active: u64,
    /// Latents that are dead now.
    pub dead: usize,
    /// The smallest activation that was kept; only where the batch chooses, and if any was.
    pub smallest: Option<f32>,
}

/// The constants of an optimizer step.
#[derive(Clone, Copy, Debug)]
pub struct StepParameters {
    /// Tokens whose gradients were summed; the mean over them is applied.
    pub tokens: u64,
    /// Number of this step, from 1.
    pub step: u64,
    /// Learning rate.
    pub learning_rate: f64,
    /// Adam's β₁.
    pub beta1: f64,
    /// Adam's β₂.
    pub beta2: f64,
    /// Adam's ε.
    pub epsilon: f64,
    /// Global norm to clip to; 0: no clipping.
    pub clip_norm: f64,
    /// Decay of the moving average.
    pub ema_decay: f64,
}

/// How dead latents start anew.
pub struct Resampling<'a> {
    /// Tokens without firing after which a latent is dead.
    pub dead_after_tokens: u64,
    /// The threshold of those that start anew, where there are thresholds.
    pub threshold: f32,
    /// What weights that were there from the start have in the moving average by now.
    pub ema_weight: f32,
    /// Random numbers, uniform from 0 to below 1.
    pub draw: &'a mut dyn FnMut() -> f64,
}

/// The numbers of one run on one device, of one rank's latents. Results do not depend on how many threads share the work. Ranks
/// make the same calls, but for reading and writing.
pub trait Training: Send {
    /// Forward, losses and backward of a batch whose shapes are checked; its gradients are added to what is there. Also
    /// counts how long each latent has not fired: 0 if it fired in the batch, else the batch's tokens more.
    fn accumulate(&mut self, rows: &TrainingRows<'_>, loss: &LossParameters) -> Result<BatchSums>;

    /// One optimizer step by the summed gradients, which are zero afterwards; gives their global norm. In order: the part of
    /// the decoder's gradient that would change its rows' norms is removed; (where gradients come from several devices, their mean is
    /// taken here); clipping; moving average; Adam; decoder rows to unit norm. A norm that is not finite is given back
    /// with the weights left alone, and infinity where the square of what would be applied goes beyond f32, as the second
    /// moment then would.
    fn apply(&mut self, step: &StepParameters) -> Result<f64>;

    /// Starts dead latents anew from the tokens of the last batch, which was computed before the last step; tells how many.
    fn resample(&mut self, how: &mut Resampling<'_>) -> Result<usize>;

    /// `‖Σ z_i W_dec[i]‖` of each of `rows` `[R, d]`, already centred, into `norms` `[R]`, where `k` latents of each are kept,
    /// also by rules whose rows compete; R is at most the shape's tokens.
    fn reconstruction_norms(&mut self, rows: &[f32], k: usize, norms: &mut [f64]) -> Result<()>;

    /// Copies a tensor of the run out.
    fn read(&self, role: Role, parameter: Parameter, out: &mut [f32]) -> Result<()>;

    /// Replaces a tensor of the run.
    fn write(&mut self, role: Role, parameter: Parameter, values: &[f32]) -> Result<()>;

    /// Copies out, for each latent, the tokens since it last fired.
    fn read_unfired(&self, out: &mut [u64]) -> Result<()>;

    /// Replaces them.
    fn write_unfired(&mut self, tokens: &[u64]) -> Result<()>;
}
