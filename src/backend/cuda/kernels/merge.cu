// Features of latent shards, on their way to those of the whole.
#include "common.cuh"

KERNEL(128) sae_merge_part(const __grid_constant__ MergePartParams p) {
  const i64 t = blockIdx.x;
  const Features &part = p.part;
  for (i32 slot = threadIdx.x; slot < part.width; slot += 128) {
    const i32 index = part.indices[t * part.indices_stride + slot];
    const f32 value = load(part.values, t * part.values_stride + slot, part.dtype);
    p.keys[t * p.keys_stride + p.offset + slot] = index >= 0 && is_finite(value) ? make_key(value, index) : 0;
    if (index < -1) atomicAdd(p.ignored, static_cast<u64>(1));
  }
  if (threadIdx.x != 0) return;
  Token token = p.tokens[t];
  if (p.is_first) {
    const i32 width = part.row_state ? part.state_width : 0;
    const f32 *const state = part.row_state + t * part.state_stride;
    token = {width > 0 ? state[0] : 0, width > 1 ? state[1] : 0, READY, 0, 0, 0, 0, 0};
  }
  const i32 count = part.counts[t * part.counts_stride];
  if (count < 0) token.state = NOT_FINITE;
  if (count > 0) token.active = count > 0x7fffffff - token.active ? 0x7fffffff : token.active + count;
  p.tokens[t] = token;
}
