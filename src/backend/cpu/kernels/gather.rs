//! Work over listed rows of a matrix too large for the caches: a group of rows at a time, in step, while the group after
//! it is fetched. One row after another would wait for memory at the start of each.

use super::lanes::{LANES, Lanes, Weight, load_tail, prefetch, tile, whole};
use crate::backend::cpu::rows::Values;

/// Rows in step: as many fetches under way as the processor has places for.
const GROUP: usize = 4;

/// See [`Kernels::dots_at`](super::Kernels::dots_at).
///
/// # Safety
/// The machine must have `L`'s instructions; `w` must have the rows, `out` a place for each.
#[inline(always)]
pub(super) unsafe fn dots_at<L: Lanes>(x: &[f32], w: Values<'_>, ids: &[u32], out: &mut [f32]) {
    // SAFETY: the caller's promises.
    unsafe {
        match w {
            Values::F32(w) => dots::<L, f32>(x, w, ids, out),
            Values::F16(w) => dots::<L, _>(x, w, ids, out),
            Values::BF16(w) => dots::<L, _>(x, w, ids, out),
        }
    }
}

/// See [`Kernels::add_rows_at`](super::Kernels::add_rows_at).
///
/// # Safety
/// The machine must have `L`'s instructions; `w` must have the rows, as many as there are `z`.
#[inline(always)]
pub(super) unsafe fn add_rows_at<L: Lanes>(sum: &mut [f32], w: Values<'_>, ids: &[u32], z: &[f32]) {
    // SAFETY: the caller's promises.
    unsafe {
        match w {
            Values::F32(w) => add_rows::<L, f32>(sum, w, ids, z),
            Values::F16(w) => add_rows::<L, _>(sum, w, ids, z),
            Values::BF16(w) => add_rows::<L, _>(sum, w, ids, z),
        }
    }
}

#[inline(always)]
unsafe fn dots<L: Lanes, W: Weight>(x: &[f32], w: &[W], ids: &[u32], out: &mut [f32]) {
    for (group, out) in out.chunks_mut(GROUP).enumerate() {
        let first = group * GROUP;
        let mut dots = [0.0; GROUP];
        // SAFETY: the rows exist. The last group is filled up with its last row, which costs no more time than two of them.
        unsafe {
            if let [_] = out {
                tile::<L, W, 1, 1>(x.as_ptr(), rows(w, x.len(), ids, first), None, x.len(), &mut dots, GROUP);
            } else {
                let (w, ahead) = (rows(w, x.len(), ids, first), rows(w, x.len(), ids, first + GROUP));
                tile::<L, W, 1, GROUP>(x.as_ptr(), w, Some(ahead), x.len(), &mut dots, GROUP);
            }
        }
        out.copy_from_slice(&dots[..out.len()]);
    }
}

#[inline(always)]
unsafe fn add_rows<L: Lanes, W: Weight>(sum: &mut [f32], w: &[W], ids: &[u32], z: &[f32]) {
    let d = sum.len();
    let (groups, rest) = z.as_chunks::<GROUP>();
    // SAFETY: the rows exist.
    unsafe {
        for (group, z) in groups.iter().enumerate() {
            let first = group * GROUP;
            add_group::<L, W, GROUP>(sum, rows(w, d, ids, first), rows(w, d, ids, first + GROUP), z);
        }
        for (i, &z) in (groups.len() * GROUP..).zip(rest) {
            add_group::<L, W, 1>(sum, rows(w, d, ids, i), rows(w, d, ids, i + 1), &[z]);
        }
    }
}

/// Where the listed rows from `first` on are, the last in place of those beyond the list.
#[inline(always)]
unsafe fn rows<W, const C: usize>(w: &[W], d: usize, ids: &[u32], first: usize) -> [*const W; C] {
    let id = |c: usize| ids[(first + c).min(ids.len() - 1)] as usize;
    // SAFETY: the caller says that the rows exist.
    std::array::from_fn(|c| unsafe { w.as_ptr().add(id(c) * d) })
}

/// Adds `C` rows: each part of the sum stays in a register for all of them.
#[inline(always)]
unsafe fn add_group<L: Lanes, W: Weight, const C: usize>(
    sum: &mut [f32],
    w: [*const W; C],
    ahead: [*const W; C],
    z: &[f32; C],
) {
    let (d, whole) = (sum.len(), whole(sum.len()));
    // SAFETY: reads and writes stay below d, the length of the sum and of each row.
    unsafe {
        let mut factors = [L::zero(); C];
        for (factor, &z) in factors.iter_mut().zip(z) {
            *factor = L::splat(z);
        }
        for j in (0..whole).step_by(LANES) {
            prefetch::<L, W, C>(ahead, j);
            let mut lanes = L::load(sum.as_ptr().add(j));
            for c in 0..C {
                lanes = factors[c].fma(W::load(w[c].add(j)), lanes);
            }
            lanes.store(sum.as_mut_ptr().add(j));
        }
        if whole < d {
            let mut lanes: L = load_tail(sum.as_ptr().add(whole), d - whole);
            for c in 0..C {
                lanes = factors[c].fma(load_tail(w[c].add(whole), d - whole), lanes);
            }
            let mut padded = [0.0; LANES];
            lanes.store(padded.as_mut_ptr());
            sum[whole..].copy_from_slice(&padded[..d - whole]);
        }
    }
}
