// The optimizer: once over everything, while a row is at hand.
#include "bounding.cuh"
#include "canonical.cuh"

namespace {
// The canonical dot product of two rows that need not begin where four numbers can be read at once; the same in every quad.
__device__ f32 row_dot(const f32 *a, const f32 *b, i32 d) {
  Four sum = zero_four();
  for (i32 start = 0; start < d; start += 16) {
    const i32 j = start + 4 * static_cast<i32>(threadIdx.x % 4);
#pragma unroll
    for (i32 c = 0; c < 4; ++c) {
      const bool exists = j + c < d;
      sum.v[c] = __fmaf_rn(exists ? a[j + c] : 0, exists ? b[j + c] : 0, sum.v[c]);
    }
  }
  return fold(sum);
}
} // namespace

KERNEL(256) sae_update(const __grid_constant__ UpdateParams p) {
  const i64 i = blockIdx.x, at = i * p.stride;
  f32 *const w = p.w + at;
  const bool touched = !p.touched || p.touched[i] != 0;
  const f32 parallel = touched && p.is_decoder ? row_dot(p.g + at, w, p.d) : 0;
  __syncthreads();
  for (i32 j = threadIdx.x; j < p.d; j += 256) {
    f32 v = p.v[at + j], m = p.m[at + j], now = w[j];
    if (p.ema) p.ema[at + j] = p.ema_decay * p.ema[at + j] + (1 - p.ema_decay) * now;
    const f32 g = touched ? (p.g[at + j] - parallel * now) * p.gradient_scale : 0;
    m = p.beta1 * m + (1 - p.beta1) * g;
    v = p.beta2 * v + (1 - p.beta2) * g * g;
    now -= p.rate * m / (sqrtf(v) * p.root_scale + p.epsilon);
    p.m[at + j] = m;
    p.v[at + j] = v;
    w[j] = now;
  }
  __syncthreads();
  if (p.is_decoder) {
    const f32 norm = sqrtf(row_dot(w, w, p.d));
    __syncthreads();
    if (norm > 0 && is_finite(norm)) {
      for (i32 j = threadIdx.x; j < p.d; j += 256) w[j] /= norm;
    }
    __syncthreads();
  }
  if (!p.rounded) return;
  for (i64 j = threadIdx.x; j < p.rounded_stride; j += 256) p.rounded[i * p.rounded_stride + j] = j < p.d ? to_screen(w[j]) : 0;
}
