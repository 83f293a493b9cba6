//! What a step tells about itself, and how far a run has come.

use serde::{Deserialize, Serialize};

use crate::sae::Reference;

/// How much a call moves the averages that are kept.
const MOVE: f64 = 0.05;

/// Statistics of one call of [`Trainer::step`](super::Trainer::step). Losses, FVU and L0 are of this call's tokens alone, under
/// the weights they were computed with.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepStats {
    /// Optimizer steps made so far, this one included.
    pub step: u64,
    /// Whether this call made an optimizer step; if not, its gradients wait for the call that does.
    pub applied: bool,
    /// Tokens of this call that were trained on.
    pub tokens: usize,
    /// Tokens left out by the row mask.
    pub tokens_masked: usize,
    /// Tokens left out because their activations were not finite, or too large for their square to be.
    pub tokens_not_finite: usize,
    /// Tokens trained on since the run began.
    pub tokens_seen: u64,
    /// What is minimised: `mse + aux + sparsity`.
    pub loss: f64,
    /// The reconstruction's part; of several reconstructions, the weighted sum.
    pub mse: f64,
    /// AuxK's part, its coefficient included.
    pub aux: f64,
    /// The part that holds activations down, its coefficient included; 0 for recipes that count them instead.
    pub sparsity: f64,
    /// Fraction of variance unexplained: `Σ(x̂ − x)² / Σ(x − mean_rows(x))²`; 1 − explained variance. 0 if x does not vary.
    pub fvu: f64,
    /// Mean count of active latents per token.
    pub l0: f64,
    /// Latents that are dead after this call.
    pub dead: usize,
    /// The same as a share of all latents.
    pub dead_fraction: f64,
    /// Latents that started anew after the step.
    pub resampled: usize,
    /// Global norm of the gradient before clipping; 0 if no step was made.
    pub grad_norm: f64,
    /// Learning rate of the step; 0 if no step was made.
    pub learning_rate: f64,
}

/// How far a run has come.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// Optimizer steps made.
    pub step: u64,
    /// Rows of all batches, those left out included: where the host's data continues after a resume.
    pub rows_given: u64,
    /// Tokens trained on.
    pub tokens_seen: u64,
    /// Those of them whose gradients wait for the next step.
    pub pending_tokens: u64,
    /// By what the mean squared error is divided.
    pub normalizer: f64,
    /// What healthy inputs measure, to be written into what is exported: norms of the first sample; FVU and L0 as they move.
    #[serde(default)]
    pub reference: Reference,
    /// What activations are multiplied by.
    #[serde(default)]
    pub scales: Scales,
    /// What learning rates are multiplied by, apart from the schedule.
    #[serde(default = "one")]
    pub rate: f64,
    /// The smallest activation that batches kept, averaged, where tokens compete.
    #[serde(default)]
    pub threshold: Threshold,
    /// What the two measured before the calls whose gradients wait for the next step, should that drop them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) before: Option<(Reference, Threshold)>,
}

fn one() -> f64 {
    1.0
}

/// By what activations are multiplied before anything else, and what is exported is not.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scales {
    /// What is encoded.
    pub input: f32,
    /// What is reconstructed: the same, but for transcoders.
    pub output: f32,
    /// Of a crosscoder, each layer of either, and 1 stands above.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<f32>,
}

impl Default for Scales {
    fn default() -> Self {
        Self { input: 1.0, output: 1.0, layers: Vec::new() }
    }
}

impl Scales {
    /// Of what is reconstructed from itself, layer by layer.
    pub(super) fn of(layers: Vec<f32>) -> Self {
        match layers[..] {
            [scale] => Self { input: scale, output: scale, layers: Vec::new() },
            _ => Self { layers, ..Self::default() },
        }
    }

    /// What each layer of the input is multiplied by.
    pub(super) fn inputs(&self) -> &[f32] {
        if self.layers.is_empty() { std::slice::from_ref(&self.input) } else { &self.layers }
    }
}

/// A moving average of the smallest activation that each batch kept: what latents must exceed once they no longer compete.
/// Its first batches are not held back by a start at zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Threshold {
    /// The average, from zero.
    sum: f64,
    /// The batches' weights in it.
    weight: f64,
}

/// How much of the average a batch leaves as it was: dictionary_learning's `threshold_beta`.
const KEEP: f64 = 0.999;

impl Threshold {
    fn take_in(&mut self, smallest: f32) {
        self.sum = KEEP * self.sum + (1.0 - KEEP) * f64::from(smallest);
        self.weight = KEEP * self.weight + (1.0 - KEEP);
    }

    /// The average; none before the first batch with an active latent.
    pub fn value(&self) -> Option<f32> {
        (self.weight > 0.0).then(|| (self.sum / self.weight) as f32)
    }

    /// Whether it can be one.
    pub(super) fn is_sound(&self) -> bool {
        (0.0..=1.0).contains(&self.weight) && self.sum >= 0.0 && self.value().unwrap_or(0.0).is_finite()
    }
}

impl Progress {
    pub(super) fn start(normalizer: f64, scales: Scales, reference: Reference) -> Self {
        Self {
            step: 0,
            rows_given: 0,
            tokens_seen: 0,
            pending_tokens: 0,
            normalizer,
            reference,
            scales,
            rate: 1.0,
            threshold: Threshold::default(),
            before: None,
        }
    }

    /// Takes in the FVU and L0 of a call: they become the moving averages over about the last 20 of the calls. And the
    /// smallest activation it kept, if there is such. What is not finite says nothing of healthy inputs and is left out.
    pub(super) fn observe(&mut self, stats: &StepStats, smallest: Option<f32>) {
        if stats.tokens == 0 {
            return;
        }
        self.before.get_or_insert((self.reference, self.threshold));
        if let Some(smallest) = smallest.filter(|smallest| smallest.is_finite()) {
            self.threshold.take_in(smallest);
        }
        for (average, value) in [(&mut self.reference.fvu, stats.fvu), (&mut self.reference.l0, stats.l0)] {
            if value.is_finite() {
                *average = Some(average.map_or(value, |a| a + MOVE * (value - a)));
            }
        }
    }

    /// What was observed since the last step stays, if the next was made with it; else it is forgotten.
    pub(super) fn settle(&mut self, accepted: bool) {
        if let Some(before) = self.before.take().filter(|_| !accepted) {
            (self.reference, self.threshold) = before;
        }
    }
}
