// Between scores of all latents and keys.
#include "radix.cuh"

KERNEL(256) sae_winnow(const __grid_constant__ WinnowParams p) {
  __shared__ Radix radix;
  __shared__ f32 scores[WINNOW_LATENTS];
  __shared__ u32 sums[33], counter;
  const i64 t = blockIdx.y;
  const i32 start = static_cast<i32>(blockIdx.x) * WINNOW_LATENTS, n = least(WINNOW_LATENTS, p.n - start), me = threadIdx.x;
  Token &token = p.tokens[t];
  if (token.state == NOT_FINITE || token.state == UNWANTED) return;
  u32 found = 0;
  for (i32 i = me; i < n; i += 256) {
    scores[i] = p.scores[t * p.scores_stride + start + i];
    found += scores[i] != 0;
  }
  found = block_sum(found, sums);
  const u32 gathered = static_cast<u32>(p.gathered), taken = least(found, gathered);
  const auto at = [&](u32 i) -> u64 { return scores[i] != 0 ? make_key(scores[i], p.first + start + static_cast<i32>(i)) : 0; };
  const u64 bar = found > gathered && gathered > 0 ? kth_largest<u64, true>(at, static_cast<u32>(n), gathered, radix) : 1;
  if (me == 0) {
    atomicAdd(&token.active, static_cast<i32>(found));
    counter = atomicAdd(&token.waiting, taken);
  }
  __syncthreads();
  if (taken == 0) return;
  for (i32 i = me; i < n; i += 256) {
    const u64 key = at(static_cast<u32>(i));
    if (key >= bar) p.keys[t * p.keys_stride + atomicAdd(&counter, 1u)] = key;
  }
}

// Ties go to the lower index, which comes first.
KERNEL(256) sae_group_best(const __grid_constant__ GroupBestParams p) {
  const i64 t = blockIdx.y;
  const i32 g = static_cast<i32>(blockIdx.x) * 256 + static_cast<i32>(threadIdx.x);
  if (g >= p.n / p.group) return;
  const f32 *const scores = p.scores + t * p.scores_stride;
  f32 best = 0;
  i32 winner = 0;
  for (i32 i = g * p.group; i < (g + 1) * p.group; ++i) {
    if (scores[i] > best) {
      best = scores[i];
      winner = i;
    }
  }
  p.keys[t * p.keys_stride + g] = best > 0 ? make_key(best, p.first + winner) : 0;
}

KERNEL(256) sae_scatter(const __grid_constant__ ScatterParams p) {
  const i64 t = blockIdx.x;
  const f32 fill = p.tokens[t].state == NOT_FINITE ? not_a_number() : 0;
  for (i32 i = threadIdx.x; i < p.n; i += 256) write(p.out, t, i, fill);
  __syncthreads();
  for (i32 e = threadIdx.x; e < p.limit; e += 256) {
    const u64 key = p.kept[t * p.kept_stride + e];
    if (key != 0) write(p.out, t, key_index(key) - p.first, key_value(key));
  }
}

KERNEL(128) sae_lookup(const __grid_constant__ LookupParams p) {
  const i64 t = blockIdx.x;
  const bool finite = p.tokens[t].state != NOT_FINITE;
  for (i32 column = threadIdx.x; column < p.m; column += 128) {
    const i32 id = p.ids[column * p.ids_stride];
    f32 v = 0;
    for (i32 e = 0; e < p.limit; ++e) {
      const u64 key = p.kept[t * p.kept_stride + e];
      if (key == 0) break;
      if (key_index(key) == id) v = key_value(key);
    }
    if (t == 0 && local(id, p.first, p.n) < 0) atomicAdd(p.ignored, static_cast<u64>(1));
    write(p.out, t, column, finite ? v : not_a_number());
  }
}
