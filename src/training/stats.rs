//! What a step tells about itself, and how far a run has come.

use serde::{Deserialize, Serialize};

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
    /// What is minimised: `mse + aux`.
    pub loss: f64,
    /// The reconstruction's part.
    pub mse: f64,
    /// AuxK's part, its coefficient included.
    pub aux: f64,
    /// Fraction of variance unexplained: `Σ(x̂ − x)² / Σ(x − mean_rows(x))²`; 1 − explained variance. 0 if x does not vary.
    pub fvu: f64,
    /// Mean count of active latents per token.
    pub l0: f64,
    /// Latents that are dead after this call.
    pub dead: usize,
    /// The same as a share of all latents.
    pub dead_fraction: f64,
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
}

impl Progress {
    pub(super) fn start(normalizer: f64) -> Self {
        Self { step: 0, rows_given: 0, tokens_seen: 0, pending_tokens: 0, normalizer }
    }
}
