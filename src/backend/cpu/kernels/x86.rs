//! AVX2 with FMA and F16C, and AVX-512.

use std::arch::x86_64::{
    __m256, __m512, _MM_HINT_T1, _mm_add_ps, _mm_add_ss, _mm_cvtss_f32, _mm_loadu_si128, _mm_movehl_ps, _mm_prefetch,
    _mm_shuffle_ps, _mm256_add_ps, _mm256_castps256_ps128, _mm256_castsi256_ps, _mm256_cvtepu16_epi32, _mm256_cvtph_ps,
    _mm256_extractf128_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_loadu_si256, _mm256_set1_ps, _mm256_setzero_ps,
    _mm256_slli_epi32, _mm256_storeu_ps, _mm512_castps512_ps256, _mm512_castsi512_ps, _mm512_cvtepu16_epi32,
    _mm512_cvtph_ps, _mm512_extractf32x8_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_setzero_ps,
    _mm512_slli_epi32, _mm512_storeu_ps,
};

use half::{bf16, f16};

use super::Kernels;
use super::gather;
use super::int8;
use super::lanes::{self, Lanes, Weight};
use super::loops::Set;
use super::sums::{self, Factors};
use crate::backend::cpu::rows::Values;

/// The sets this machine runs, slowest first.
pub(super) fn supported() -> impl Iterator<Item = Kernels> {
    let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
    let avx512 = avx2 && is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512dq");
    let vnni = avx512 && is_x86_feature_detected!("avx512vnni");
    // The system lends tiles to a whole process, for good: not asked for before somebody wants them.
    let amx = std::iter::once_with(move || (vnni && int8::amx::supported()).then_some(AMX));
    [avx2.then_some(AVX2), avx512.then_some(AVX512), vnni.then_some(VNNI)].into_iter().chain(amx).flatten()
}

/// Compiles the algorithms for an instruction set and lists them.
macro_rules! kernels {
    ($name:ident, $label:literal, $features:literal, $lanes:ident, $rows:literal, $cols:literal, $product:path) => {
        const $name: Kernels = {
            #[target_feature(enable = $features)]
            unsafe fn dot(a: &[f32], b: &[f32]) -> f32 {
                // SAFETY: compiled for the set; the caller's promise for the rest.
                unsafe { lanes::dot::<$lanes>(a, b) }
            }
            #[target_feature(enable = $features)]
            unsafe fn scores(x: &[f32], w: Values<'_>, d: usize, out: &mut [f32]) {
                // SAFETY: compiled for the set; the caller's promise for the rest.
                unsafe {
                    match w {
                        Values::F32(w) => pairs(x, w, d, out),
                        Values::F16(w) => pairs(x, w, d, out),
                        Values::BF16(w) => pairs(x, w, d, out),
                    }
                }
            }
            /// A function for each type: in one for all, the compiler would no longer keep the sums in registers.
            #[inline(never)]
            #[target_feature(enable = $features)]
            unsafe fn pairs<W: Weight>(x: &[f32], w: &[W], d: usize, out: &mut [f32]) {
                // SAFETY: compiled for the set; the caller's promise for the rest.
                unsafe { lanes::pairs::<$lanes, W, $rows, $cols>(x, w, d, out) };
            }
            #[target_feature(enable = $features)]
            unsafe fn axpy(a: f32, x: &[f32], y: &mut [f32]) {
                // SAFETY: compiled for the set; the caller's promise for the rest.
                unsafe { lanes::axpy::<$lanes>(a, x, y) };
            }
            #[target_feature(enable = $features)]
            unsafe fn dots_at(x: &[f32], w: Values<'_>, ids: &[u32], out: &mut [f32]) {
                // SAFETY: compiled for the set; the caller's promise for the rest.
                unsafe { gather::dots_at::<$lanes>(x, w, ids, out) };
            }
            #[target_feature(enable = $features)]
            unsafe fn add_rows_at(sum: &mut [f32], w: Values<'_>, ids: &[u32], z: &[f32]) {
                // SAFETY: compiled for the set; the caller's promise for the rest.
                unsafe { gather::add_rows_at::<$lanes>(sum, w, ids, z) };
            }
            #[target_feature(enable = $features)]
            unsafe fn add_rows(sums: &mut [f32], rows: &[f32], d: usize, z: Factors<'_>) {
                // SAFETY: compiled for the set; the caller's promise for the rest.
                unsafe { sums::add_rows::<$lanes, $cols, $rows>(sums, rows, d, z) };
            }
            #[target_feature(enable = $features)]
            unsafe fn widen(from: Values<'_>, to: &mut [f32]) {
                // SAFETY: compiled for the set; the caller's promise for the rest.
                unsafe { lanes::widen::<$lanes>(from, to) };
            }
            Kernels {
                name: $label,
                set: Set::$lanes,
                fast_products: true,
                dot,
                scores,
                axpy,
                dots_at,
                add_rows_at,
                add_rows,
                widen,
                product: $product,
            }
        };
    };
}

kernels!(AVX2, "avx2", "avx2,fma,f16c", Avx2, 2, 3, int8::x86::avx2);
kernels!(AVX512, "avx512", "avx512f,avx512dq,avx2,fma,f16c", Avx512, 4, 6, int8::x86::avx2);
kernels!(VNNI, "vnni", "avx512f,avx512dq,avx512vnni,avx2,fma,f16c", Avx512, 4, 6, int8::x86::vnni);

const AMX: Kernels = Kernels { name: "amx", product: int8::amx::product, ..VNNI };

#[derive(Clone, Copy)]
struct Avx2(__m256, __m256);

/// Folds 8 lanes by 4, 2, 1.
#[inline(always)]
unsafe fn sum8(v: __m256) -> f32 {
    // SAFETY: the caller is compiled for AVX2.
    unsafe {
        let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
        _mm_cvtss_f32(_mm_add_ss(v, _mm_shuffle_ps::<1>(v, v)))
    }
}

// SAFETY: only used by functions compiled for AVX2, FMA and F16C.
unsafe impl Lanes for Avx2 {
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: as the impl says.
        unsafe { Self(_mm256_setzero_ps(), _mm256_setzero_ps()) }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: as the impl says.
        unsafe { Self(_mm256_set1_ps(value), _mm256_set1_ps(value)) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: as the impl says; the caller has 16 readable values.
        unsafe { Self(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: as the impl says; the caller has 16 writable values.
        unsafe {
            _mm256_storeu_ps(to, self.0);
            _mm256_storeu_ps(to.add(8), self.1);
        }
    }

    #[inline(always)]
    unsafe fn fma(self, by: Self, plus: Self) -> Self {
        // SAFETY: as the impl says.
        unsafe { Self(_mm256_fmadd_ps(self.0, by.0, plus.0), _mm256_fmadd_ps(self.1, by.1, plus.1)) }
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: as the impl says.
        unsafe { sum8(_mm256_add_ps(self.0, self.1)) }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self {
        // SAFETY: as the impl says; the caller has 16 readable values.
        unsafe {
            let half = |from: *const f16| _mm256_cvtph_ps(_mm_loadu_si128(from.cast()));
            Self(half(from), half(from.add(8)))
        }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self {
        // SAFETY: as the impl says; the caller has 16 readable values. A bf16 is the upper half of its f32.
        unsafe {
            let half = |from: *const bf16| {
                let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
            };
            Self(half(from), half(from.add(8)))
        }
    }

    #[inline(always)]
    unsafe fn prefetch(line: *const u8) {
        // SAFETY: fetching is harmless wherever it points.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.cast()) };
    }
}

#[derive(Clone, Copy)]
struct Avx512(__m512);

// SAFETY: only used by functions compiled for AVX-512 F and DQ.
unsafe impl Lanes for Avx512 {
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: as the impl says.
        unsafe { Self(_mm512_setzero_ps()) }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: as the impl says.
        unsafe { Self(_mm512_set1_ps(value)) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: as the impl says; the caller has 16 readable values.
        unsafe { Self(_mm512_loadu_ps(from)) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: as the impl says; the caller has 16 writable values.
        unsafe { _mm512_storeu_ps(to, self.0) };
    }

    #[inline(always)]
    unsafe fn fma(self, by: Self, plus: Self) -> Self {
        // SAFETY: as the impl says.
        unsafe { Self(_mm512_fmadd_ps(self.0, by.0, plus.0)) }
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: as the impl says.
        unsafe { sum8(_mm256_add_ps(_mm512_castps512_ps256(self.0), _mm512_extractf32x8_ps::<1>(self.0))) }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self {
        // SAFETY: as the impl says; the caller has 16 readable values.
        unsafe { Self(_mm512_cvtph_ps(_mm256_loadu_si256(from.cast()))) }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self {
        // SAFETY: as the impl says; the caller has 16 readable values. A bf16 is the upper half of its f32.
        unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits)))
        }
    }

    #[inline(always)]
    unsafe fn prefetch(line: *const u8) {
        // SAFETY: fetching is harmless wherever it points.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.cast()) };
    }
}
