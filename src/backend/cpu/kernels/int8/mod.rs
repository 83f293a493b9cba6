//! Products of bytes, exact in whole numbers on every instruction set, and which of the scores they bound can matter.
//!
//! `x` holds q + 128 of each token's numbers, `[rows, padded]`, since some processors multiply signed by unsigned bytes;
//! `w` one or two panels of [`Int8Rows`](crate::sae::int8::Int8Rows), `[padded / 4][16][4]` each.

#[cfg(any(target_arch = "x86_64", test))]
pub(super) mod amx;
#[cfg(target_arch = "aarch64")]
pub(super) mod neon;
mod scalar;
#[cfg(target_arch = "x86_64")]
pub(super) mod x86;

pub(super) use scalar::product as scalar_product;

use super::{Kernels, Loop};
use crate::sae::int8::PANEL;

/// Panels of one product at most.
pub(crate) const PANELS: usize = 2;
/// Latents of one product at most.
pub(crate) const WIDTH: usize = PANELS * PANEL;

/// `out[r, c] = Σ_j (x[r, j] − 128) · w[c, j]`, the arguments as in [`Product`].
pub(super) type ProductFn = unsafe fn(&Product<'_>, &mut [i32]);

/// Whose product is wanted.
#[derive(Clone, Copy)]
pub(crate) struct Product<'a> {
    /// `[rows, padded]`.
    pub x: &'a [u8],
    /// One or two panels.
    pub w: &'a [i8],
    /// `Σ_j w[c, j]` for each latent of the panels.
    pub sums: &'a [i32],
    /// Length of a row, a multiple of 64.
    pub padded: usize,
}

impl Product<'_> {
    fn rows(&self) -> usize {
        self.x.len() / self.padded
    }
}

/// The scores of a block of latents, in whole numbers, and what turns them into bounds. With `s` the token's scale times
/// the latent's, the score is within `reach + lost · rest + most · outliers + norm · dx` of
/// `s · product + bias`.
#[derive(Clone, Copy)]
pub(crate) struct Sieve<'a> {
    /// `[rows, latents]`.
    pub products: &'a [i32],
    /// The tokens; their fine products are in rows behind those of all tokens.
    pub tokens: &'a [Token],
    /// Of each latent: what products are multiplied by.
    pub scale: &'a [f32],
    /// Of each latent: what is added.
    pub bias: &'a [f32],
    /// Of each latent: the bound's constant part, less any threshold.
    pub reach: &'a [f32],
    /// Of each latent: what counts `Token::rest` times.
    pub lost: &'a [f32],
    /// Of each latent: what counts `Token::outliers` times.
    pub most: &'a [f32],
    /// Of each latent: what counts `Token::dx` times.
    pub norm: &'a [f32],
    /// Whether scores compete by magnitude.
    pub magnitude: bool,
}

/// What bounds need to know of a token.
#[derive(Clone, Copy, Default)]
pub(crate) struct Token {
    /// What its whole numbers are multiplied by.
    pub scale: f32,
    /// At least the norm of all but its outliers.
    pub rest: f32,
    /// At least the sum of their magnitudes.
    pub outliers: f32,
    /// At least the norm of what rounding it lost, with room for the rounding of everything else.
    pub dx: f32,
    /// Scores below this one do not matter.
    pub floor: f32,
    /// The row of its second product, which counts a 256th; 0 if it has none.
    pub fine: usize,
}

impl Token {
    /// Whether a score cannot matter. Of what is not a number nothing is known.
    #[inline(always)]
    pub(crate) fn rules_out(&self, upper: f32) -> bool {
        upper < self.floor
    }
}

/// A latent whose score may matter to a token.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(crate) struct Survivor {
    /// The token.
    pub row: u32,
    /// The latent's number in the block.
    pub latent: u32,
    /// At least its score (of magnitudes: its magnitude), if not NaN.
    pub upper: f32,
    /// At most that.
    pub lower: f32,
}

impl Kernels {
    /// Products of some rows with one or two panels; `out` is `[rows, 16 · panels]`.
    pub(crate) fn product(self, product: &Product<'_>, out: &mut [i32]) {
        let Product { x, w, sums, padded } = *product;
        assert!(padded > 0 && padded.is_multiple_of(64) && x.len().is_multiple_of(padded));
        assert!(sums.len().is_multiple_of(PANEL) && sums.len() <= WIDTH && w.len() == padded * sums.len());
        assert_eq!(out.len(), product.rows() * sums.len());
        // SAFETY: a set is only handed out where the machine runs it; the shapes fit, as just checked.
        unsafe { (self.product)(product, out) }
    }

    /// Finds the scores that may reach their tokens' floors; tells how many. `out` has room for all of them, and a panel
    /// more.
    pub(crate) fn sift(self, sieve: &Sieve<'_>, out: &mut [Survivor]) -> usize {
        self.run(Sift { sieve, out })
    }
}

struct Sift<'a> {
    sieve: &'a Sieve<'a>,
    out: &'a mut [Survivor],
}

impl Loop for Sift<'_> {
    type Output = usize;

    #[inline(always)]
    fn run(self) -> usize {
        sift(self.sieve, self.out)
    }
}

#[inline(always)]
fn sift(sieve: &Sieve<'_>, out: &mut [Survivor]) -> usize {
    let (width, mut found) = (sieve.scale.len(), 0);
    for first in (0..width).step_by(PANEL) {
        let part = |v: &[f32]| -> [f32; PANEL] { v[first..first + PANEL].try_into().expect("a panel's width") };
        let (scale, bias, reach) = (part(sieve.scale), part(sieve.bias), part(sieve.reach));
        let (lost, most, norm) = (part(sieve.lost), part(sieve.most), part(sieve.norm));
        let products = |row: usize| -> [f32; PANEL] {
            let at = row * width + first;
            let products: [i32; PANEL] = sieve.products[at..at + PANEL].try_into().expect("a panel's width");
            products.map(|p| p as f32)
        };
        for (row, token) in sieve.tokens.iter().enumerate() {
            let mut scores = products(row);
            if token.fine != 0 {
                let fine = products(token.fine);
                (0..PANEL).for_each(|c| scores[c] = 256.0 * scores[c] + fine[c]);
            }
            let (mut upper, mut lower) = ([0.0; PANEL], [0.0; PANEL]);
            for c in 0..PANEL {
                let score = scores[c] * (scale[c] * token.scale) + bias[c];
                let score = if sieve.magnitude { score.abs() } else { score };
                let reach = reach[c] + (lost[c] * token.rest + most[c] * token.outliers + norm[c] * token.dx);
                (upper[c], lower[c]) = (score + reach, score - reach);
            }
            // Hardly ever does any matter, and the test of all at once is cheap.
            if !upper.iter().fold(true, |none, &upper| none & token.rules_out(upper)) {
                found += collect(token, (row, first), &upper, &lower, &mut out[found..]);
            }
        }
    }
    found
}

/// The survivors of a panel; tells how many. `out` has room for all of it.
#[inline(never)]
fn collect(
    token: &Token,
    (row, first): (usize, usize),
    upper: &[f32; PANEL],
    lower: &[f32; PANEL],
    out: &mut [Survivor],
) -> usize {
    let out = out.first_chunk_mut::<PANEL>().expect("room for a panel");
    let mut found = 0;
    // Which ones nobody could guess: written each time, kept where they count.
    for c in 0..PANEL {
        out[found] = Survivor { row: row as u32, latent: (first + c) as u32, upper: upper[c], lower: lower[c] };
        found += usize::from(!token.rules_out(upper[c]));
    }
    found
}
