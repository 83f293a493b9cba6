//! NEON, which every aarch64 machine has, and its dot products of bytes, which most have.

use std::arch::aarch64::{
    float32x4_t, vadd_f32, vaddq_f32, vdupq_n_f32, vfmaq_f32, vget_high_f32, vget_lane_f32, vget_low_f32, vld1_u16,
    vld1q_f32, vpadd_f32, vreinterpretq_f32_u32, vshll_n_u16, vst1q_f32,
};

use half::bf16;

use super::Kernels;
use super::gather;
use super::int8;
use super::lanes::{self, Lanes};
use super::loops::Set;
use super::sums;

/// The sets this machine runs, slowest first.
pub(super) fn supported() -> impl Iterator<Item = Kernels> {
    let dotprod = std::arch::is_aarch64_feature_detected!("dotprod");
    [Some(NEON), dotprod.then_some(DOTPROD)].into_iter().flatten()
}

const NEON: Kernels = Kernels {
    name: "neon",
    set: Set::Baseline,
    fast_products: false,
    dot: lanes::dot::<Neon>,
    scores: lanes::scores::<Neon, 2, 2>,
    axpy: lanes::axpy::<Neon>,
    dots_at: gather::dots_at::<Neon>,
    widen: lanes::widen::<Neon>,
    add_rows_at: gather::add_rows_at::<Neon>,
    add_rows: sums::add_rows::<Neon, 4, 1>,
    product: int8::neon::plain,
};

const DOTPROD: Kernels = Kernels { name: "dotprod", fast_products: true, product: int8::neon::dotprod, ..NEON };

/// Lanes 0 to 3, 4 to 7, 8 to 11, 12 to 15.
#[derive(Clone, Copy)]
struct Neon([float32x4_t; 4]);

// SAFETY: NEON is part of aarch64.
unsafe impl Lanes for Neon {
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: as the impl says.
        unsafe { Self::splat(0.0) }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: as the impl says.
        unsafe { Self([vdupq_n_f32(value); 4]) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: as the impl says; the caller has 16 readable values.
        unsafe { Self([vld1q_f32(from), vld1q_f32(from.add(4)), vld1q_f32(from.add(8)), vld1q_f32(from.add(12))]) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        for (i, four) in self.0.into_iter().enumerate() {
            // SAFETY: as the impl says; the caller has 16 writable values.
            unsafe { vst1q_f32(to.add(4 * i), four) };
        }
    }

    #[inline(always)]
    unsafe fn fma(self, by: Self, plus: Self) -> Self {
        let (Self(a), Self(b), Self(c)) = (self, by, plus);
        // SAFETY: as the impl says.
        unsafe {
            Self([
                vfmaq_f32(c[0], a[0], b[0]),
                vfmaq_f32(c[1], a[1], b[1]),
                vfmaq_f32(c[2], a[2], b[2]),
                vfmaq_f32(c[3], a[3], b[3]),
            ])
        }
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let [a, b, c, d] = self.0;
        // SAFETY: as the impl says.
        unsafe {
            let four = vaddq_f32(vaddq_f32(a, c), vaddq_f32(b, d));
            let two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
            vget_lane_f32::<0>(vpadd_f32(two, two))
        }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self {
        // SAFETY: as the impl says; the caller has 16 readable values. A bf16 is the upper half of its f32.
        unsafe {
            let mut lanes = Self::zero();
            for (i, four) in lanes.0.iter_mut().enumerate() {
                *four = vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(from.add(4 * i).cast())));
            }
            lanes
        }
    }

    #[inline(always)]
    unsafe fn prefetch(line: *const u8) {
        // SAFETY: fetching is harmless wherever it points.
        unsafe {
            std::arch::asm!("prfm pldl2keep, [{}]", in(reg) line, options(nostack, readonly, preserves_flags));
        }
    }
}
