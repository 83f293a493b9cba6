//! Where the numbers are made: the same operations on every device, behind [`Operations`].
//!
//! # The canonical score
//!
//! In the EXACT mode every backend, instruction set, thread count and batch split gives the same bits, because each
//! number is defined down to the order of its sums. All arithmetic is IEEE 754 binary32, round to nearest even.
//!
//! **Dot product** of `a` and `b` of length d: 16 lanes start at +0; lane l takes `lane = fma(a[j], b[j], lane)` for j = l,
//! l + 16, l + 32 … in ascending order, where positions from d up to the next multiple of 16 hold +0 in both vectors; then
//! lanes fold by `lane[l] += lane[l + w]` for w = 8, 4, 2, 1. The **sum** of `a` is its dot product with ones.
//!
//! **Input** of a token: `x` converted to f32, plus the converted addend if there is one (rounded to x's type if asked).
//! If any element is not finite, the row has no features and its count is −1. Centring, and `layer_norm` in any case, takes
//! `μ = sum(x) / d`, `c = x − μ`; without them `c = x`. Normalisation (see [`Normalization`](crate::sae::Normalization))
//! takes, for `layer_norm`, `σ = √(dot(c, c) / (d − 1))`, `x' = c / (σ + 1e-5)`; for `constant_norm`, `s = √d / √dot(c, c)`,
//! `x' = c · s`; without it `x' = c`. A row whose statistics are not finite counts as not finite. Then `x″ = x' − b_dec` if
//! the SAE subtracts it. A crosscoder's `x` is its layers' vectors one after another.
//!
//! **Pre-activation** of latent i, each operation rounded: `h = dot(W_enc[i], x″) + b_enc[i]`; for Gated,
//! `h = dot(W_enc[i], x″) · exp(r_mag[i]) + b_enc[i]`; with a GLU encoder, `h` is multiplied by `σ(dot(W_glu[i], x″) +
//! b_glu[i])`, where `σ(v) = 1 / (1 + exp(−v))`; if the SAE rescales by decoder norms, by `‖W_dec[i]‖` (summed in f64, rounded
//! once to f32). Both `exp` are `expf` of the crate `libm`, the same bits everywhere. Weights are taken as they are kept:
//! bf16 weights are exact bf16 numbers. A pre-activation that is not finite ranks last: it is never active.
//!
//! **Selection**. A latent is a candidate if `h > 0`; for JumpReLU, if also `r > threshold[i]`; for Gated, if also its gate is
//! open: `dot(W_enc[i], x″) + b_gate[i] > 0`; for AbsTopK, if `h ≠ 0`. Where latents are selected by decoder norms,
//! `r = h · ‖W_dec[i]‖`, else `r = h`. TopK keeps the k candidates with the largest r, AbsTopK with the largest |r|, GroupMax
//! the one with the largest r of each group; of equals the lower index; and r must pass as h does: finite, and not 0 or less.
//! Features are listed by |h| descending, ties by the lower index, whatever selected them.
//!
//! **Decoding**: `x̂` starts as b_dec; for each slot in order, `x̂ = fma(z, W_dec[i], x̂)`, where z is divided by `‖W_dec[i]‖`
//! first if the SAE rescales; then `x̂ · σ + μ` as one fma for `layer_norm`, or `x̂ / s` for `constant_norm`, and `+ μ` if the
//! SAE centres; then the skip path adds `dot(W_skip[r], x)` to element r.
//!
//! Results in f16 or bf16 are the f32 ones rounded once; feature values beyond the type's range become its largest.
//!
//! **Steering**: `Δ` starts at +0; for each edit in order, `Δ = fma(δ, W_dec[i], Δ)` with δ divided by `‖W_dec[i]‖` if the SAE
//! rescales; then `out = fma(Δ, scale, y)` with the row's scale: σ, 1/s, or 1 (the mean cancels out). Rows whose every δ is 0 keep their bits, and
//! so do rows where x, y or a δ is not finite.

pub mod cpu;
pub mod cuda;
mod helpers;
mod operations;
mod pool;
pub mod training;

pub use operations::{DeviceWorkspace, Input, Limits, Operations, Order, Run, Screen, Steering, Stream, Wanted};
pub use pool::{ParallelFor, Pool};
