// CUDA's execution model on the processor, so that every .cu compiles as C++ and runs here.
//
// Each thread of a block is a fiber. It runs until it must wait for others; who runs next is drawn from the launch's seed, and so
// is the order of blocks, which run one after another. Shared memory holds garbage when a block starts. A missing barrier, or two
// threads that write the same place, thus give different results under different seeds; threads that wait for each other are told.
// Of the memory model, of time, and of how warps really step, nothing can be learned here.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
// One section, which is filled with garbage before each block.
#define __shared__ static __attribute__((section("stand_in_shared")))

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
struct __align__(8) uint2 {
  unsigned x, y;
};
struct __align__(16) uint4 {
  unsigned x, y, z, w;
};
struct __align__(16) float4 {
  float x, y, z, w;
};

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace stand_in {
constexpr int POST = 64;

// What every thread of a warp posted, 32 times POST bytes: returns when all 32 have.
const unsigned char *post(int operation, const void *data, size_t bytes);
// Waits for the block.
void barrier();
// Lets others run, now and then.
void yield();
unsigned char *dynamic_shared();
void copy_later(void *to, const void *from, size_t bytes, size_t filled);
void commit_copies();
void await_copies(int groups_left);
int lane();

template <typename T> const T &posted(const unsigned char *all, int lane) {
  return *reinterpret_cast<const T *>(all + lane * POST);
}

enum Operation { SYNC = 1, SHUFFLE, SHUFFLE_DOWN, SHUFFLE_XOR, BALLOT, LOAD_MATRIX, MULTIPLY };
} // namespace stand_in

inline void __syncthreads() { stand_in::barrier(); }
inline void __threadfence() {}
inline void __syncwarp(unsigned = 0xffffffff) { stand_in::post(stand_in::SYNC, nullptr, 0); }

template <typename T> T __shfl_sync(unsigned, T value, int from, int width = 32) {
  const unsigned char *all = stand_in::post(stand_in::SHUFFLE, &value, sizeof(T));
  const int lane = stand_in::lane();
  return stand_in::posted<T>(all, (lane & ~(width - 1)) | (from & (width - 1)));
}
template <typename T> T __shfl_xor_sync(unsigned, T value, int mask, int width = 32) {
  const unsigned char *all = stand_in::post(stand_in::SHUFFLE_XOR, &value, sizeof(T));
  const int lane = stand_in::lane(), from = lane ^ mask;
  return (lane & ~(width - 1)) == (from & ~(width - 1)) ? stand_in::posted<T>(all, from) : value;
}
template <typename T> T __shfl_down_sync(unsigned, T value, unsigned by, int width = 32) {
  const unsigned char *all = stand_in::post(stand_in::SHUFFLE_DOWN, &value, sizeof(T));
  const int lane = stand_in::lane(), from = lane + static_cast<int>(by);
  return from < (lane & ~(width - 1)) + width ? stand_in::posted<T>(all, from) : value;
}
template <typename T> T __shfl_up_sync(unsigned, T value, unsigned by, int width = 32) {
  const unsigned char *all = stand_in::post(stand_in::SHUFFLE_DOWN, &value, sizeof(T));
  const int lane = stand_in::lane(), from = lane - static_cast<int>(by);
  return from >= (lane & ~(width - 1)) ? stand_in::posted<T>(all, from) : value;
}
inline unsigned __ballot_sync(unsigned, int predicate) {
  const unsigned char *all = stand_in::post(stand_in::BALLOT, &predicate, sizeof predicate);
  unsigned mask = 0;
  for (int l = 0; l < 32; ++l) mask |= (stand_in::posted<int>(all, l) != 0 ? 1u : 0u) << l;
  return mask;
}
inline int __any_sync(unsigned, int predicate) { return __ballot_sync(0xffffffff, predicate) != 0; }

template <typename T> T atomicAdd(T *at, T value) {
  stand_in::yield();
  const T old = *at;
  *at = old + value;
  return old;
}
template <typename T> T atomicMax(T *at, T value) {
  stand_in::yield();
  const T old = *at;
  *at = old > value ? old : value;
  return old;
}

template <typename T> T atomicMin(T *at, T value) {
  stand_in::yield();
  const T old = *at;
  *at = old < value ? old : value;
  return old;
}

template <typename T> T __ldg(const T *at) { return *at; }
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline unsigned __float_as_uint(float v) {
  unsigned bits;
  std::memcpy(&bits, &v, 4);
  return bits;
}
inline float __uint_as_float(unsigned bits) {
  float v;
  std::memcpy(&v, &bits, 4);
  return v;
}

// What tensor cores do, as documented for each lane of a warp.
namespace stand_in {
inline float from_bf16(unsigned bits) { return __uint_as_float(bits << 16); }

// ldmatrix .x4: four 8 x 8 matrices of 16 bits, whose row addresses are lanes 8i to 8i + 7's; lane l gets of each the elements
// 2 (l % 4) and 2 (l % 4) + 1 of row l / 4.
inline void load_matrix_x4(unsigned (&out)[4], const void *row) {
  const unsigned char *all = post(LOAD_MATRIX, &row, sizeof row);
  for (int m = 0; m < 4; ++m) {
    const void *from = posted<const void *>(all, m * 8 + lane() / 4);
    std::memcpy(&out[m], static_cast<const unsigned char *>(from) + 4 * (lane() % 4), 4);
  }
}

// Two to the power of a whole number.
inline double power_of_two(int exponent) {
  const uint64_t bits = static_cast<uint64_t>(1023 + exponent) << 52;
  double v;
  std::memcpy(&v, &bits, sizeof v);
  return v;
}

// The sum where some addend is not finite.
inline float coarse_infinity(const float *addends, int count) {
  float sum = 0;
  for (int i = 0; i < count; ++i) sum += addends[i];
  return sum;
}

// An addition as coarse as any tensor core's: of all addends, what lies below the largest one's last bit is cut off; so is the result.
inline float coarse_sum(const float *addends, int count) {
  unsigned largest = 0;
  for (int i = 0; i < count; ++i) {
    const unsigned bits = __float_as_uint(addends[i]) & 0x7fffffff;
    if (bits > largest) largest = bits;
  }
  if (largest == 0) return 0;
  if (largest >= 0x7f800000) return coarse_infinity(addends, count);
  // Whole multiples of the last bit: a few of 24 bits each. What is denormal counts from the lowest exponent there is.
  const int exponent = (largest >> 23 ? static_cast<int>(largest >> 23) : 1) - 150;
  long long sum = 0;
  for (int i = 0; i < count; ++i) sum += static_cast<long long>(addends[i] * power_of_two(-exponent));
  unsigned long long size = static_cast<unsigned long long>(sum < 0 ? -sum : sum);
  const int length = size == 0 ? 0 : 64 - __builtin_clzll(size);
  if (length > 24) size = size >> (length - 24) << (length - 24);
  const double rounded = static_cast<double>(size) * power_of_two(exponent);
  const float result = rounded > 3.40282347e38 ? 3.40282347e38f : static_cast<float>(rounded);
  return sum < 0 ? -result : result;
}

// mma m16n8k16, row times column, bf16 into f32. a: rows l / 4 and l / 4 + 8, columns 2 (l % 4) + {0, 1} and 8 more;
// b: columns l / 4, rows likewise; c: rows as a, columns 2 (l % 4) + {0, 1}.
inline void multiply(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  unsigned mine[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
  const unsigned char *all = post(MULTIPLY, mine, sizeof mine);
  for (int i = 0; i < 4; ++i) {
    const int row = lane() / 4, column = 2 * (lane() % 4) + i % 2;
    for (int k = 0; k < 16; k += 4) {
      float addends[5] = {c[i]};
      for (int j = 0; j < 4; ++j) {
        const int part = (k + j) / 8, pair = (k + j) % 8 / 2, half = (k + j) % 2;
        const unsigned from_a = posted<unsigned[6]>(all, 4 * row + pair)[2 * part + i / 2];
        const unsigned from_b = posted<unsigned[6]>(all, 4 * column + pair)[4 + part];
        addends[1 + j] = from_bf16(from_a >> 16 * half & 0xffff) * from_bf16(from_b >> 16 * half & 0xffff);
      }
      c[i] = coarse_sum(addends, 5);
    }
  }
}
} // namespace stand_in
