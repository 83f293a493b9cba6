//! The algorithms, once, over any representation of 16 f32 lanes.
//!
//! Lanes are filled by loops, never by closures handed to the standard library (`array::from_fn`, `map`): the compiler may
//! leave such a function outside the one that is compiled for the instructions, and every load becomes a call.

use half::{bf16, f16};

use crate::backend::cpu::rows::Values;

/// How many partial sums a dot product keeps. 16 fill one AVX-512 register, two of AVX2, four of NEON, half a warp.
pub(super) const LANES: usize = 16;

/// How far ahead weights are fetched that are widened one after another.
const WIDEN_AHEAD: usize = 2048;

/// Sixteen f32 numbers in registers.
///
/// # Safety
/// Methods may use instructions that the machine must have: call them only from functions compiled for them.
pub(super) unsafe trait Lanes: Copy {
    unsafe fn zero() -> Self;
    unsafe fn splat(value: f32) -> Self;
    /// Reads 16 values; `from` need not be aligned.
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    /// `self · by + plus`, rounded once.
    unsafe fn fma(self, by: Self, plus: Self) -> Self;
    /// The sum of the lanes, folded by halves: see [`fold`].
    unsafe fn sum(self) -> f32;

    /// Reads 16 values, widened.
    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self {
        // SAFETY: the caller has 16 readable values.
        unsafe { Self::load(from.cast::<[f16; LANES]>().read().map(f16::to_f32).as_ptr()) }
    }

    /// Reads 16 values, widened.
    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self {
        // SAFETY: the caller has 16 readable values.
        unsafe { Self::load(from.cast::<[bf16; LANES]>().read().map(bf16::to_f32).as_ptr()) }
    }

    /// Begins to fetch a cache line into the second-level cache, where more can be under way at once than to the first.
    #[inline(always)]
    unsafe fn prefetch(_line: *const u8) {}
}

/// A type that weights are kept in.
pub(super) trait Weight: bytemuck::Zeroable + Copy {
    /// Reads 16 weights as f32, which hold them exactly.
    unsafe fn load<L: Lanes>(from: *const Self) -> L;
}

impl Weight for f32 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const Self) -> L {
        // SAFETY: the caller has 16 readable values.
        unsafe { L::load(from) }
    }
}

impl Weight for f16 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const Self) -> L {
        // SAFETY: the caller has 16 readable values.
        unsafe { L::load_f16(from) }
    }
}

impl Weight for bf16 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const Self) -> L {
        // SAFETY: the caller has 16 readable values.
        unsafe { L::load_bf16(from) }
    }
}

/// Fetches what rows hold at position `j`, once per cache line.
#[inline(always)]
pub(super) unsafe fn prefetch<L: Lanes, W, const C: usize>(rows: [*const W; C], j: usize) {
    if (j * size_of::<W>()).is_multiple_of(64) {
        // SAFETY: the caller has the instructions; fetching is harmless wherever it points.
        rows.iter().for_each(|row| unsafe { L::prefetch(row.wrapping_add(j).cast()) });
    }
}

/// How much of a length is whole sixteens.
#[inline(always)]
pub(super) fn whole(d: usize) -> usize {
    d - d % LANES
}

/// Adds lanes l and l + w for w = 8, 4, 2, 1.
#[inline(always)]
pub(super) fn fold(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for l in 0..width {
            lanes[l] += lanes[l + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// The last, incomplete 16 of a vector, filled up with +0.
#[inline(always)]
pub(super) unsafe fn load_tail<L: Lanes, W: Weight>(from: *const W, count: usize) -> L {
    let mut padded = [W::zeroed(); LANES];
    // SAFETY: the caller's vector has `count` < 16 values here.
    unsafe {
        std::ptr::copy_nonoverlapping(from, padded.as_mut_ptr(), count);
        W::load(padded.as_ptr())
    }
}

/// Canonical dot product.
///
/// # Safety
/// The machine must have `L`'s instructions; the slices must be equally long.
#[inline(always)]
pub(super) unsafe fn dot<L: Lanes>(a: &[f32], b: &[f32]) -> f32 {
    let mut out = [0.0];
    // SAFETY: one row each, of equal length.
    unsafe { tile::<L, f32, 1, 1>(a.as_ptr(), [b.as_ptr()], None, a.len(), &mut out, 1) };
    out[0]
}

/// `R` rows of x against `C` rows of w: as many sums in registers as loads can feed. The rows that come next are fetched
/// meanwhile.
///
/// # Safety
/// The machine must have `L`'s instructions; there must be R rows of x and C rows of w, `d` values each, and as many ahead.
#[inline(always)]
pub(super) unsafe fn tile<L: Lanes, W: Weight, const R: usize, const C: usize>(
    x: *const f32,
    w: [*const W; C],
    ahead: Option<[*const W; C]>,
    d: usize,
    out: &mut [f32],
    out_stride: usize,
) {
    let whole = whole(d);
    // SAFETY: the caller's promises; reads stay below d.
    unsafe {
        let mut sums = [[L::zero(); C]; R];
        let mut j = 0;
        while j < whole {
            if let Some(ahead) = ahead {
                prefetch::<L, W, C>(ahead, j);
            }
            let mut w_lanes = [L::zero(); C];
            for (w_lanes, w) in w_lanes.iter_mut().zip(w) {
                *w_lanes = W::load(w.add(j));
            }
            for (r, row) in sums.iter_mut().enumerate() {
                let x_lanes = L::load(x.add(r * d + j));
                for c in 0..C {
                    row[c] = x_lanes.fma(w_lanes[c], row[c]);
                }
            }
            j += LANES;
        }
        if whole < d {
            for (r, row) in sums.iter_mut().enumerate() {
                let x_lanes: L = load_tail(x.add(r * d + whole), d - whole);
                for (c, sum) in row.iter_mut().enumerate() {
                    *sum = x_lanes.fma(load_tail(w[c].add(whole), d - whole), *sum);
                }
            }
        }
        for (r, row) in sums.iter().enumerate() {
            for (c, sum) in row.iter().enumerate() {
                out[r * out_stride + c] = sum.sum();
            }
        }
    }
}

/// All pairs of rows; see [`Kernels::scores`](super::Kernels::scores). `R` × `C` is the register tile.
///
/// # Safety
/// The machine must have `L`'s instructions; the shapes must fit.
#[inline(always)]
pub(super) unsafe fn pairs<L: Lanes, W: Weight, const R: usize, const C: usize>(
    x: &[f32],
    w: &[W],
    d: usize,
    out: &mut [f32],
) {
    let (rows, cols) = (x.len() / d, w.len() / d);
    let mut c = 0;
    while c < cols {
        let wide = c + C <= cols;
        let mut r = 0;
        while r < rows {
            let out = &mut out[r * cols + c..];
            // SAFETY: R (or 1) rows from r and C (or 1) rows from c are within the slices; those ahead are not read.
            unsafe {
                let (x, w) = (x.as_ptr().add(r * d), w.as_ptr().add(c * d));
                match (r + R <= rows, wide) {
                    (true, true) => tile::<L, W, R, C>(x, neighbours(w, d), None, d, out, cols),
                    (true, false) => tile::<L, W, R, 1>(x, [w], None, d, out, cols),
                    (false, true) => {
                        // A single token waits for memory; where there are more, their sums need the registers.
                        let ahead = neighbours(w.wrapping_add(C * d), d);
                        tile::<L, W, 1, C>(x, neighbours(w, d), Some(ahead), d, out, cols);
                    }
                    (false, false) => tile::<L, W, 1, 1>(x, [w], None, d, out, cols),
                }
            }
            r += if r + R <= rows { R } else { 1 };
        }
        c += if wide { C } else { 1 };
    }
}

/// Rows one after another.
#[inline(always)]
fn neighbours<W, const C: usize>(w: *const W, d: usize) -> [*const W; C] {
    std::array::from_fn(|c| w.wrapping_add(c * d))
}

/// [`pairs`], whatever the type.
///
/// # Safety
/// As there.
pub(super) unsafe fn scores<L: Lanes, const R: usize, const C: usize>(
    x: &[f32],
    w: Values<'_>,
    d: usize,
    out: &mut [f32],
) {
    // SAFETY: the caller's promises.
    unsafe {
        match w {
            Values::F32(w) => pairs::<L, f32, R, C>(x, w, d, out),
            Values::F16(w) => pairs::<L, _, R, C>(x, w, d, out),
            Values::BF16(w) => pairs::<L, _, R, C>(x, w, d, out),
        }
    }
}

/// See [`Kernels::widen`](super::Kernels::widen).
///
/// # Safety
/// The machine must have `L`'s instructions; the slices must be equally long.
#[inline(always)]
pub(super) unsafe fn widen<L: Lanes>(from: Values<'_>, to: &mut [f32]) {
    // SAFETY: the caller's promises.
    unsafe {
        match from {
            Values::F32(from) => to.copy_from_slice(from),
            Values::F16(from) => widen_from::<L, _>(from, to),
            Values::BF16(from) => widen_from::<L, _>(from, to),
        }
    }
}

#[inline(always)]
unsafe fn widen_from<L: Lanes, W: Weight>(from: &[W], to: &mut [f32]) {
    let whole = whole(to.len());
    // SAFETY: reads and writes stay below the common length; what is ahead is not read.
    unsafe {
        for j in (0..whole).step_by(LANES) {
            prefetch::<L, W, 1>([from.as_ptr().wrapping_add(WIDEN_AHEAD)], j);
            W::load::<L>(from.as_ptr().add(j)).store(to.as_mut_ptr().add(j));
        }
        if whole < to.len() {
            let mut padded = [0.0; LANES];
            let count = to.len() - whole;
            load_tail::<L, W>(from.as_ptr().add(whole), count).store(padded.as_mut_ptr());
            to[whole..].copy_from_slice(&padded[..count]);
        }
    }
}

/// `y = fma(a, x, y)`, element by element.
///
/// # Safety
/// The machine must have `L`'s instructions; the slices must be equally long.
#[inline(always)]
pub(super) unsafe fn axpy<L: Lanes>(a: f32, x: &[f32], y: &mut [f32]) {
    let whole = whole(x.len());
    // SAFETY: reads and writes stay below the common length.
    unsafe {
        let factor = L::splat(a);
        let mut j = 0;
        while j < whole {
            let sum = factor.fma(L::load(x.as_ptr().add(j)), L::load(y.as_ptr().add(j)));
            sum.store(y.as_mut_ptr().add(j));
            j += LANES;
        }
    }
    for (x, y) in x[whole..].iter().zip(&mut y[whole..]) {
        *y = a.mul_add(*x, *y);
    }
}
