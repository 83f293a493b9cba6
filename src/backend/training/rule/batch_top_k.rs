//! BatchTopK (Bussmann et al. 2024, arXiv 2412.06410): of all positive scores of a batch of T tokens the `k · T` largest are
//! kept, so that a token has as many as it needs. Loss and gradient are TopK's. Of equals the earlier token's win, then the
//! lower latent's, so that the numbers of a batch do not depend on how it was gone through.
//!
//! The smallest activation that was kept is told with each batch: its average becomes the threshold by which latents are
//! active when they no longer compete.
