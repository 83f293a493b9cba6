// Exact scores of what may matter.
#include "canonical.cuh"
#include "radix.cuh"

namespace {
constexpr u32 PICKS = 2048;
constexpr u32 SCORED = 0x7f800000; // a lower bound that says: this one has its exact score
} // namespace

// The likeliest k get their scores first. If all are candidates, nothing below the least of them can win.
KERNEL(256) sae_rescore(const __grid_constant__ RescoreParams p) {
  __shared__ Radix radix;
  __shared__ u32 picks[PICKS], picked, weakest;
  const i64 t = blockIdx.x;
  const Token &token = p.tokens[t];
  if (token.state != READY) return;
  const u32 n = token.waiting, k = static_cast<u32>(p.latents.k), quad = threadIdx.x / 4;
  u64 *const list = p.waiting + t * p.capacity;
  f32 *const lower = p.lower + t * p.capacity;
  const f32 *const x = p.x + t * p.padded;
  const bool staged = k > 0 && n > k;
  const u64 threshold = staged ? kth_largest<u64, true>([&](u32 i) { return list[i]; }, n, k, radix) : 0;
  if (threadIdx.x == 0) weakest = 0x7f7fffff;
  for (i32 stage = 0; stage < (staged ? 2 : 1); ++stage) {
    for (u32 start = 0; start < n; start += PICKS) {
      __syncthreads();
      if (threadIdx.x == 0) picked = 0;
      __syncthreads();
      const u32 bar = weakest;
      for (u32 e = start + threadIdx.x; e < least(n, start + PICKS); e += 256) {
        const bool wanted = stage == 0 ? list[e] >= threshold : __float_as_uint(lower[e]) != SCORED;
        if (!wanted) continue;
        if (stage == 0 || static_cast<u32>(list[e] >> 32) >= bar) {
          picks[atomicAdd(&picked, 1u)] = e;
        } else {
          list[e] = 0;
        }
      }
      __syncthreads();
      const u32 count = picked;
      for (u32 base = 0; base < count; base += 64) {
        const bool mine = base + quad < count;
        const u32 e = picks[mine ? base + quad : base];
        const i32 i = mine ? static_cast<i32>(static_cast<u32>(list[e])) : -1;
        const f32 score = score_alone(p.latents, i, x, ACTIVATIONS);
        if (mine && threadIdx.x % 4 == 0) {
          list[e] = score != 0 ? make_key(score, p.latents.first + i) : 0;
          lower[e] = __uint_as_float(SCORED);
          if (stage == 0) atomicMin(&weakest, score != 0 ? magnitude_bits(score) : 0);
        }
      }
    }
    __syncthreads();
  }
}

// Tokens whose lists overflowed: all latents' scores, of which the largest stay.
KERNEL(256) sae_exact(const __grid_constant__ ExactParams p) {
  constexpr i32 STRIP = 512;
  __shared__ Radix radix;
  __shared__ u32 filled, candidates, counter;
  const Latents &l = p.latents;
  const i32 quad = threadIdx.x / 4;
  const u32 gathered = static_cast<u32>(p.gathered);
  for (i32 o = blockIdx.x; o < p.overflowed[0]; o += gridDim.x) {
    const i64 t = p.overflowed[1 + o];
    u64 *const list = p.waiting + t * p.capacity;
    const f32 *const x = p.x + t * p.padded;
    u64 bar = 0;
    // Drops all but the largest.
    const auto sweep = [&](u32 n) {
      bar = kth_largest<u64, true>([&](u32 i) { return list[i]; }, n, gathered, radix);
      const u32 kept = compact(
          n, counter, [&](u32 i) { return list[i]; }, [&](u64 key) { return key >= bar; }, [&](u32 i, u64 key) { list[i] = key; });
      if (threadIdx.x == 0) filled = kept;
      __syncthreads();
    };
    __syncthreads();
    if (threadIdx.x == 0) filled = candidates = 0;
    __syncthreads();
    for (i32 first = 0; first < l.n; first += STRIP) {
      for (i32 i = first + quad; i < first + STRIP; i += 64) {
        const f32 score = score_alone(l, i < l.n ? i : -1, x, ACTIVATIONS);
        if (score == 0 || threadIdx.x % 4 != 0) continue;
        atomicAdd(&candidates, 1u);
        const u64 key = make_key(score, l.first + i);
        if (gathered > 0 && key > bar) list[atomicAdd(&filled, 1u)] = key;
      }
      __syncthreads();
      const u32 n = filled;
      __syncthreads();
      if (n + STRIP > p.capacity && n > gathered) sweep(n);
    }
    if (filled > gathered) sweep(filled);
    __syncthreads();
    if (threadIdx.x == 0) {
      p.tokens[t].waiting = filled;
      p.tokens[t].active = static_cast<i32>(candidates);
    }
  }
}
