// Scores that are not canonical: the definition's formula over tensor cores' products. Repeatable, whatever the order of blocks: each sum is
// one thread's, in one order, wherever its token and latent are in their tiles.
#include "canonical.cuh"
#include "product.cuh"

namespace fast {
using namespace product;

// What follows a latent's product, as `pre_activation` and `candidate` have it; what a latent does without changes no bit.
struct Facts {
  f32 bias[SCREEN_LATENTS], gain[SCREEN_LATENTS], scale[SCREEN_LATENTS], gate[SCREEN_LATENTS];
  f32 rank[SCREEN_LATENTS], threshold[SCREEN_LATENTS], threshold_scale[SCREEN_LATENTS];
};

__device__ __forceinline__ void gather(Facts &facts, const Latents &l, const Place &place, i32 c) {
  const i32 i = least(place.latent + c, place.end_latent - 1);
  facts.bias[c] = l.b_enc[i];
  facts.gain[c] = l.gain ? l.gain[i] : 1;
  facts.scale[c] = l.scale ? l.scale[i] : 1;
  facts.gate[c] = l.b_gate ? l.b_gate[i] : infinity();
  facts.rank[c] = l.rank_scale ? l.rank_scale[i] : 1;
  facts.threshold[c] = l.threshold ? l.threshold[i] : -infinity();
  facts.threshold_scale[c] = l.threshold_scale ? l.threshold_scale[i] : 1;
}

__device__ __forceinline__ f32 pre_activation(const Facts &facts, i32 c, f32 dot) { return (dot * facts.gain[c] + facts.bias[c]) * facts.scale[c]; }

__device__ __forceinline__ f32 candidate(const Facts &facts, i32 c, f32 dot, bool negative_too) {
  const f32 h = pre_activation(facts, c, dot) * facts.rank[c];
  const bool open = dot + facts.gate[c] > 0 && is_finite(h) && (negative_too || h > 0) && h * facts.threshold_scale[c] > facts.threshold[c];
  return open ? h : 0;
}
} // namespace fast

// The candidates that reach their token's floor, as keys into its list.
KERNEL(256) sae_fast(const __grid_constant__ FastParams p) {
  using namespace fast;
  DYNAMIC_SHARED(stages);
  __shared__ f32 floors[SCREEN_TOKENS];
  __shared__ Facts facts;
  const Operands operands = {p.x, p.w, p.x_stride, p.w_stride, p.rows, p.latents.d, p.first, p.count};
  const Place place = place_of(operands);
  const i32 me = threadIdx.x;
  if (me < SCREEN_TOKENS) {
    floors[me] = place.token + me < p.rows ? p.tokens[place.token + me].floor : infinity();
  } else {
    gather(facts, p.latents, place, me - SCREEN_TOKENS);
  }
  __syncthreads();
  if (!any_open(floors)) return;

  Sums sums = {};
  multiply_tile(operands, place, stages, sums);

  const bool negative_too = p.latents.selection == ABS_TOP_K;
#pragma unroll
  for (i32 row = 0; row < 8; ++row) {
    const i32 r = Sums::token(row), t = place.token + r;
    const f32 floor = floors[r];
    f32 scores[8];
    u32 passes = 0;
#pragma unroll
    for (i32 column = 0; column < 8; ++column) {
      const i32 c = Sums::latent(column);
      scores[column] = candidate(facts, c, sums.at(row, column), negative_too);
      if (scores[column] != 0 && magnitude(scores[column]) >= floor && place.latent + c < place.end_latent) passes |= 1u << column;
    }
    u32 base = places_for(passes, &p.tokens[t].waiting);
#pragma unroll
    for (i32 column = 0; column < 8; ++column) {
      if (!(passes >> column & 1)) continue;
      if (base < p.capacity) {
        const i64 at = t * p.capacity + base;
        p.waiting[at] = make_key(scores[column], p.latents.first + place.latent + Sums::latent(column));
        p.lower[at] = magnitude(scores[column]);
      }
      ++base;
    }
  }
}

// All of them.
KERNEL(256) sae_product(const __grid_constant__ ProductParams p) {
  using namespace fast;
  DYNAMIC_SHARED(stages);
  __shared__ i32 states[SCREEN_TOKENS];
  __shared__ Facts facts;
  const Operands operands = {p.x, p.w, p.x_stride, p.w_stride, p.rows, p.latents.d, 0, p.latents.n};
  const Place place = place_of(operands);
  const i32 me = threadIdx.x;
  if (me < SCREEN_TOKENS) {
    states[me] = place.token + me < p.rows ? p.tokens[place.token + me].state : READY;
  } else {
    gather(facts, p.latents, place, me - SCREEN_TOKENS);
  }
  __syncthreads();

  Sums sums = {};
  multiply_tile(operands, place, stages, sums);

  const bool negative_too = p.latents.selection == ABS_TOP_K;
#pragma unroll
  for (i32 row = 0; row < 8; ++row) {
    const i32 r = Sums::token(row), t = place.token + r;
    if (t >= p.rows) continue;
#pragma unroll
    for (i32 column = 0; column < 8; ++column) {
      const i32 c = Sums::latent(column), i = place.latent + c;
      if (i >= place.end_latent) continue;
      const f32 dot = sums.at(row, column);
      const f32 v = p.what == ACTIVATIONS ? candidate(facts, c, dot, negative_too) : pre_activation(facts, c, dot);
      write(p.out, t, i, states[r] == NOT_FINITE ? not_a_number() : v);
    }
  }
}
