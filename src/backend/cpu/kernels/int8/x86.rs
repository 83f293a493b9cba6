//! Products of bytes by AVX2, and by AVX-512 with VNNI.

use std::arch::x86_64::{
    __m256i, __m512i, _MM_HINT_T1, _mm_prefetch, _mm256_abs_epi8, _mm256_add_epi32, _mm256_loadu_si256,
    _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_set1_epi16, _mm256_set1_epi32, _mm256_setzero_si256,
    _mm256_sign_epi8, _mm256_storeu_si256, _mm512_dpbusd_epi32, _mm512_loadu_si512, _mm512_set1_epi32,
    _mm512_setzero_si512, _mm512_slli_epi32, _mm512_storeu_si512, _mm512_sub_epi32,
};

use super::Product;
use crate::sae::int8::PANEL;

/// So few rows wait for the weights.
const FEW: usize = 3;
/// How far ahead of its use memory is asked for, in bytes.
const AHEAD: usize = 16384;

/// All rows, as many at a time as a tile may have, and what is left over in ever smaller tiles.
macro_rules! by_rows {
    ($product:ident, $out:ident, $tile:ident, [$($count:literal),*]) => {
        let (rows, out) = ($product.rows(), $out.as_mut_ptr());
        let mut first = 0;
        $(while rows - first >= $count {
            match $product.sums.len() / PANEL {
                // Where memory is waited for, one stream of it after the other.
                2 if rows > FEW => $tile::<$count, 2>($product, (first, 0), out),
                panels => (0..panels).for_each(|panel| $tile::<$count, 1>($product, (first, panel), out)),
            }
            first += $count;
        })*
    };
}

/// # Safety
/// The machine must have AVX-512 F and VNNI; the shapes must fit.
#[target_feature(enable = "avx512f,avx512vnni")]
pub(in super::super) unsafe fn vnni(product: &Product<'_>, out: &mut [i32]) {
    // SAFETY: rows from `first` on are within x and out, panels within w and sums.
    unsafe {
        by_rows!(product, out, vnni_tile, [12, 6, 3, 2, 1]);
    }
}

/// `R` tokens with `C` panels, every sum in a register.
///
/// # Safety
/// As [`vnni`]; the rows must be there.
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn vnni_tile<const R: usize, const C: usize>(
    product: &Product<'_>,
    (first, panel): (usize, usize),
    out: *mut i32,
) {
    let Product { x, w, sums, padded } = *product;
    let width = sums.len();
    // SAFETY: the caller's rows and panels, `padded` bytes a row and 16 rows a panel.
    unsafe {
        let (x, w) = (x.as_ptr().add(first * padded), w.as_ptr().add(panel * PANEL * padded));
        // Bytes of x are 128 too large.
        let excess: [__m512i; C] = std::array::from_fn(|c| {
            _mm512_sub_epi32(
                _mm512_setzero_si512(),
                _mm512_slli_epi32::<7>(_mm512_loadu_si512(sums.as_ptr().add((panel + c) * PANEL).cast())),
            )
        });
        let mut totals = [excess; R];
        for j in (0..padded).step_by(4) {
            let mut columns = [_mm512_setzero_si512(); C];
            for (c, column) in columns.iter_mut().enumerate() {
                let at = w.add(c * PANEL * padded + PANEL * j);
                if R <= FEW {
                    _mm_prefetch::<_MM_HINT_T1>(at.wrapping_add(AHEAD));
                }
                *column = _mm512_loadu_si512(at.cast());
            }
            for (r, totals) in totals.iter_mut().enumerate() {
                let four = _mm512_set1_epi32(x.add(r * padded + j).cast::<i32>().read_unaligned());
                for c in 0..C {
                    totals[c] = _mm512_dpbusd_epi32(totals[c], four, columns[c]);
                }
            }
        }
        for (r, totals) in totals.iter().enumerate() {
            for (c, &total) in totals.iter().enumerate() {
                _mm512_storeu_si512(out.add((first + r) * width + (panel + c) * PANEL).cast(), total);
            }
        }
    }
}

/// # Safety
/// The machine must have AVX2; the shapes must fit.
#[target_feature(enable = "avx2")]
pub(in super::super) unsafe fn avx2(product: &Product<'_>, out: &mut [i32]) {
    // SAFETY: rows from `first` on are within x and out, panels within w and sums.
    unsafe {
        by_rows!(product, out, avx2_tile, [2, 1]);
    }
}

/// `R` tokens with `C` panels, a panel in two registers.
///
/// # Safety
/// As [`avx2`]; the rows must be there.
#[target_feature(enable = "avx2")]
unsafe fn avx2_tile<const R: usize, const C: usize>(
    product: &Product<'_>,
    (first, panel): (usize, usize),
    out: *mut i32,
) {
    let Product { x, w, sums, padded } = *product;
    let width = sums.len();
    // SAFETY: the caller's rows and panels, `padded` bytes a row and 16 rows a panel.
    unsafe {
        let (x, w) = (x.as_ptr().add(first * padded), w.as_ptr().add(panel * PANEL * padded));
        let ones = _mm256_set1_epi16(1);
        let mut totals = [[[_mm256_setzero_si256(); 2]; C]; R];
        for j in (0..padded).step_by(4) {
            for (r, totals) in totals.iter_mut().enumerate() {
                // Pairs of products fit 16 bits if x's sign moves to w: 2 · 128 · 127. w is never below −127.
                let four = x.add(r * padded + j).cast::<i32>().read_unaligned() ^ 0x8080_8080_u32 as i32;
                let four = _mm256_set1_epi32(four);
                let size = _mm256_abs_epi8(four);
                for (c, totals) in totals.iter_mut().enumerate() {
                    for (half, total) in totals.iter_mut().enumerate() {
                        let column: __m256i = _mm256_loadu_si256(w.add(c * 16 * padded + 16 * j + 32 * half).cast());
                        let pairs = _mm256_maddubs_epi16(size, _mm256_sign_epi8(column, four));
                        *total = _mm256_add_epi32(*total, _mm256_madd_epi16(pairs, ones));
                    }
                }
            }
        }
        for (r, totals) in totals.iter().enumerate() {
            for (c, &[low, high]) in totals.iter().enumerate() {
                let out = out.add((first + r) * width + (panel + c) * PANEL);
                _mm256_storeu_si256(out.cast(), low);
                _mm256_storeu_si256(out.add(8).cast(), high);
            }
        }
    }
}
