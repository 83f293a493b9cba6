//! The recipes by their names, and what each makes of the options.

use serde::{Deserialize, Serialize};

use super::TrainOptions;
use crate::backend::training::{self, JumpRelu, Level, Rule};
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
    /// All positive pre-activations, with an L1 penalty (Bricken et al. 2023, Conerly et al. 2024).
    Relu,
    /// Those beyond trained thresholds, with a penalty on their number (Rajamanoharan et al. 2024b).
    JumpRelu,
    /// Those whose gates are open, with an L1 penalty on the gates (Rajamanoharan et al. 2024a).
    Gated,
}

/// What holds activations down in JumpReLU; [`crate::backend::training::Penalty`] without its numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Penalty {
    /// L0: the number of active latents.
    #[default]
    Step,
    /// The sum of `tanh(4 z)`, nearly their number.
    Tanh,
    /// The square of how far their number is from `target_l0`, times `2 / target_l0`.
    Quadratic,
}

/// What activations are multiplied by before anything else: measured on the first sample, kept for the run, and folded into what
/// is exported, which takes activations as they are. Coefficients, thresholds and bandwidths of papers are meant for activations
/// of such sizes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scaling {
    /// `root_width` for recipes with a penalty, unless each token is normalised, and for crosscoders, whose layers would count
    /// by their size; else `none`.
    #[default]
    Recipe,
    /// 1.
    None,
    /// So that the mean norm (of a crosscoder's layer each) is √d (Conerly et al. 2024; SAELens's `expected_average_only_in`).
    RootWidth,
    /// So that the mean square of the norm is 1 (Rajamanoharan et al. 2024; dictionary_learning's `normalize_activations`).
    UnitSquare,
}

impl Recipe {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::TopK,
        Self::MultiTopK,
        Self::BatchTopK,
        Self::Matryoshka,
        Self::AbsTopK,
        Self::Relu,
        Self::JumpRelu,
        Self::Gated,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::TopK => "top_k",
            Self::MultiTopK => "multi_top_k",
            Self::BatchTopK => "batch_top_k",
            Self::Matryoshka => "matryoshka",
            Self::AbsTopK => "abs_top_k",
            Self::Relu => "relu",
            Self::JumpRelu => "jump_relu",
            Self::Gated => "gated",
        }
    }

    /// Whether a number of latents is kept; else a penalty holds activations down.
    pub(super) fn counts_latents(self) -> bool {
        !self.is_penalized()
    }

    /// Whether a penalty holds activations down.
    pub(super) fn is_penalized(self) -> bool {
        matches!(self, Self::Relu | Self::JumpRelu | Self::Gated)
    }

    /// The default of Adam's β₁.
    pub(super) fn adam_beta1(self) -> f32 {
        if matches!(self, Self::JumpRelu | Self::Gated) { 0.0 } else { 0.9 }
    }

    /// Whether latents of all tokens of a batch compete; what is trained then is exported with a threshold.
    pub(super) fn competes_over_batch(self) -> bool {
        matches!(self, Self::BatchTopK | Self::Matryoshka)
    }

    /// Whether an SAE of this architecture is a start for it. Thresholds of a JumpReLU SAE are dropped where latents compete,
    /// and found anew from the first batch on; before it nothing can be exported.
    pub(super) fn starts_from(self, architecture: Architecture) -> bool {
        match architecture {
            Architecture::TopK { .. } | Architecture::Relu => self != Self::Gated,
            Architecture::JumpRelu => self.competes_over_batch() || self == Self::JumpRelu,
            Architecture::AbsTopK { .. } => self == Self::AbsTopK,
            Architecture::Gated => self == Self::Gated,
            Architecture::GroupMax { .. } => false,
        }
    }

    /// What is exported.
    fn architecture(self, k: usize) -> Architecture {
        match self {
            Self::TopK | Self::MultiTopK => Architecture::TopK { k },
            Self::AbsTopK => Architecture::AbsTopK { k },
            Self::BatchTopK | Self::Matryoshka | Self::JumpRelu => Architecture::JumpRelu,
            Self::Relu => Architecture::Relu,
            Self::Gated => Architecture::Gated,
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
        let TrainOptions { prefixes, prefix_weights, penalty, target_l0, .. } = options;
        let (counts, jumps, nested) = (self.counts_latents(), self == Self::JumpRelu, self == Self::Matryoshka);
        let quadratic = *penalty == Penalty::Quadratic;
        for (name, given, applies, what) in [
            ("k", options.k > 0, counts, "counts no latents"),
            ("k_start", options.k_start > 0, counts, "counts no latents"),
            ("k_anneal_steps", options.k_anneal_steps > 0, counts, "counts no latents"),
            ("k_aux", options.k_aux > 0, counts, "has no AuxK"),
            ("aux_coefficient", options.aux_coefficient != 0.0, counts, "has no AuxK"),
            ("prefixes", !prefixes.is_empty(), nested, "has no prefixes"),
            ("prefix_weights", !prefix_weights.is_empty(), nested, "has no prefixes"),
            ("sparsity_coefficient", options.sparsity_coefficient != 0.0, !counts, "has no penalty"),
            ("sparsity_warmup_steps", options.sparsity_warmup_steps > 0, !counts, "has no penalty"),
            ("penalty", *penalty != Penalty::Step, jumps, "has a penalty of its own or none"),
            ("bandwidth", options.bandwidth != 0.0, jumps, "trains no thresholds"),
            ("initial_threshold", options.initial_threshold != 0.0, jumps, "trains no thresholds"),
            ("target_l0", *target_l0 != 0.0, jumps, "has no penalty with a target"),
        ] {
            if given && !applies {
                return fail!(InvalidArgument, "{name} is given, but recipe {} {what}", self.name());
            }
        }
        if *target_l0 != 0.0 && !quadratic {
            return fail!(InvalidArgument, "target_l0 is given, but only penalty quadratic has a target");
        }
        if quadratic && !(*target_l0 > 0.0 && target_l0.is_finite()) {
            return fail!(InvalidArgument, "penalty quadratic needs target_l0, a positive number, not {target_l0}");
        }
        if nested { self.check_prefixes(options) } else { Ok(()) }
    }

    fn check_prefixes(self, options: &TrainOptions) -> Result<()> {
        let TrainOptions { prefixes, prefix_weights, n_latents, .. } = options;
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
            Self::Relu => Rule::Relu,
            Self::Gated => Rule::Gated,
            Self::JumpRelu => {
                let target_l0 = options.target_l0;
                let penalty = match options.penalty {
                    Penalty::Step => training::Penalty::Step,
                    Penalty::Tanh => training::Penalty::Tanh,
                    Penalty::Quadratic => training::Penalty::Quadratic { target_l0 },
                };
                Rule::JumpRelu(JumpRelu { bandwidth: options.bandwidth, penalty })
            }
        }
    }

    /// What the run makes.
    pub(super) fn spec(self, options: &TrainOptions) -> Spec {
        let mut spec = Spec::new(self.architecture(options.k), options.width(), options.n_latents);
        (spec.layers_in, spec.layers_out) = (options.layers, options.layers);
        spec.subtract_b_dec = options.shape().subtracts_b_dec();
        if options.transcoder {
            spec.d_out = options.d_out;
            spec.denormalize_output = false;
        }
        spec.normalization = options.normalization;
        spec.convention = options.convention.clone();
        spec.prefixes = options.prefixes.clone();
        spec
    }
}
