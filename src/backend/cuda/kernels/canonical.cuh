// The canonical score, bit for bit as src/backend/mod.rs defines it.
//
// Four threads, a quad, take one dot product: thread q has lanes 4q to 4q + 3 of the 16. Folding by 8 and 4 goes across threads,
// by 2 and 1 within the first. All 32 lanes of a warp must come along.
#pragma once

#include "common.cuh"

struct Four {
  f32 v[4];
};

__device__ __forceinline__ Four zero_four() { return {{0, 0, 0, 0}}; }

__device__ __forceinline__ Four load_four(const f32 *at) {
  const float4 v = *reinterpret_cast<const float4 *>(at);
  return {{v.x, v.y, v.z, v.w}};
}

// How four neighbouring weights are read, of which `left` exist; zeros beyond. The first three: all or none do, and lie where they can
// be read at once.
struct WholeF32 {
  static constexpr i32 AT_ONCE = 4;
  static __device__ __forceinline__ Four at(const Matrix &w, i64 at, i32 left) {
    return left > 0 ? load_four(static_cast<const f32 *>(w.data) + at) : zero_four();
  }
};
struct WholeBF16 {
  static constexpr i32 AT_ONCE = 4;
  static __device__ __forceinline__ Four at(const Matrix &w, i64 at, i32 left) {
    if (left <= 0) return zero_four();
    const uint2 bits = *reinterpret_cast<const uint2 *>(static_cast<const u16 *>(w.data) + at);
    return {{from_bf16(bits.x), __uint_as_float(bits.x & 0xffff0000), from_bf16(bits.y), __uint_as_float(bits.y & 0xffff0000)}};
  }
};
struct WholeF16 {
  static constexpr i32 AT_ONCE = 4;
  static __device__ __forceinline__ Four at(const Matrix &w, i64 at, i32 left) {
    if (left <= 0) return zero_four();
    const uint2 bits = *reinterpret_cast<const uint2 *>(static_cast<const u16 *>(w.data) + at);
    return {{from_f16(bits.x & 0xffff), from_f16(bits.x >> 16), from_f16(bits.y & 0xffff), from_f16(bits.y >> 16)}};
  }
};
struct OneByOne {
  static constexpr i32 AT_ONCE = 1;
  static __device__ __forceinline__ Four at(const Matrix &w, i64 at, i32 left) {
    Four four = zero_four();
#pragma unroll
    for (i32 i = 0; i < 4; ++i) {
      if (i < left) four.v[i] = load(w.data, at + i, w.dtype);
    }
    return four;
  }
};

// Has `body` read rows of d weights as they can be read.
template <typename Body> __device__ __forceinline__ void with_reader(const Matrix &w, i32 d, const Body &body) {
  const bool whole = w.stride % 4 == 0 && d % 4 == 0 && reinterpret_cast<u64>(w.data) % (w.dtype == F32 ? 16 : 8) == 0;
  if (!whole) {
    body(OneByOne());
  } else if (w.dtype == F32) {
    body(WholeF32());
  } else if (w.dtype == BF16) {
    body(WholeBF16());
  } else {
    body(WholeF16());
  }
}

__device__ __forceinline__ void take(Four &sum, const Four &a, const Four &b) {
#pragma unroll
  for (i32 i = 0; i < 4; ++i) sum.v[i] = __fmaf_rn(a.v[i], b.v[i], sum.v[i]);
}

// The sum of the 16 lanes, for all four threads.
__device__ __forceinline__ f32 fold(Four sum) {
#pragma unroll
  for (i32 by = 2; by > 0; by /= 2) {
#pragma unroll
    for (i32 i = 0; i < 4; ++i) sum.v[i] += __shfl_down_sync(ALL_LANES, sum.v[i], by, 4);
  }
  const f32 dot = (sum.v[0] + sum.v[2]) + (sum.v[1] + sum.v[3]);
  return __shfl_sync(ALL_LANES, dot, 0, 4);
}

// A quad's dot products of a row of weights with up to TOKENS vectors, `x(t)` each, of which the padding is readable zeros. Quads
// without a row pass -1.
template <i32 TOKENS, typename X>
__device__ __forceinline__ void dots(const Matrix &w, i64 row, const X &x, i32 d, i32 tokens, f32 (&out)[TOKENS]) {
  Four sums[TOKENS];
#pragma unroll
  for (i32 t = 0; t < TOKENS; ++t) sums[t] = zero_four();
  if (row >= 0) {
    with_reader(w, d, [&](auto reader) {
      [[maybe_unused]] constexpr i32 at_once = decltype(reader)::AT_ONCE;
#pragma unroll at_once
      for (i32 start = 0; start < d; start += 16) {
        const i32 j = start + 4 * static_cast<i32>(threadIdx.x % 4);
        const Four weights = reader.at(w, row * w.stride + j, d - j);
#pragma unroll
        for (i32 t = 0; t < TOKENS; ++t) {
          if (t < tokens) take(sums[t], weights, load_four(x(t) + j));
        }
      }
    });
  }
#pragma unroll
  for (i32 t = 0; t < TOKENS; ++t) out[t] = fold(sums[t]);
}

// The dot product of a vector with itself, or its sum; the same in every quad.
__device__ __forceinline__ f32 square(const f32 *x, i32 d) {
  Four sum = zero_four();
#pragma unroll 4
  for (i32 start = 0; start < d; start += 16) {
    const Four four = load_four(x + start + 4 * (threadIdx.x % 4));
    take(sum, four, four);
  }
  return fold(sum);
}
__device__ __forceinline__ f32 sum(const f32 *x, i32 d) {
  Four sum = zero_four();
#pragma unroll 4
  for (i32 start = 0; start < d; start += 16) take(sum, load_four(x + start + 4 * (threadIdx.x % 4)), {{1, 1, 1, 1}});
  return fold(sum);
}

// e to the v, with the bits of the C library's expf that the crate libm carries over: for results that are not denormal. Smaller
// ones need not agree: nothing but sigma uses it, which adds 1.
__device__ __forceinline__ f32 canonical_exp(f32 v) {
  const f32 size = magnitude(v);
  const bool negative = v < 0;
  if (!(size <= LARGEST)) return negative ? 0.0f : v; // infinities and NaN
  if (v >= __uint_as_float(0x42b17218)) return infinity();
  if (v <= __uint_as_float(0xc2cff1b5)) return 0;
  i32 power = 0;
  f32 high = v, low = 0;
  if (size > __uint_as_float(0x3eb17218)) {
    if (size > __uint_as_float(0x3f851592)) {
      power = static_cast<i32>(1.4426950216f * v + (negative ? -0.5f : 0.5f));
    } else {
      power = negative ? -1 : 1;
    }
    const f32 whole = static_cast<f32>(power);
    high = v - whole * 6.9314575195e-1f;
    low = whole * 1.4286067653e-6f;
    v = high - low;
  } else if (!(size > __uint_as_float(0x39000000))) {
    return 1 + v;
  }
  const f32 squared = v * v;
  const f32 c = v - squared * (1.6666625440e-1f + squared * -2.7667332906e-3f);
  const f32 y = 1 + (v * c / (2 - c) - low + high);
  // In two steps, of which neither leaves the range of powers.
  const i32 half = power / 2;
  return y * __uint_as_float(static_cast<u32>(127 + half) << 23) * __uint_as_float(static_cast<u32>(127 + power - half) << 23);
}

__device__ __forceinline__ f32 sigmoid(f32 v) { return 1 / (1 + canonical_exp(-v)); }

// A latent's pre-activation from its dot products.
__device__ __forceinline__ f32 pre_activation(const Latents &l, i32 i, f32 dot, f32 second) {
  f32 h = l.gain ? dot * l.gain[i] + l.b_enc[i] : dot + l.b_enc[i];
  if (l.w_glu.data) h *= sigmoid(second + l.b_glu[i]);
  return l.scale ? h * l.scale[i] : h;
}

// Its score if it is a candidate, else 0.
__device__ __forceinline__ f32 candidate(const Latents &l, i32 i, f32 dot, f32 second) {
  if (l.b_gate && !(dot + l.b_gate[i] > 0)) return 0;
  f32 h = pre_activation(l, i, dot, second);
  if (l.rank_scale) h *= l.rank_scale[i];
  if (!is_finite(h) || (l.selection != ABS_TOP_K && !(h > 0))) return 0;
  if (!l.threshold) return h;
  const f32 compared = l.threshold_scale ? h * l.threshold_scale[i] : h;
  return compared > l.threshold[i] ? h : 0;
}

// A quad's score of latent i, or -1 for none.
__device__ __forceinline__ f32 score_alone(const Latents &l, i32 i, const f32 *x, i32 what) {
  f32 dot[1] = {0}, second = 0;
#pragma unroll 1
  for (const Matrix *w = l.w_glu.data ? &l.w_glu : &l.w_enc;; w = &l.w_enc) {
    second = dot[0];
    dots<1>(*w, i, [&](i32) { return x; }, l.d, 1, dot);
    if (w == &l.w_enc) break;
  }
  if (i < 0) return 0;
  return what == ACTIVATIONS ? candidate(l, i, dot[0], second) : pre_activation(l, i, dot[0], second);
}
