// The features of each token, from keys or from the scores of all latents.
#include "canonical.cuh"
#include "radix.cuh"

namespace {
constexpr u32 ON_CHIP = 1024;
}

KERNEL(256) sae_select(const __grid_constant__ SelectParams p) {
  __shared__ Radix radix;
  __shared__ u64 on_chip[ON_CHIP];
  __shared__ u32 sums[33], counter;
  const Latents &l = p.latents;
  const i64 t = blockIdx.x;
  const u32 me = threadIdx.x, gathered = static_cast<u32>(p.gathered);
  const Token token = p.tokens[t];
  const bool finite = token.state != NOT_FINITE;

  // The source.
  u32 n = static_cast<u32>(p.keys ? p.length : l.n);
  if (p.keys && p.length < 0) n = least(token.waiting, static_cast<u32>(-p.length));
  if (!finite || token.state == UNWANTED) n = 0;
  const u64 *const keys = p.keys ? p.keys + t * p.keys_stride : nullptr;
  const f32 *const scores = p.scores ? p.scores + t * p.scores_stride : nullptr;
  const auto at = [&](u32 i) -> u64 {
    if (keys) return keys[i];
    return scores[i] != 0 ? make_key(scores[i], l.first + static_cast<i32>(i)) : 0;
  };
  u32 found = 0;
  for (u32 i = me; i < n; i += 256) found += at(i) != 0;
  found = block_sum(found, sums);

  // The largest.
  u64 *const kept = p.kept ? p.kept + t * p.kept_stride : nullptr;
  u64 *const best = gathered <= ON_CHIP ? on_chip : kept;
  const u32 taken = least(found, gathered), size = power_of_two(taken);
  const u64 bar = found > gathered && gathered > 0 ? kth_largest<u64, true>(at, n, gathered, radix) : 1;
  if (me == 0) counter = 0;
  for (u32 i = taken + me; i < size; i += 256) best[i] = 0;
  __syncthreads();
  // A host's shards may list a latent twice: of keys equal to the bar there may be more than are taken.
  for (i32 pass = 0; pass < 2; ++pass) {
    for (u32 i = me; i < n && taken > 0; i += 256) {
      const u64 key = at(i);
      if (!(pass == 0 ? key > bar : key == bar)) continue;
      const u32 slot = atomicAdd(&counter, 1u);
      if (slot < taken) best[slot] = key;
    }
    __syncthreads();
  }
  if (l.rank_scale) {
    // They have won by their products with it, and are listed by what they are without.
    for (u32 start = 0; start < taken; start += 64) {
      const u32 e = start + me / 4;
      const i32 i = e < taken ? key_index(best[e]) - l.first : -1;
      const f32 h = score_alone(l, i, p.x + t * p.padded, PRE_ACTIVATIONS);
      if (i >= 0 && me % 4 == 0) best[e] = make_key(h, l.first + i);
    }
    __syncthreads();
  }
  sort(best, size, BY_VALUE, 0);
  if (kept) {
    for (u32 i = me; i < p.kept_stride; i += 256) {
      if (i >= taken) {
        kept[i] = 0;
      } else if (best != kept) {
        kept[i] = best[i];
      }
    }
  }
  i32 active = p.counted || token.state == OVERFLOWED ? token.active : static_cast<i32>(found);
  if (l.k > 0) active = least(active, l.k);
  if (!finite) active = -1;
  if (me == 0) p.tokens[t].active = active;

  // The features.
  if (!p.out.values) return;
  const u32 width = static_cast<u32>(p.out.width), shown = least(taken, width);
  if (p.order == BY_INDEX && shown > 0) {
    const u64 last = best[shown - 1];
    __syncthreads();
    sort(best, size, BY_INDEX, last);
  }
  for (u32 i = me; i < width; i += 256) {
    const u64 key = i < shown ? best[i] : 0;
    p.out.indices[t * p.out.indices_stride + i] = i < shown ? key_index(key) : -1;
    store(p.out.values, t * p.out.values_stride + i, p.out.dtype, i < shown ? clamped_to(key_value(key), p.out.dtype) : 0);
  }
  if (me == 0) p.out.counts[t * p.out.counts_stride] = active;
  if (p.out.row_state && static_cast<i32>(me) < p.out.state_width) {
    const f32 state = me == 0 ? token.state0 : token.state1;
    p.out.row_state[t * p.out.state_stride + me] = finite ? state : not_a_number();
  }
  if (p.order == BY_INDEX && best == kept) {
    __syncthreads();
    sort(kept, size, BY_VALUE, 0);
  }
}
