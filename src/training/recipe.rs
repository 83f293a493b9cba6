//! The recipes by their names, and what each makes of the options.

use serde::{Deserialize, Serialize};

use super::TrainOptions;
use crate::backend::training::{Level, Rule};
use crate::error::{Result, fail};
use crate::sae::{Architecture, Spec};

/// How an SAE is trained. What each minimises is told where [`Rule`] has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Recipe {
    /// The k largest of each token (Gao et al. 2024).
    #[default]
    TopK,
    /// TopK by the losses of k and 4 k together, for an SAE that serves any k between and beyond (Gao et al. 2024).
    MultiTopK,
    /// The k · T largest of a batch; exported with a threshold (Bussmann et al. 2024).
    BatchTopK,
    /// BatchTopK of which every prefix is an SAE too (Bussmann et al. 2025).
    Matryoshka,
    /// The k largest in magnitude of each token, with their signs (Zhu et al. 2025).
    AbsTopK,
}

impl Recipe {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::TopK => "top_k",
            Self::MultiTopK => "multi_top_k",
            Self::BatchTopK => "batch_top_k",
            Self::Matryoshka => "matryoshka",
            Self::AbsTopK => "abs_top_k",
        }
    }

    /// Whether latents of all tokens of a batch compete; what is trained then is exported with a threshold.
    pub(super) fn competes_over_batch(self) -> bool {
        matches!(self, Self::BatchTopK | Self::Matryoshka)
    }

    /// Whether an SAE of this architecture is a start for it. Thresholds of a JumpReLU SAE are dropped where latents compete,
    /// and found anew.
    pub(super) fn starts_from(self, architecture: Architecture) -> bool {
        match architecture {
            Architecture::TopK { .. } | Architecture::Relu => true,
            Architecture::JumpRelu => self.competes_over_batch(),
            Architecture::AbsTopK { .. } => self == Self::AbsTopK,
            Architecture::GroupMax { .. } | Architecture::Gated => false,
        }
    }

    /// What is exported.
    fn architecture(self, k: usize) -> Architecture {
        match self {
            Self::TopK | Self::MultiTopK => Architecture::TopK { k },
            Self::AbsTopK => Architecture::AbsTopK { k },
            Self::BatchTopK | Self::Matryoshka => Architecture::JumpRelu,
        }
    }

    /// The prefixes that Matryoshka trains where none are given: the whole, and its halves four times over.
    pub(super) fn default_prefixes(self, n: usize) -> Vec<usize> {
        let mut prefixes: Vec<usize> = match self {
            Self::Matryoshka => [16, 8, 4, 2, 1].map(|part| n / part).into_iter().filter(|&size| size > 0).collect(),
            _ => Vec::new(),
        };
        prefixes.dedup();
        prefixes
    }

    /// Refuses options that the recipe has no use for, and those it cannot do with.
    pub(super) fn check(self, options: &TrainOptions) -> Result<()> {
        let TrainOptions { prefixes, prefix_weights, n_latents, .. } = options;
        if self != Self::Matryoshka {
            for (name, given) in [("prefixes", !prefixes.is_empty()), ("prefix_weights", !prefix_weights.is_empty())] {
                if given {
                    return fail!(InvalidArgument, "{name} is given, but recipe {} has no prefixes", self.name());
                }
            }
            return Ok(());
        }
        let ascending = prefixes.is_sorted_by(|a, b| a < b) && prefixes.first().is_some_and(|&first| first > 0);
        if !ascending || prefixes.last() != Some(n_latents) {
            return fail!(
                InvalidArgument,
                "prefixes must ascend from at least 1 to n_latents, which is {n_latents}, not {prefixes:?}"
            );
        }
        if prefix_weights.len() != prefixes.len() {
            let (weights, prefixes) = (prefix_weights.len(), prefixes.len());
            return fail!(InvalidArgument, "prefix_weights has {weights} numbers for {prefixes} prefixes");
        }
        match prefix_weights.iter().position(|weight| !(*weight > 0.0 && weight.is_finite())) {
            Some(i) => {
                let weight = prefix_weights[i];
                fail!(InvalidArgument, "prefix_weights[{i}] must be a positive number, not {weight}")
            }
            None => Ok(()),
        }
    }

    /// How the backend goes about it.
    pub(super) fn rule(self, options: &TrainOptions) -> Rule {
        let levels = || {
            let levels = options.prefixes.iter().zip(&options.prefix_weights);
            levels.map(|(&prefix, &weight)| Level { prefix, weight }).collect()
        };
        match self {
            Self::TopK => Rule::TopK,
            Self::MultiTopK => Rule::MultiTopK,
            Self::AbsTopK => Rule::AbsTopK,
            Self::BatchTopK => Rule::BatchTopK { levels: vec![Level { prefix: options.n_latents, weight: 1.0 }] },
            Self::Matryoshka => Rule::BatchTopK { levels: levels() },
        }
    }

    /// What the run makes.
    pub(super) fn spec(self, options: &TrainOptions) -> Spec {
        let mut spec = Spec::new(self.architecture(options.k), options.d, options.n_latents);
        spec.normalization = options.normalization;
        spec.convention = options.convention.clone();
        spec.prefixes = options.prefixes.clone();
        spec
    }
}
