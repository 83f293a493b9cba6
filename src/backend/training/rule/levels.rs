//! Matryoshka (Bussmann et al. 2025, arXiv 2503.17547): every prefix of the latents explains the target on its own, and the
//! loss is a weighted sum over the prefixes,
//!
//! ```text
//! r_l = x − b_dec − Σ_{i < prefix_l} z_i W_dec[i]        L = Σ_l w_l ‖r_l‖²
//! ∂L/∂z_i = −2 R_g · W_dec[i]     ∂L/∂W_dec[i] = −2 z_i R_g     ∂L/∂b_dec = −2 R_1      R_g = Σ_{l ≥ g} w_l r_l
//! ```
//!
//! where g is the first prefix that latent i is in. Latents are active by BatchTopK over all of them.

/// One of the prefixes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Level {
    /// Its latents: those before this one.
    pub prefix: usize,
    /// What its squared error is multiplied by.
    pub weight: f32,
}
