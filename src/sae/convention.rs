//! What an SAE's inputs must look like. A wrong convention is the commonest silent failure: the sizes fit, the numbers
//! are finite, and the features are nonsense.

use serde::{Deserialize, Serialize};

use super::HookPoint;

/// The input convention, as far as it is known; `None` means the file does not say.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Convention {
    /// The model whose activations it was trained on, under the name the file gives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model_name: Option<String>,
    /// Where in the model the input is read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hook_point: Option<HookPoint>,
    /// Where the output belongs, if elsewhere (transcoders).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hook_point_out: Option<HookPoint>,
    /// Whether texts began with the beginning-of-sequence token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prepend_bos: Option<bool>,
    /// Tokens per context in training.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context_size: Option<u32>,
    /// Token positions left out of training, such as the attention sink at 0.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub excluded_positions: Vec<u32>,
    /// Whether the training model's writing weights were centred, so that inputs have mean 0 over `d`. An engine's
    /// residual stream does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub centered_writing_weights: Option<bool>,
    /// Whether the training model's LayerNorm weights were folded into the next layer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub folded_layer_norm: Option<bool>,
}
