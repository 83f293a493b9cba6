//! Crosscoders (Lindsey et al. 2024, "Sparse Crosscoders for Cross-Layer Features and Model Diffing"): latents that are read
//! from, and written to, several layers of a model at once, by any of the rules,
//!
//! ```text
//! h = Σ_l W_enc[l] x_l + b_enc     z = the rule's     x̂_l = Σ_i z_i W_dec[i, l] + b_dec[l]
//! L = Σ_l ‖x_l − x̂_l‖² + λ Σ_i z_i c_i     c_i = Σ_l ‖W_dec[i, l]‖
//! ```
//!
//! where recipes that choose latents choose by `z_i c_i` (Minder et al. 2025, arXiv 2504.02922). The sum of the layers' norms
//! makes a latent pay for each layer that it writes, so that it writes where it must.
//!
//! jkminder's dictionary_learning has the same loss with `use_mse_loss`, but for a mean over the layers, and the same choice; by
//! default it minimises the norm of the error at each layer, not its square.
//!
//! Neither term changes where a latent's decoder is divided by a number and its encoder, b_enc and threshold are multiplied by
//! it. So `c_i = 1` is no restriction: decoder rows are brought back to it after each step, and the part of their gradient
//! that would leave it, along the layers' directions, is not applied. With that, the penalty and the choice are those of an
//! SAE over all layers side by side.
