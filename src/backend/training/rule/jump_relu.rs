//! JumpReLU (Rajamanoharan et al. 2024, arXiv 2407.14435, sections 3 and 4), with a threshold θ for each latent:
//!
//! ```text
//! z = h · 1[h > θ]                     L = ‖x − x̂‖² + λ S
//! step       S = l₀ = Σ_i 1[h_i > θ_i]
//! quadratic  S = 2/L₀ · (l₀ − L₀)²                        a target number for each token; SAELens, after Gemma Scope 2
//! tanh       S = Σ_i tanh(4 z_i ‖W_dec[i]‖)               Conerly et al., "January 2025 update"
//! ```
//!
//! θ has no gradient where it jumps; those of its expected loss are estimated from the tokens whose h is within half a
//! bandwidth ε of it (equations 11 and 12), with g = ∂L/∂z:
//!
//! ```text
//! ∂L/∂θ_i = −(θ_i/ε) · 1[|h_i − θ_i| < ε/2] · g_i − (λ/ε) · 1[|h_i − θ_i| < ε/2] · ∂S/∂l₀       ∂L/∂h_i = g_i  where h_i > θ_i
//! ```
//!
//! The paper trains log θ. Here θ itself is trained and held at 0 or more after each step, as SAELens does (dictionary_learning
//! trains θ too, but does not hold it): a step of Adam moves a parameter by about the learning rate, which in the logarithm is
//! too little for runs of usual length. Near a θ below ε/2 lie scores of 0 or less too, which pull at θ like others. That is as
//! in SAELens with `jumprelu_ste_to_input` false; dictionary_learning counts l₀ after the jump, where what is inactive is 0.

/// What holds activations down.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Penalty {
    /// Their number.
    Step,
    /// Nearly that, but smooth.
    Tanh,
    /// The square of how far their number is from a target.
    Quadratic {
        /// The target.
        target_l0: f32,
    },
}

/// A JumpReLU with what its gradients are estimated by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct JumpRelu {
    /// ε.
    pub bandwidth: f32,
    /// S.
    pub penalty: Penalty,
}

/// Conerly et al.'s factor within the tanh.
const TANH_SCALE: f32 = 4.0;

impl JumpRelu {
    /// Scores that do not exceed this play no part, once they are raised by [`Self::lift`].
    pub(crate) fn floor(&self, threshold: f32) -> f32 {
        (threshold - self.bandwidth / 2.0).max(0.0)
    }

    /// By what scores are raised so that all that play a part are positive.
    pub(crate) fn lift(&self, threshold: f32) -> f32 {
        (self.bandwidth / 2.0 - threshold).max(0.0)
    }

    /// z.
    pub(crate) fn activate(score: f32, threshold: f32) -> f32 {
        if score > threshold { score } else { 0.0 }
    }

    /// S of a token with these activations, `l0` of them active, and ∂S/∂l₀.
    pub(crate) fn penalty(&self, values: &[f32], l0: f32) -> (f64, f32) {
        match self.penalty {
            Penalty::Step => (l0.into(), 1.0),
            Penalty::Quadratic { target_l0 } => {
                let over = l0 - target_l0;
                (f64::from(2.0 / target_l0 * over * over), 4.0 / target_l0 * over)
            }
            Penalty::Tanh => (values.iter().map(|z| f64::from(libm::tanhf(TANH_SCALE * z))).sum(), 0.0),
        }
    }

    /// The loss's gradient by the score and by the threshold, from that by z without the penalty; `slope` is λ ∂S/∂l₀.
    pub(crate) fn pull(&self, score: f32, threshold: f32, by_z: f32, coefficient: f32, slope: f32) -> (f32, f32) {
        let active = score > threshold;
        let by_z = match self.penalty {
            Penalty::Tanh => {
                let tanh = libm::tanhf(TANH_SCALE * Self::activate(score, threshold));
                by_z + coefficient * TANH_SCALE * (1.0 - tanh * tanh)
            }
            Penalty::Step | Penalty::Quadratic { .. } => by_z,
        };
        // What is listed lies above θ − ε/2.
        let near = score - threshold < self.bandwidth / 2.0;
        let by_threshold = if near { -(threshold * by_z + slope) / self.bandwidth } else { 0.0 };
        (if active { by_z } else { 0.0 }, by_threshold)
    }
}
