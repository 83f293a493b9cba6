//! TopK (Gao et al. 2024, section 2.3): `z = ReLU(the k largest of h)`; the loss is the reconstruction's alone, and its gradient
//! by an active `h` is that by `z`. Which latents are largest is held constant.
//!
//! Multi-TopK (the same, section 5.3): `L(k) + L(4 k) / 8`, both reconstructions of the same scores, so that one SAE serves
//! any k up to beyond 4 k. With leftovers `r₁` of the k largest and `r₂` of the 4 k largest, `∂L/∂z_i = −2 (r₁ + r₂/8) · W_dec[i]`
//! for the first k, and `−2 (r₂/8) · W_dec[i]` for the others.
//!
//! AbsTopK (Zhu et al. 2025, arXiv 2510.00404): `z = the k of h largest in magnitude`, with their signs, no ReLU.

/// Multi-TopK's second reconstruction is of so many times k latents.
pub const MULTI_FACTOR: usize = 4;
/// What its squared error is multiplied by.
pub const MULTI_WEIGHT: f32 = 0.125;
