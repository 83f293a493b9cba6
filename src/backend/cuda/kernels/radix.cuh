// Exact selection and sorting by a block, of numbers in any memory.
#pragma once

#include "common.cuh"

// What a block needs to select: in shared memory.
struct Radix {
  u32 bins[256];
  u32 digit, rest, count;
};

// A threshold that exactly k of the numbers reach, if no two are equal; else the k-th largest. `at(i)` gives the i-th of n, 1 <= k <=
// n. With `early`, any such threshold will do, which is sooner found. Eight bits at a time from above; all threads come along.
template <typename T, bool early, typename At> __device__ T kth_largest(const At &at, u32 n, u32 k, Radix &radix) {
  T prefix = 0;
  for (i32 shift = 8 * static_cast<i32>(sizeof(T)) - 8; shift >= 0; shift -= 8) {
    for (u32 bin = threadIdx.x; bin < 256; bin += blockDim.x) radix.bins[bin] = 0;
    __syncthreads();
    for (u32 i = threadIdx.x; i < n; i += blockDim.x) {
      const T v = at(i);
      if (((v ^ prefix) >> shift) >> 8 == 0) atomicAdd(&radix.bins[v >> shift & 255], 1u);
    }
    __syncthreads();
    if (threadIdx.x < 32) {
      // Lane l sums bins from above: 255 - 8 l and the seven below.
      const u32 top = 255 - 8 * threadIdx.x;
      u32 own = 0;
      for (u32 i = 0; i < 8; ++i) own += radix.bins[top - i];
      u32 above = own;
      for (u32 by = 1; by < 32; by *= 2) {
        const u32 left = __shfl_up_sync(ALL_LANES, above, by);
        if (threadIdx.x >= by) above += left;
      }
      above -= own;
      if (above < k && above + own >= k) {
        u32 bin = top;
        while (above + radix.bins[bin] < k) above += radix.bins[bin--];
        radix.digit = bin;
        radix.rest = k - above;
        radix.count = radix.bins[bin];
      }
    }
    __syncthreads();
    prefix |= static_cast<T>(radix.digit) << shift;
    k = radix.rest;
    if (early && radix.count == k) break;
    __syncthreads();
  }
  __syncthreads();
  return prefix;
}

// Keeps what `stays` of the first n entries, in any order: `take(i)` reads one, `put(i, v)` writes it. Returns how many, to all.
template <typename Take, typename Stays, typename Put>
__device__ u32 compact(u32 n, u32 &counter, const Take &take, const Stays &stays, const Put &put) {
  __syncthreads();
  if (threadIdx.x == 0) counter = 0;
  for (u32 start = 0; start < n; start += blockDim.x) {
    const u32 i = start + threadIdx.x;
    const auto v = take(i < n ? i : start);
    __syncthreads(); // all have read before anybody writes, which is never further up
    if (i < n && stays(v)) put(atomicAdd(&counter, 1u), v);
    __syncthreads();
  }
  __syncthreads();
  const u32 kept = counter;
  __syncthreads();
  return kept;
}

__device__ __forceinline__ u32 power_of_two(u32 at_least) {
  u32 power = 1;
  while (power < at_least) power *= 2;
  return power;
}

// Sorts keys, a power of two of them, greater ones first; BY_INDEX those that reach `bar` by index, and the others behind them.
__device__ inline void sort(u64 *keys, u32 n, i32 order, u64 bar) {
  const auto rank = [&](u64 key) { return order == BY_VALUE ? key : static_cast<u64>(key >= bar) << 32 | static_cast<u32>(key); };
  for (u32 size = 2; size <= n; size *= 2) {
    for (u32 by = size / 2; by > 0; by /= 2) {
      __syncthreads();
      for (u32 i = threadIdx.x; i < n / 2; i += blockDim.x) {
        const u32 low = 2 * i - (i & (by - 1)), high = low + by;
        const u64 a = keys[low], b = keys[high];
        if (a != b && (rank(a) > rank(b)) != ((low & size) == 0)) {
          keys[low] = b;
          keys[high] = a;
        }
      }
    }
  }
  __syncthreads();
}
