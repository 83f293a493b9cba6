//! Products of bytes by NEON, with its dot products and without.

use std::arch::aarch64::{
    int8x16_t, int32x4_t, vdupq_n_s8, vdupq_n_s32, veorq_s8, vget_low_s8, vld1q_s8, vmull_high_s8, vmull_s8,
    vpadalq_s16, vpaddq_s32, vreinterpretq_s8_s32, vst1q_s32,
};
use std::arch::asm;

use super::Product;
use crate::sae::int8::PANEL;

/// # Safety
/// The machine must have dot products; the shapes must fit.
#[target_feature(enable = "dotprod")]
pub(in super::super) unsafe fn dotprod(product: &Product<'_>, out: &mut [i32]) {
    for first in (0..product.rows()).step_by(4) {
        for panel in 0..product.sums.len() / PANEL {
            // SAFETY: rows from `first` on, and the panel, are there.
            unsafe {
                match product.rows() - first {
                    1 => dotprod_tile::<1>(product, first, panel, out),
                    2 => dotprod_tile::<2>(product, first, panel, out),
                    3 => dotprod_tile::<3>(product, first, panel, out),
                    _ => dotprod_tile::<4>(product, first, panel, out),
                }
            }
        }
    }
}

/// `R` tokens with a panel, every sum in a register.
///
/// # Safety
/// As [`dotprod`]; the rows and the panel must be there.
#[inline]
#[target_feature(enable = "dotprod")]
unsafe fn dotprod_tile<const R: usize>(product: &Product<'_>, first: usize, panel: usize, out: &mut [i32]) {
    let Product { x, w, sums, padded } = *product;
    // SAFETY: the caller's rows and panel, `padded` bytes a row and 16 rows a panel.
    unsafe {
        let (x, w) = (x.as_ptr().add(first * padded), w.as_ptr().add(panel * PANEL * padded));
        let mut totals = [[vdupq_n_s32(0); 4]; R];
        for j in (0..padded).step_by(16) {
            let mut tokens = [vdupq_n_s8(0); R];
            for (r, token) in tokens.iter_mut().enumerate() {
                // q again, which was kept as q + 128.
                *token = veorq_s8(vld1q_s8(x.add(r * padded + j).cast()), vdupq_n_s8(i8::MIN));
            }
            let w = w.add(PANEL * j);
            add_columns::<R, 0>(&mut totals, &tokens, w);
            add_columns::<R, 1>(&mut totals, &tokens, w.add(4 * PANEL));
            add_columns::<R, 2>(&mut totals, &tokens, w.add(8 * PANEL));
            add_columns::<R, 3>(&mut totals, &tokens, w.add(12 * PANEL));
        }
        for (r, totals) in totals.iter().enumerate() {
            let out = out.as_mut_ptr().add((first + r) * sums.len() + panel * PANEL);
            totals.iter().enumerate().for_each(|(i, &four)| vst1q_s32(out.add(4 * i), four));
        }
    }
}

/// Adds the products with four columns of a panel, `LANE` of the four times four in `tokens`.
///
/// # Safety
/// As [`dotprod_tile`].
#[inline]
#[target_feature(enable = "dotprod")]
unsafe fn add_columns<const R: usize, const LANE: u8>(
    totals: &mut [[int32x4_t; 4]; R],
    tokens: &[int8x16_t; R],
    w: *const i8,
) {
    for i in 0..4 {
        // SAFETY: the caller's columns.
        let latents = unsafe { vld1q_s8(w.add(16 * i)) };
        for (totals, &token) in totals.iter_mut().zip(tokens) {
            // SAFETY: the machine has the instruction, whose intrinsic is not stable yet; it works on registers alone.
            unsafe {
                asm!(
                    "sdot {to:v}.4s, {latents:v}.16b, {token:v}.4b[{lane}]",
                    to = inlateout(vreg) totals[i],
                    latents = in(vreg) latents,
                    token = in(vreg) token,
                    lane = const LANE,
                    options(pure, nomem, nostack, preserves_flags),
                );
            }
        }
    }
}

/// # Safety
/// The shapes must fit.
pub(in super::super) unsafe fn plain(product: &Product<'_>, out: &mut [i32]) {
    let Product { x, w, sums, padded } = *product;
    for (x, out) in x.chunks_exact(padded).zip(out.chunks_exact_mut(sums.len())) {
        for (w, out) in w.chunks_exact(PANEL * padded).zip(out.chunks_exact_mut(PANEL)) {
            // SAFETY: NEON is part of aarch64; reads and writes stay within the chunks.
            unsafe {
                // Two sums of pairs for each latent.
                let mut totals = [vdupq_n_s32(0); 8];
                for j in (0..padded).step_by(4) {
                    let four = x.as_ptr().add(j).cast::<u32>().read_unaligned() ^ 0x8080_8080;
                    let token = vreinterpretq_s8_s32(vdupq_n_s32(four as i32));
                    for i in 0..4 {
                        let latents = vld1q_s8(w.as_ptr().add(PANEL * j + 16 * i));
                        let (low, high) =
                            (vmull_s8(vget_low_s8(latents), vget_low_s8(token)), vmull_high_s8(latents, token));
                        totals[2 * i] = vpadalq_s16(totals[2 * i], low);
                        totals[2 * i + 1] = vpadalq_s16(totals[2 * i + 1], high);
                    }
                }
                for (i, pair) in totals.as_chunks::<2>().0.iter().enumerate() {
                    vst1q_s32(out.as_mut_ptr().add(4 * i), vpaddq_s32(pair[0], pair[1]));
                }
            }
        }
    }
}
