// Canonical scores: of all latents, for a few tokens or where bounds do not help, and of chosen ones.
#include "canonical.cuh"

// Those of up to TOKENS tokens for 64 latents, one for each quad.
template <i32 TOKENS> __device__ __forceinline__ void score_tile(const ScoreParams &p, i64 tile, i64 first) {
  const Latents &l = p.latents;
  const i32 tokens = static_cast<i32>(least<i64>(TOKENS, p.rows - first));
  const i64 latent = tile * SCORE_LATENTS + threadIdx.x / 4;
  const i32 i = latent < l.n ? static_cast<i32>(latent) : -1;
  const f32 *const x = p.x + first * p.padded;
  f32 one[TOKENS] = {}, two[TOKENS];
  // The second encoder comes first, if there is one.
#pragma unroll 1
  for (const Matrix *w = l.w_glu.data ? &l.w_glu : &l.w_enc;; w = &l.w_enc) {
#pragma unroll
    for (i32 t = 0; t < TOKENS; ++t) two[t] = one[t];
    dots<TOKENS>(*w, i, [&](i32 t) { return x + t * p.padded; }, l.d, tokens, one);
    if (w == &l.w_enc) break;
  }
  if (i < 0) return;
  // Each thread of a quad writes the tokens that are its own.
#pragma unroll 1
  for (i32 mine = threadIdx.x % 4; mine < tokens; mine += 4) {
    f32 v = 0, second = 0;
#pragma unroll
    for (i32 t = 0; t < TOKENS; ++t) {
      if (t == mine) v = one[t], second = two[t];
    }
    if (p.what == ACTIVATIONS) v = candidate(l, i, v, second);
    if (p.what == PRE_ACTIVATIONS) v = pre_activation(l, i, v, second);
    if (p.tokens && p.tokens[first + mine].state == NOT_FINITE) v = not_a_number();
    write(p.out, first + mine, i, v);
  }
}

// Tokens go fastest, so that weights are read from memory once.
KERNEL(256) sae_score(const __grid_constant__ ScoreParams p) {
  const u32 token_tiles = (static_cast<u32>(p.rows) + SCORE_TOKENS - 1) / SCORE_TOKENS;
  score_tile<SCORE_TOKENS>(p, blockIdx.x / token_tiles, static_cast<i64>(blockIdx.x % token_tiles) * SCORE_TOKENS);
}

// With fewer registers, and so with more blocks that wait for memory at once.
KERNEL(256) sae_score_one(const __grid_constant__ ScoreOneParams p) { score_tile<1>(p.score, blockIdx.x, 0); }

KERNEL(256) sae_score_selected(const __grid_constant__ ScoreSelectedParams p) {
  const Latents &l = p.latents;
  const i64 t = blockIdx.y;
  const i32 column = static_cast<i32>(blockIdx.x) * 64 + static_cast<i32>(threadIdx.x / 4);
  const i32 i = column < p.m ? local(p.ids[column * p.ids_stride], l.first, l.n) : -1;
  f32 v = score_alone(l, i, p.x + t * p.padded, ACTIVATIONS);
  if (column >= p.m || threadIdx.x % 4 != 0) return;
  if (i < 0 && t == 0) atomicAdd(p.ignored, static_cast<u64>(1));
  if (p.tokens[t].state == NOT_FINITE) v = not_a_number();
  write(p.out, t, column, v);
}
