// What a token's row state says, and what is done with it.
#pragma once

#include "common.cuh"

struct Statistics {
  f32 mean, scale;
};

__device__ __forceinline__ Statistics statistics_of(f32 first, f32 second, i32 normalization, i32 center) {
  return center || normalization == LAYER_NORM ? Statistics{first, second} : Statistics{0, first};
}
__device__ __forceinline__ Statistics statistics_of(const Token &token, i32 normalization, i32 center) {
  return statistics_of(token.state0, token.state1, normalization, center);
}
__device__ __forceinline__ Statistics statistics_of(const Features &features, i64 t, i32 normalization, i32 center) {
  const f32 *const state = features.row_state + t * features.state_stride;
  const i32 width = features.row_state ? features.state_width : 0;
  return statistics_of(width > 0 ? state[0] : 0, width > 1 ? state[1] : 0, normalization, center);
}

// A reconstruction's element, back to the model's scale.
__device__ __forceinline__ f32 denormalized(f32 v, const Statistics &s, i32 normalization, i32 center) {
  if (normalization == LAYER_NORM) return __fmaf_rn(s.scale, v, s.mean);
  if (normalization == CONSTANT_NORM) v /= s.scale;
  return center ? v + s.mean : v;
}

// By what a change in the decoder's space is multiplied to become a change of the activation.
__device__ __forceinline__ f32 output_scale(const Statistics &s, i32 normalization, i32 denormalize) {
  if (!denormalize || normalization == NO_NORM) return 1;
  return normalization == LAYER_NORM ? s.scale : 1 / s.scale;
}
