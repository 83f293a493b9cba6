//! The recipes as a backend sees them. All share one engine: scores of latents for a token, of which a rule makes sparse
//! activations `z`; what their decoder rows leave of the target; the loss's gradient by each `z`; from it the rule's gradient
//! by each score, and by its own parameters; sums of those over the tokens where a latent is active; the step. A rule is what
//! differs: which latents are active, what is added to the loss, and what else is trained. Each has a file with its loss and
//! gradient.

mod batch_top_k;
mod levels;
mod top_k;

use super::Parameter;

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
}

impl Rule {
    /// What it trains besides what every run has.
    pub fn parameters(&self) -> &'static [Parameter] {
        &[]
    }

    /// Slots that a token's codes need, where `k` latents are kept.
    pub fn width(&self, k: usize, n_latents: usize) -> usize {
        match self {
            Self::TopK | Self::AbsTopK | Self::BatchTopK { .. } => k,
            Self::MultiTopK => k.saturating_mul(MULTI_FACTOR).min(n_latents),
        }
    }

    /// How many reconstructions the loss is of.
    pub fn levels(&self) -> usize {
        match self {
            Self::TopK | Self::AbsTopK => 1,
            Self::MultiTopK => 2,
            Self::BatchTopK { levels } => levels.len(),
        }
    }
}
