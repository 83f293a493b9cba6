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
  if (gridDim.y > 1) {
    // Few tokens: many blocks for each, which spare nothing.
    for (u32 base = 64 * blockIdx.y; base < n; base += 64 * gridDim.y) {
      const u32 e = base + quad;
      const i32 i = e < n ? static_cast<i32>(static_cast<u32>(list[e])) : -1;
      const f32 score = score_alone(p.latents, i, x, ACTIVATIONS);
      if (e < n && threadIdx.x % 4 == 0) list[e] = score != 0 ? make_key(score, p.latents.first + i) : 0;
    }
    return;
  }
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

// Tokens whose lists overflowed: all latents' scores, of which the largest stay. A few tokens and a range of latents go to one
// block at a time, so that weights are read for several tokens at once, and a single token has many blocks.
KERNEL(256) sae_exact(const __grid_constant__ ExactParams p) {
  constexpr i32 STRIP = 512;
  constexpr u32 ON_CHIP = EXACT_KEYS + STRIP;
  __shared__ Radix radix;
  __shared__ u64 kept[EXACT_TOKENS][ON_CHIP], bars[EXACT_TOKENS];
  __shared__ u32 filled[EXACT_TOKENS], candidates[EXACT_TOKENS], counter;
  __shared__ i64 ts[EXACT_TOKENS];
  const Latents &l = p.latents;
  const i32 me = threadIdx.x, quad = me / 4, lane = me % 4;
  const u32 gathered = static_cast<u32>(p.gathered);
  // Lists that do not fit on the chip are kept where they end up, for one token at a time.
  const bool on_chip = p.gathered <= EXACT_KEYS;
  const i32 together = on_chip ? EXACT_TOKENS : 1, count = p.overflowed[0];
  const u32 room = on_chip ? ON_CHIP : static_cast<u32>(p.capacity);
  const i32 length = (l.n + p.ranges - 1) / p.ranges;
  for (i32 item = blockIdx.x; item < (count + together - 1) / together * p.ranges; item += gridDim.x) {
    const i32 first_token = item / p.ranges * together, tokens = least(together, count - first_token), range = item % p.ranges;
    const auto list = [&](i32 o) { return on_chip ? kept[o] : p.waiting + ts[0] * p.capacity; };
    // Drops all but the largest.
    const auto sweep = [&](i32 o, u32 n) {
      u64 *const keys = list(o);
      const u64 bar = kth_largest<u64, true>([&](u32 i) { return keys[i]; }, n, gathered, radix);
      const u32 stay = compact(
          n, counter, [&](u32 i) { return keys[i]; }, [&](u64 key) { return key >= bar; }, [&](u32 i, u64 key) { keys[i] = key; });
      if (me == 0) {
        filled[o] = stay;
        bars[o] = bar;
      }
      __syncthreads();
    };
    __syncthreads();
    if (me < EXACT_TOKENS) {
      filled[me] = candidates[me] = 0;
      bars[me] = 0;
      ts[me] = p.overflowed[1 + first_token + least(me, tokens - 1)];
    }
    __syncthreads();
    const f32 *xs[EXACT_TOKENS];
#pragma unroll
    for (i32 o = 0; o < EXACT_TOKENS; ++o) xs[o] = p.x + ts[o] * p.padded;
    const i32 end = least(l.n, (range + 1) * length);
    for (i32 first = range * length; first < end; first += STRIP) {
      for (i32 i = first + quad; i < first + STRIP; i += 64) {
        f32 dot[EXACT_TOKENS];
        dots<EXACT_TOKENS>(l.w_enc, i < end ? i : -1, [&](i32 o) { return xs[o]; }, l.d, tokens, dot);
        // Each thread of a quad has the token that is its own.
        f32 mine = 0;
#pragma unroll
        for (i32 o = 0; o < EXACT_TOKENS; ++o) {
          if (o == lane) mine = dot[o];
        }
        const f32 score = i < end && lane < tokens ? candidate(l, i, mine, 0) : 0;
        if (score == 0) continue;
        atomicAdd(&candidates[lane], 1u);
        const u64 key = make_key(score, l.first + i);
        if (gathered > 0 && key > bars[lane]) list(lane)[atomicAdd(&filled[lane], 1u)] = key;
      }
      __syncthreads();
      for (i32 o = 0; o < tokens; ++o) {
        const u32 n = filled[o];
        __syncthreads();
        if (n + STRIP > room && n > gathered) sweep(o, n);
      }
    }
    for (i32 o = 0; o < tokens; ++o) {
      if (filled[o] > gathered) sweep(o, filled[o]);
      __syncthreads();
      Token &told = p.tokens[ts[o]];
      if (on_chip) {
        u64 *const out = p.waiting + ts[o] * p.capacity + range * static_cast<i64>(gathered);
        for (u32 i = me; i < gathered; i += 256) out[i] = i < filled[o] ? kept[o][i] : 0;
      }
      if (me == 0) {
        told.waiting = on_chip ? gathered * static_cast<u32>(p.ranges) : filled[o];
        atomicAdd(&told.active, static_cast<i32>(candidates[o]));
      }
    }
  }
}
