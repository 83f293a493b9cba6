//! What an SAE is: a [`Spec`] (architecture, sizes, flags, input convention) and its [`Weights`]. Both are immutable once
//! joined in an [`Sae`], which any number of threads may share.
//!
//! ```text
//! x' = normalize(x)          (of x − mean(x) if center)   Normalization; the token's statistics are kept
//! x″ = x' − b_dec            if subtract_b_dec
//! h  = W_enc x″ + b_enc      (· ‖W_dec[i]‖ if rescale_by_decoder_norm)        pre-activations
//!    = (W_enc x″ + b_enc) · σ(W_glu x″ + b_glu)         with a GLU encoder
//!    = (W_enc x″) · exp(r_mag) + b_enc                  for Gated
//! z  = activation(h)                                 Architecture
//! x̂  = denormalize(Σ z_i W_dec[i] + b_dec) + W_skip x  (z_i / ‖W_dec[i]‖ if rescale_by_decoder_norm)
//! ```

mod convention;
mod family;
mod hook;
pub(crate) mod int8;
mod matrix;
mod remake;
mod spec;
mod weights;

pub use convention::{Convention, Reference};
pub use family::Family;
pub use hook::{HookNames, HookPoint, Site};
pub use matrix::Matrix;
pub(crate) use matrix::all_finite;
pub(crate) use spec::check_factor;
pub use spec::{Architecture, Normalization, Spec};
pub use weights::{Gate, Glu, Sae, Weights};
