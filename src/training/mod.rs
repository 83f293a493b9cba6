//! Training SAEs, transcoders and crosscoders from activations as they flow by. Each [`Recipe`] has its loss and gradient where
//! [`backend::training::Rule`](crate::backend::training::Rule) has it; what they share is told here of the plainest, TopK:
//! "Scaling and evaluating sparse autoencoders" (Gao et al. 2024, arXiv 2406.04093), sections 2.1 to 2.4 and appendix A.
//!
//! What it minimises, over the tokens of a batch (`x` normalised first if the options say so):
//!
//! ```text
//! h = W_enc (x − b_dec) + b_enc          z = ReLU(the k largest of h)          x̂ = Σ z_i W_dec[i] + b_dec
//! mse  = mean((x̂ − x)²) / normalizer      normalizer = mean((x − mean_rows(x))²) of the first sample
//! aux  = α · mean((ê − e)²) / mean((e − mean_rows(e))²)
//!        e = x − x̂, held constant          ê = Σ a_i W_dec[i] over the k_aux largest positive h of dead latents
//! ```
//!
//! A latent is dead when its activation has not exceeded [`FIRED`] for `dead_after_tokens` tokens, those of the present batch
//! included. `ê` carries no b_dec, so AuxK reaches b_dec only through the encoder's input. Without dead latents, or where
//! `e` does not vary, `aux` is 0.
//!
//! One optimizer step, in this order: the part of each decoder row's gradient that is parallel to the row is removed; the
//! gradient is clipped by its global norm; the moving average takes in the weights the gradient was taken at; Adam; the
//! decoder's rows are scaled back to unit norm. So decoder rows have unit norm at every batch, and both exports do: the
//! weights as they are, the moving average after its own rows were scaled.
//!
//! Accumulated calls add up their tokens' gradients, and the step takes the mean over all of them. AuxK's ratio is of each
//! call's own tokens, weighted by their number, with the latents dead at that call: with AuxK, accumulation is close to one
//! large batch, without it the same but for rounding. BatchTopK and Matryoshka go further apart: latents of all tokens compete
//! within one call, never between accumulated ones. Resampling draws from the last call's tokens alone.
//!
//! The same options, data and order give the same bits on any number of threads.

mod checkpoint;
pub mod data;
mod export;
mod init;
mod options;
mod recipe;
pub mod run;
mod schedule;
mod stats;
mod trainer;
mod warm_start;

pub use crate::backend::training::Parameter;
pub use options::TrainOptions;
pub use recipe::{Penalty, Recipe, Scaling};
pub use stats::{Progress, StepStats};
pub use trainer::{Batch, Export, Trainer};

/// A latent has fired on a token when its activation exceeds this.
pub const FIRED: f32 = 1e-3;
