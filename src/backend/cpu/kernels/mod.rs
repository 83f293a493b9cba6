//! The few loops everything else is made of, once over 16 lanes and compiled for each instruction set.
//!
//! Every set gives the same bits: a lane is always one fused multiply-add after another, so wider registers only
//! change how many lanes go at once. The scalar one is the oracle.

mod gather;
pub(crate) mod int8;
mod lanes;
mod loops;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;
mod sums;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::sync::OnceLock;

use crate::error::{Result, fail};

pub(crate) use loops::Loop;
pub(crate) use sums::Factors;

use super::rows::{Rows, Values};

/// The loops of one instruction set; cheap to copy.
#[derive(Clone, Copy)]
pub struct Kernels {
    /// `scalar`, `avx2`, `avx512`, `vnni`, `amx`, `neon`, `dotprod`.
    pub name: &'static str,
    set: loops::Set,
    /// Whether products of bytes are so much faster than those of f32 that bounding scores by them pays.
    pub(crate) fast_products: bool,
    dot: unsafe fn(&[f32], &[f32]) -> f32,
    scores: unsafe fn(&[f32], Values<'_>, usize, &mut [f32]),
    axpy: unsafe fn(f32, &[f32], &mut [f32]),
    dots_at: unsafe fn(&[f32], Values<'_>, &[u32], &mut [f32]),
    add_rows_at: unsafe fn(&mut [f32], Values<'_>, &[u32], &[f32]),
    add_rows: unsafe fn(&mut [f32], &[f32], usize, Factors<'_>),
    widen: unsafe fn(Values<'_>, &mut [f32]),
    product: int8::ProductFn,
}

impl Kernels {
    /// The fastest set this machine runs, or the one that `SAE_KERNELS` in the environment names; found once.
    pub fn best() -> Result<Self> {
        static BEST: OnceLock<Result<Kernels>> = OnceLock::new();
        let find = || match std::env::var_os("SAE_KERNELS").filter(|name| !name.is_empty()) {
            Some(name) => Self::named(&name.to_string_lossy()).map_err(|e| e.at("SAE_KERNELS")),
            None => Ok(*Self::all_supported().last().expect("the scalar set always runs")),
        };
        BEST.get_or_init(find).clone()
    }

    /// The set of this name, if this machine runs it.
    pub fn named(name: &str) -> Result<Self> {
        let Some(kernels) = Self::supported().find(|kernels| kernels.name == name) else {
            let names: Vec<_> = Self::supported().map(|kernels| kernels.name).collect();
            return fail!(Unsupported, "expected a set that this machine runs ({}), found {name:?}", names.join(", "));
        };
        Ok(kernels)
    }

    /// Every set this machine runs, slowest (the oracle) first.
    pub fn all_supported() -> Vec<Self> {
        Self::supported().collect()
    }

    fn supported() -> impl Iterator<Item = Self> {
        let all = std::iter::once(scalar::KERNELS);
        #[cfg(target_arch = "x86_64")]
        let all = all.chain(x86::supported());
        #[cfg(target_arch = "aarch64")]
        let all = all.chain(neon::supported());
        all
    }

    /// The canonical dot product of two slices of equal length.
    pub fn dot(self, a: &[f32], b: &[f32]) -> f32 {
        assert_eq!(a.len(), b.len());
        // SAFETY: a set is only handed out where the machine runs it; lengths are equal.
        unsafe { (self.dot)(a, b) }
    }

    /// The canonical sum.
    pub fn sum(self, a: &[f32]) -> f32 {
        // Sixteen ones at a time keep this free of memory of its own; the remainder is padded as in `dot`.
        let mut lanes = [0.0f32; 16];
        for chunk in a.chunks(16) {
            for (lane, value) in lanes.iter_mut().zip(chunk) {
                *lane += value;
            }
        }
        lanes::fold(lanes)
    }

    /// `out[r, c] = dot(x[r], w[c])` for `x [rows, d]`, `w [cols, d]`, `out [rows, cols]`, all dense.
    pub(crate) fn scores(self, x: &[f32], w: Values<'_>, d: usize, out: &mut [f32]) {
        assert!(d > 0 && x.len().is_multiple_of(d) && w.len().is_multiple_of(d));
        assert_eq!(out.len(), (x.len() / d) * (w.len() / d));
        // SAFETY: a set is only handed out where the machine runs it; the shapes fit, as just checked.
        unsafe { (self.scores)(x, w, d, out) }
    }

    /// `y[j] = fma(a, x[j], y[j])`.
    pub fn axpy(self, a: f32, x: &[f32], y: &mut [f32]) {
        assert_eq!(x.len(), y.len());
        // SAFETY: a set is only handed out where the machine runs it; lengths are equal.
        unsafe { (self.axpy)(a, x, y) }
    }

    /// Weights as f32, which hold them exactly.
    pub(crate) fn widen(self, from: Values<'_>, to: &mut [f32]) {
        assert_eq!(from.len(), to.len());
        // SAFETY: a set is only handed out where the machine runs it; lengths are equal.
        unsafe { (self.widen)(from, to) }
    }

    /// `out[i] = dot(rows[ids[i]], x)`: the rows of a list, wherever they lie.
    pub(crate) fn dots_at(self, x: &[f32], rows: Rows<'_>, ids: &[u32], out: &mut [f32]) {
        assert_eq!((x.len(), out.len()), (rows.d(), ids.len()));
        rows.place(ids, |values, ids, span| {
            // SAFETY: a set is only handed out where the machine runs it; the rows exist, the lengths are equal.
            unsafe { (self.dots_at)(x, values, ids, &mut out[span]) }
        });
    }

    /// `sum = fma(z[i], rows[ids[i]], sum)` for each i in order.
    pub(crate) fn add_rows_at(self, sum: &mut [f32], rows: Rows<'_>, ids: &[u32], z: &[f32]) {
        assert_eq!((sum.len(), z.len()), (rows.d(), ids.len()));
        rows.place(ids, |values, ids, span| {
            // SAFETY: a set is only handed out where the machine runs it; the rows exist, the lengths are equal.
            unsafe { (self.add_rows_at)(sum, values, ids, &z[span]) }
        });
    }

    /// `sums[s] = fma(z[s, p], rows[p], sums[s])` for each p in order, for all of `sums` `[S, d]` and `rows` `[P, d]`.
    pub(crate) fn add_rows(self, sums: &mut [f32], rows: &[f32], d: usize, z: Factors<'_>) {
        assert!(d > 0 && sums.len().is_multiple_of(d) && rows.len().is_multiple_of(d));
        let (sum_count, row_count) = (sums.len() / d, rows.len() / d);
        if sum_count == 0 || row_count == 0 {
            return;
        }
        assert!((sum_count - 1) * z.by_sum + (row_count - 1) * z.by_row < z.values.len(), "a factor for each");
        // SAFETY: a set is only handed out where the machine runs it; the shapes fit, as just checked.
        unsafe { (self.add_rows)(sums, rows, d, z) }
    }
}

#[cfg(test)]
mod tests;
