//! The oracle.

use super::Product;
use crate::sae::int8::PANEL;

/// # Safety
/// None is needed; the type is shared with sets that have conditions.
pub(in super::super) unsafe fn product(product: &Product<'_>, out: &mut [i32]) {
    let Product { x, w, sums, padded } = *product;
    for (x, out) in x.chunks_exact(padded).zip(out.chunks_exact_mut(sums.len())) {
        for (w, out) in w.chunks_exact(padded * PANEL).zip(out.chunks_exact_mut(PANEL)) {
            out.fill(0);
            for (x, w) in x.as_chunks::<4>().0.iter().zip(w.as_chunks::<{ 4 * PANEL }>().0) {
                for (out, w) in out.iter_mut().zip(w.as_chunks::<4>().0) {
                    *out += (0..4).map(|j| (i32::from(x[j]) - 128) * i32::from(w[j])).sum::<i32>();
                }
            }
        }
    }
}
