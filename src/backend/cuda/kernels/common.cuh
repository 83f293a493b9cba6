// What all kernels share: numbers of 16 bits, rows of tensors, keys.
#pragma once

#include "params.cuh"
#ifndef __CUDACC__
#include "stand_in/cuda.hpp"
#define DYNAMIC_SHARED(name) unsigned char *name = stand_in::dynamic_shared()
#else
#define DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]
#endif

#define KERNEL(threads) extern "C" __global__ void __launch_bounds__(threads)

constexpr u32 ALL_LANES = 0xffffffff;
constexpr f32 LARGEST = 3.40282347e38f;
constexpr f32 LEAST = 1.40129846e-45f;

__device__ __forceinline__ f32 infinity() { return __uint_as_float(0x7f800000); }
__device__ __forceinline__ f32 not_a_number() { return __uint_as_float(0x7fc00000); }
__device__ __forceinline__ u32 magnitude_bits(f32 v) { return __float_as_uint(v) & 0x7fffffff; }
__device__ __forceinline__ bool is_finite(f32 v) { return magnitude_bits(v) < 0x7f800000; }
__device__ __forceinline__ f32 magnitude(f32 v) { return __uint_as_float(magnitude_bits(v)); }
// Whichever of two numbers is larger; neither is NaN.
__device__ __forceinline__ f32 larger(f32 a, f32 b) { return a > b ? a : b; }
template <typename T> __device__ __forceinline__ T least(T a, T b) { return a < b ? a : b; }

__device__ __forceinline__ f32 from_bf16(u32 bits) { return __uint_as_float(bits << 16); }

__device__ __forceinline__ u16 to_bf16(f32 v) {
  const u32 bits = __float_as_uint(v);
  if (magnitude_bits(v) > 0x7f800000) return static_cast<u16>(bits >> 16 | 0x40);
  return static_cast<u16>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

__device__ __forceinline__ f32 from_f16(u32 bits) {
#ifdef __CUDACC__
  f32 v;
  asm("cvt.f32.f16 %0, %1;" : "=f"(v) : "h"(static_cast<u16>(bits)));
  return v;
#else
  const u32 sign = (bits & 0x8000) << 16, exponent = bits >> 10 & 31, fraction = bits & 0x3ff;
  if (exponent == 31) return __uint_as_float(sign | 0x7f800000 | fraction << 13);
  if (exponent > 0) return __uint_as_float(sign | (exponent + 112) << 23 | fraction << 13);
  const f32 v = static_cast<f32>(fraction) * 5.9604644775390625e-8f;
  return sign ? -v : v;
#endif
}

__device__ __forceinline__ u16 to_f16(f32 v) {
#ifdef __CUDACC__
  u16 bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(v));
  return bits;
#else
  const u32 bits = __float_as_uint(v), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
  if (size > 0x7f800000) return static_cast<u16>(sign | 0x7e00 | (size >> 13 & 0x3ff));
  if (size >= 0x477ff000) return static_cast<u16>(sign | 0x7c00);
  if (size < 0x38800000) { // denormal: adding one half aligns the bits that stay, and rounds
    const f32 sum = __uint_as_float(size) + 0.5f;
    return static_cast<u16>(sign | (__float_as_uint(sum) - 0x3f000000));
  }
  return static_cast<u16>(sign | (size - 0x38000000 + 0xfff + (size >> 13 & 1)) >> 13);
#endif
}

__device__ __forceinline__ f32 load(const void *data, i64 i, i32 dtype) {
  if (dtype == F32) return static_cast<const f32 *>(data)[i];
  const u32 bits = static_cast<const u16 *>(data)[i];
  return dtype == BF16 ? from_bf16(bits) : from_f16(bits);
}

__device__ __forceinline__ void store(void *data, i64 i, i32 dtype, f32 v) {
  if (dtype == F32) {
    static_cast<f32 *>(data)[i] = v;
  } else {
    static_cast<u16 *>(data)[i] = dtype == BF16 ? to_bf16(v) : to_f16(v);
  }
}

// A value rounded to a type and back.
__device__ __forceinline__ f32 rounded_to(f32 v, i32 dtype) {
  if (dtype == BF16) return from_bf16(to_bf16(v));
  return dtype == F16 ? from_f16(to_f16(v)) : v;
}

// A feature's value: beyond the type's range its largest number stands.
__device__ __forceinline__ f32 clamped_to(f32 v, i32 dtype) {
  const f32 most = dtype == F16 ? 65504.0f : dtype == BF16 ? from_bf16(0x7f7f) : LARGEST;
  return v > most ? most : v < -most ? -most : v;
}

// Where element j of row t lies.
__device__ __forceinline__ i64 place(const Vectors &rows, i64 t, i32 j) {
  if (j < rows.layer_size) return t * rows.row_stride + j;
  return t * rows.row_stride + j / rows.layer_size * rows.layer_stride + j % rows.layer_size;
}
__device__ __forceinline__ f32 read(const Vectors &rows, i64 t, i32 j) { return load(rows.data, place(rows, t, j), rows.dtype); }
__device__ __forceinline__ void write(const Vectors &rows, i64 t, i32 j, f32 v) { store(rows.data, place(rows, t, j), rows.dtype, v); }

// Keys.
__device__ __forceinline__ u64 make_key(f32 value, i32 index) {
  const u32 low = static_cast<u32>(0x7fffffff - index) << 1 | __float_as_uint(value) >> 31;
  return static_cast<u64>(magnitude_bits(value)) << 32 | low;
}
__device__ __forceinline__ f32 key_value(u64 key) { return __uint_as_float(static_cast<u32>(key >> 32) | static_cast<u32>(key) << 31); }
__device__ __forceinline__ i32 key_index(u64 key) { return 0x7fffffff - static_cast<i32>(static_cast<u32>(key) >> 1); }

// Where a latent's weights are, by its global index; -1: nowhere.
__device__ __forceinline__ i32 local(i32 index, i32 first, i32 n) { return index >= first && index - first < n ? index - first : -1; }

// Sums and maxima over a warp, known to all lanes.
template <typename T> __device__ __forceinline__ T warp_sum(T v) {
  for (i32 by = 16; by > 0; by /= 2) v += __shfl_xor_sync(ALL_LANES, v, by);
  return v;
}

// Over the block, for all threads; `scratch` holds 33. The order of additions is always the same.
template <typename T> __device__ T block_sum(T v, T *scratch) {
  v = warp_sum(v);
  __syncthreads();
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
  __syncthreads();
  if (threadIdx.x == 0) {
    T sum = 0;
    for (u32 w = 0; w < blockDim.x / 32; ++w) sum += scratch[w];
    scratch[32] = sum;
  }
  __syncthreads();
  return scratch[32];
}
