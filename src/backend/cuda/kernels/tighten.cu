// Between two ranges of latents: what waits so far tells what the others must reach.
#include "radix.cuh"

namespace {
struct Waiting {
  u64 upper;
  f32 lower;
};
} // namespace

KERNEL(256) sae_tighten(const __grid_constant__ TightenParams p) {
  __shared__ Radix radix;
  __shared__ u32 counter;
  const i64 t = blockIdx.x;
  Token &token = p.tokens[t];
  const u32 n = token.waiting, k = static_cast<u32>(p.k);
  const f32 floor = token.floor;
  if (token.state != READY) return;
  __syncthreads(); // all have seen the state before it changes
  if (n > p.capacity) {
    if (threadIdx.x == 0) {
      token.state = OVERFLOWED;
      token.floor = infinity();
      p.overflowed[1 + atomicAdd(p.overflowed, 1)] = static_cast<i32>(t);
    }
    return;
  }
  if (k == 0 || n < k) return;
  u64 *const upper = p.waiting + t * p.capacity;
  f32 *const lower = p.lower + t * p.capacity;
  // Positive numbers order as their bits do.
  const auto bits = [&](u32 i) { return lower[i] > 0 ? __float_as_uint(lower[i]) : 0; };
  const f32 raised = larger(floor, __uint_as_float(kth_largest<u32, false>(bits, n, k, radix)));
  const u32 kept = compact(
      n, counter, [&](u32 i) { return Waiting{upper[i], lower[i]}; },
      [&](const Waiting &w) { return !(__uint_as_float(static_cast<u32>(w.upper >> 32)) < raised); },
      [&](u32 i, const Waiting &w) {
        upper[i] = w.upper;
        lower[i] = w.lower;
      });
  if (threadIdx.x == 0) {
    token.floor = raised;
    token.waiting = kept;
  }
}
