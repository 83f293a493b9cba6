// From the host's activations to what the encoder sees: sum, finiteness, normalisation, b_dec; and what bounds need to know.
#include "bounding.cuh"
#include "canonical.cuh"

// A token's x'' goes into `out` in steps, each of which all threads have seen before the next.
KERNEL(128) sae_prepare(const __grid_constant__ PrepareParams p) {
  __shared__ f32 sums[33];
  const i64 t = blockIdx.x;
  const i32 me = threadIdx.x;
  f32 *const x = p.out ? p.out + t * p.padded : nullptr;
  const bool wanted = !p.wanted || p.wanted[t] != 0;
  Token token = {0, 0, READY, 0, 0, LEAST, 0, 0};

  // 0 for finite numbers, else NaN.
  f32 broken = 0;
  for (i32 j = me; j < p.padded; j += 128) {
    f32 v = 0;
    if (j < p.d) {
      v = read(p.x, t, j);
      if (p.addend.data) {
        v += read(p.addend, t, j);
        if (p.round_sum) v = rounded_to(v, p.x.dtype);
      }
    }
    broken += v * 0;
    if (x) x[j] = v;
    if (p.raw) p.raw[t * p.padded + j] = v;
  }
  if (!p.tokens) return;
  const bool finite = block_sum(broken, sums) == 0;

  const bool centred = p.center || p.normalization == LAYER_NORM;
  f32 mean = 0, scale = 0;
  if (centred) {
    mean = sum(x, p.d) / static_cast<f32>(p.d);
    __syncthreads();
    for (i32 j = me; j < p.d; j += 128) x[j] -= mean;
    __syncthreads();
  }
  if (p.normalization == LAYER_NORM) {
    scale = sqrtf(square(x, p.d) / (static_cast<f32>(p.d) - 1));
  } else if (p.normalization == CONSTANT_NORM) {
    scale = sqrtf(static_cast<f32>(p.d)) / sqrtf(square(x, p.d));
  }
  __syncthreads();
  if (!wanted) token.state = UNWANTED;
  if (!finite || !is_finite(mean) || !is_finite(scale)) token.state = NOT_FINITE;
  const bool ready = token.state == READY;
  token.state0 = centred ? mean : scale;
  token.state1 = centred ? scale : 0;

  f32 lost = 0, squares = 0;
  const i64 end = p.rounded && p.rounded_stride > p.padded ? p.rounded_stride : p.padded;
  for (i64 j = me; j < end; j += 128) {
    f32 v = 0;
    if (ready && j < p.d) {
      v = x[j];
      if (p.normalization == LAYER_NORM) v /= scale + 1e-5f;
      if (p.normalization == CONSTANT_NORM) v *= scale;
      if (p.b_dec) v -= p.b_dec[j];
    }
    if (j < p.padded) x[j] = v;
    if (p.rounded && j < p.rounded_stride) {
      const u16 bits = to_screen(v);
      p.rounded[t * p.rounded_stride + j] = bits;
      const f32 rest = v - from_bf16(bits);
      lost += rest * rest;
      squares += v * v;
    }
  }
  if (p.rounded) {
    const f32 norm = norm_above(block_sum(squares, sums));
    token.x = norm * (1 + SLACK);
    token.dx = (norm_above(block_sum(lost, sums)) + norm * rounding(p.d)) * (1 + SLACK);
    const bool fits = token.x < HUGE_SCORE && p.peaks[0] * token.x + p.peaks[1] < HUGE_SCORE;
    if (ready && !fits) token.state = OVERFLOWED;
  }
  if (token.state != READY) token.floor = infinity();
  if (me == 0) {
    p.tokens[t] = token;
    if (token.state == OVERFLOWED) p.overflowed[1 + atomicAdd(p.overflowed, 1)] = static_cast<i32>(t);
  }
}
