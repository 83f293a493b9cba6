//! The facts about an SAE that its numbers depend on, apart from the numbers themselves.

use serde::{Deserialize, Serialize};

use super::Convention;
use crate::error::{Result, fail};

/// How pre-activations become sparse activations.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case", from = "Fields")]
pub enum Architecture {
    /// The `k` largest pre-activations, then ReLU (Gao et al. 2024, section 2.3).
    TopK {
        /// How many pre-activations are kept; fewer may be positive.
        k: usize,
    },
    /// ReLU: every positive pre-activation.
    Relu,
    /// `h` where `h > threshold[i]` and `h > 0`, both strict (Rajamanoharan et al. 2024).
    JumpRelu,
}

/// An [`Architecture`] as it is read. Serde lets variants without fields have any; empty ones refuse them.
#[derive(Deserialize)]
#[serde(tag = "name", rename_all = "snake_case", deny_unknown_fields)]
enum Fields {
    TopK { k: usize },
    Relu {},
    JumpRelu {},
}

impl From<Fields> for Architecture {
    fn from(fields: Fields) -> Self {
        match fields {
            Fields::TopK { k } => Self::TopK { k },
            Fields::Relu {} => Self::Relu,
            Fields::JumpRelu {} => Self::JumpRelu,
        }
    }
}

impl Architecture {
    /// The field's name for it, as written in the native format.
    pub fn name(self) -> &'static str {
        match self {
            Self::TopK { .. } => "top_k",
            Self::Relu => "relu",
            Self::JumpRelu => "jump_relu",
        }
    }

    /// `k` where the architecture has one.
    pub fn k(self) -> Option<usize> {
        match self {
            Self::TopK { k } => Some(k),
            Self::Relu | Self::JumpRelu => None,
        }
    }

    /// Whether a latent's activation depends on the other latents of its token, so that it cannot be computed alone.
    pub fn latents_compete(self) -> bool {
        matches!(self, Self::TopK { .. })
    }
}

/// What is done to each token's activation vector before encoding, and undone after decoding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Normalization {
    /// Nothing.
    #[default]
    None,
    /// `(x − μ) / (σ + 1e-5)` with the unbiased standard deviation σ; undone by `· σ + μ` (without the 1e-5).
    LayerNorm,
    /// `x · √d / ‖x‖`; undone by the division.
    ConstantNorm,
}

impl Normalization {
    /// Floats of `row_state` that each token needs to be decoded: mean and σ, or the factor √d/‖x‖.
    pub fn row_state_width(self) -> usize {
        match self {
            Self::None => 0,
            Self::LayerNorm => 2,
            Self::ConstantNorm => 1,
        }
    }
}

/// Everything about an SAE but its weights. The native format stores it as JSON, field by field.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// How pre-activations become activations.
    pub architecture: Architecture,
    /// Width of the input.
    pub d_in: usize,
    /// Width of the output; differs from `d_in` only for transcoders.
    pub d_out: usize,
    /// Number of latents held here.
    pub n_latents: usize,
    /// Global index of the first latent held here; not 0 only for a shard.
    #[serde(default)]
    pub first_latent: usize,
    /// Latents of the whole SAE, if this is a shard of one; 0 if it is whole.
    #[serde(default)]
    pub shard_of: usize,
    /// What is done to inputs before encoding.
    #[serde(default)]
    pub normalization: Normalization,
    /// Whether decoding undoes the normalisation; transcoders do not.
    pub denormalize_output: bool,
    /// Whether `b_dec` is subtracted from the input ("apply_b_dec_to_input").
    pub subtract_b_dec: bool,
    /// Whether pre-activations are multiplied by `‖W_dec[i]‖`, and activations divided by it before decoding.
    #[serde(default)]
    pub rescale_by_decoder_norm: bool,
    /// What the inputs must look like.
    #[serde(default)]
    pub convention: Convention,
}

impl Spec {
    /// An autoencoder of the given architecture with no normalisation that subtracts `b_dec`: what training makes.
    pub fn new(architecture: Architecture, d: usize, n_latents: usize) -> Self {
        Self {
            architecture,
            d_in: d,
            d_out: d,
            n_latents,
            first_latent: 0,
            shard_of: 0,
            normalization: Normalization::None,
            denormalize_output: true,
            subtract_b_dec: true,
            rescale_by_decoder_norm: false,
            convention: Convention::default(),
        }
    }

    /// Refuses sizes that no SAE has, or that indices cannot name.
    pub fn check(&self) -> Result<()> {
        for (name, value) in [("d_in", self.d_in), ("d_out", self.d_out), ("n_latents", self.n_latents)] {
            if value == 0 || value > i32::MAX as usize {
                return fail!(InvalidArgument, "{name} must be between 1 and {}, not {value}", i32::MAX);
            }
        }
        let (first, count, whole) = (self.first_latent, self.n_latents, self.whole_latents());
        if whole > i32::MAX as usize || first.checked_add(count).is_none_or(|end| end > whole) {
            return fail!(InvalidArgument, "latents {first}..+{count} are not a part of an SAE's {whole}");
        }
        if self.subtract_b_dec && self.d_in != self.d_out {
            return fail!(
                InvalidArgument,
                "b_dec [{}] cannot be subtracted from an input of width {}",
                self.d_out,
                self.d_in
            );
        }
        if self.denormalize_output && self.normalization != Normalization::None && self.d_in != self.d_out {
            return fail!(
                InvalidArgument,
                "an output of width {} cannot be denormalised by statistics of an input of width {}",
                self.d_out,
                self.d_in
            );
        }
        match self.architecture {
            Architecture::TopK { k: 0 } => fail!(InvalidArgument, "k must be at least 1"),
            Architecture::TopK { k } if k > i32::MAX as usize => {
                fail!(InvalidArgument, "k must be at most {}, not {k}", i32::MAX)
            }
            _ => Ok(()),
        }
    }

    /// Whether latents of the same SAE are held elsewhere.
    pub fn is_shard(&self) -> bool {
        self.shard_of != 0
    }

    /// Latents of the whole SAE, of which this may be a shard.
    pub fn whole_latents(&self) -> usize {
        if self.is_shard() { self.shard_of } else { self.n_latents }
    }

    /// The most latents that can be active on one token.
    pub fn max_active(&self) -> usize {
        self.architecture.k().map_or(self.n_latents, |k| k.min(self.n_latents))
    }

    /// Floats of `row_state` per token; 0 where decoding needs nothing of the input.
    pub fn row_state_width(&self) -> usize {
        if self.denormalize_output { self.normalization.row_state_width() } else { 0 }
    }
}
