// How far a score can be from what bf16 products on tensor cores give.
//
//   |w . x - w^ . x^|  <=  |w - w^| |x| + |w^| |x - x^|        Cauchy and Schwarz
//   the canonical sum's own rounding  <=  (d / 16 + 6) 2^-24 |w| |x|
//   the tensor cores' rounding        <=  4 (d + 16) 2^-24 |w^| |x^|
//
// Tensor cores do not round as IEEE 754 asks. What was measured of them (Fasi et al. 2021 and others since): products are exact; of
// 4, 8 or 16 products and the accumulator, all are shifted to the largest one's exponent and cut off below its last bit; so is the
// sum. With b products at once each of the b + 2 cuts loses less than 2^-23 of the sum of magnitudes, d / b times: at most
// 3 d 2^-24 for b = 4, the worst. Numbers below 1e-30 are rounded to 0 beforehand, so that no product matters that might be flushed.
#pragma once

#include "common.cuh"

constexpr f32 UNIT = 5.9604644775390625e-8f; // 2^-24
// What the operations around a product may lose of their terms' magnitudes.
constexpr f32 SLACK = 32 * UNIT;
// Below this, times what it is multiplied by, numbers lose what no relative bound covers.
constexpr f32 TINY = 1e-30f;
// Beyond this, sums may leave f32: nothing is known.
constexpr f32 HUGE_SCORE = 1e37f;

// A number as tensor cores get it.
__device__ __forceinline__ u16 to_screen(f32 v) { return magnitude(v) < TINY ? 0 : to_bf16(v); }

// At least the norm, from the sum of squares in f32: room for its rounding, and for squares that vanish.
__device__ __forceinline__ f32 norm_above(f32 squares) { return sqrtf(squares) * 1.001f + 1e-18f; }

// What is lost for each unit of |w| |x|, besides the rounding to bf16.
__device__ __forceinline__ f32 rounding(i32 d) {
  return (4.0f * static_cast<f32>(d + 16) + static_cast<f32>(d) / 16 + 6) * UNIT * 1.01f + SLACK;
}
