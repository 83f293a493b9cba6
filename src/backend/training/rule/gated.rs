//! Gated (Rajamanoharan et al. 2024, arXiv 2404.16014, section 3.2): whether a latent is active, and how strongly, by one direction
//! and two biases,
//!
//! ```text
//! u = W_enc x̄ + b_gate     m = exp(r_mag) ∘ W_enc x̄ + b_enc     z = 1[u > 0] · ReLU(m)
//! L = ‖x − x̂(z)‖² + λ Σ_i ReLU(u_i) + ‖x − x̂_frozen(ReLU(u))‖²
//! ```
//!
//! where x̂_frozen decodes with the same weights (b_dec and a skip path among them), held constant. With r and r′ what the two leave over,
//!
//! ```text
//! g_i = −2 r · W_dec[i]  where z_i > 0           gate_i = −2 r′ · W_dec[i] + λ
//! ∂/∂b_enc = g     ∂/∂r_mag = g · (m − b_enc)     ∂/∂b_gate = gate     ∂/∂(W_enc x̄) = exp(r_mag) · g + gate
//! ```
//!
//! all of them where u > 0 alone.

/// m, from u.
pub(crate) fn magnitude(u: f32, gain: f32, b_gate: f32, b_enc: f32) -> f32 {
    gain * (u - b_gate) + b_enc
}
