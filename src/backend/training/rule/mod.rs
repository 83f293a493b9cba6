//! The recipes as a backend sees them. All share one engine: scores of latents for a token, of which a rule makes sparse
//! activations `z`; what their decoder rows leave of the target; the loss's gradient by each `z`; from it the rule's gradient
//! by each score, and by its own parameters; sums of those over the tokens where a latent is active; the step. A rule is what
//! differs: which latents are active, what is added to the loss, and what else is trained. Each has a file with its loss and
//! gradient.

mod batch_top_k;
mod crosscoder;
pub(crate) mod gated;
mod jump_relu;
mod levels;
mod relu;
mod top_k;

use super::Parameter;

pub use jump_relu::{JumpRelu, Penalty};
pub use levels::Level;
pub use top_k::{MULTI_FACTOR, MULTI_WEIGHT};

/// From scores to activations and losses.
#[derive(Clone, Debug, PartialEq)]
pub enum Rule {
    /// The k largest of each token.
    TopK,
    /// The same, and the loss of `4 k` beside that of `k`.
    MultiTopK,
    /// The k largest in magnitude of each token, with their signs.
    AbsTopK,
    /// The `k · T` largest of the batch. Several levels: Matryoshka.
    BatchTopK {
        /// Prefixes of the latents that each explain the target; the last is all of them.
        levels: Vec<Level>,
    },
    /// All positive ones, at a price.
    Relu,
    /// Those beyond a threshold that is trained, at a price.
    JumpRelu(JumpRelu),
    /// Those whose gate is open, at a price.
    Gated,
}

impl Rule {
    /// What it trains besides what every run has.
    pub fn parameters(&self) -> &'static [Parameter] {
        match self {
            Self::TopK | Self::MultiTopK | Self::AbsTopK | Self::BatchTopK { .. } | Self::Relu => &[],
            Self::JumpRelu(_) => &[Parameter::Threshold],
            Self::Gated => &[Parameter::BGate, Parameter::RMag],
        }
    }

    /// Whether any number of a token's latents may be active.
    pub fn is_unbounded(&self) -> bool {
        matches!(self, Self::Relu | Self::JumpRelu(_) | Self::Gated)
    }

    /// Slots that a token's codes may need, where `k` latents are kept.
    pub fn width(&self, k: usize, n_latents: usize) -> usize {
        match self {
            Self::TopK | Self::AbsTopK | Self::BatchTopK { .. } => k,
            Self::MultiTopK => k.saturating_mul(MULTI_FACTOR).min(n_latents),
            Self::Relu | Self::JumpRelu(_) | Self::Gated => n_latents,
        }
    }

    /// How many reconstructions the loss is of.
    pub fn levels(&self) -> usize {
        match self {
            Self::TopK | Self::AbsTopK | Self::Relu | Self::JumpRelu(_) | Self::Gated => 1,
            Self::MultiTopK => 2,
            Self::BatchTopK { levels } => levels.len(),
        }
    }
}
