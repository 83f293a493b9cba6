//! ReLU with an L1 penalty (Bricken et al. 2023, "Towards Monosemanticity"; Conerly et al. 2024, "Update on how we train SAEs"):
//!
//! ```text
//! z = ReLU(h)     L = ‖x − x̂‖² + λ Σ_i z_i ‖W_dec[i]‖     ∂L/∂h_i = −2 r · W_dec[i] + λ  where h_i > 0, else 0
//! ```
//!
//! Decoder rows have norm 1 at every step, and the part of their gradient along themselves, which is all that the penalty has,
//! is not applied: so the norm in it is 1.
