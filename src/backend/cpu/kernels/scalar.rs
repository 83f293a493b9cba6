//! The oracle: plain Rust, one lane at a time.

use super::Kernels;
use super::gather;
use super::int8;
use super::lanes::{self, LANES, Lanes};
use super::loops::Set;
use super::sums;

pub(super) const KERNELS: Kernels = Kernels {
    name: "scalar",
    set: Set::Baseline,
    fast_products: false,
    dot: lanes::dot::<Plain>,
    scores: lanes::scores::<Plain, 1, 1>,
    axpy: lanes::axpy::<Plain>,
    dots_at: gather::dots_at::<Plain>,
    widen: lanes::widen::<Plain>,
    add_rows_at: gather::add_rows_at::<Plain>,
    add_rows: sums::add_rows::<Plain, 1, 1>,
    product: int8::scalar_product,
};

#[derive(Clone, Copy)]
struct Plain([f32; LANES]);

// SAFETY: uses no special instructions.
unsafe impl Lanes for Plain {
    #[inline(always)]
    unsafe fn zero() -> Self {
        Self([0.0; LANES])
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; LANES])
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller has 16 readable values.
        Self(unsafe { from.cast::<[f32; LANES]>().read() })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller has 16 writable values.
        unsafe { to.cast::<[f32; LANES]>().write(self.0) };
    }

    #[inline(always)]
    unsafe fn fma(self, by: Self, plus: Self) -> Self {
        Self(std::array::from_fn(|l| self.0[l].mul_add(by.0[l], plus.0[l])))
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        lanes::fold(self.0)
    }
}
