// Once for each model: the encoder as tensor cores get it, and what turns its products into bounds.
#include "bounding.cuh"

KERNEL(256) sae_bounds(const __grid_constant__ BoundsParams p) {
  const Latents &l = p.latents;
  const i32 i = static_cast<i32>(blockIdx.x) * 8 + static_cast<i32>(threadIdx.x / 32), lane = threadIdx.x % 32;
  if (i >= l.n) return; // whole warps
  f32 lost = 0, squares = 0;
  i32 some = 0;
  const i64 end = p.rounded ? p.rounded_stride : l.d;
  for (i64 j = lane; j < end; j += 32) {
    const f32 w = j < l.d ? load(l.w_enc.data, i * l.w_enc.stride + j, l.w_enc.dtype) : 0;
    if (p.rounded) {
      const u16 bits = to_screen(w);
      p.rounded[i * p.rounded_stride + j] = bits;
      const f32 rest = w - from_bf16(bits);
      lost += rest * rest;
    }
    squares += w * w;
    some |= w != 0;
  }
  const bool zero = !__any_sync(ALL_LANES, some);
  squares = warp_sum(squares);
  lost = warp_sum(lost);
  if (lane != 0) return;

  // As cpu/encoder.rs does: how the score follows from the dot product, up to rounding.
  f32 after = 1, peak = 1;
  const f32 *const factors[3] = {l.scale, l.rank_scale, l.threshold_scale};
  for (const f32 *factor : factors) {
    if (!factor) continue;
    after *= factor[i];
    peak = larger(peak, after);
  }
  const f32 least_score = l.threshold ? l.threshold[i] : 0;
  Bound bound = {after, l.b_enc[i] * after, 0, 0, 0, larger(least_score, 0), 0, 0};
  f32 most = magnitude(l.b_enc[i]) * peak + magnitude(least_score);
  if (l.gain) {
    // The gate is open from where the dot product is -b_gate.
    const f32 gain = l.gain[i], gate = gain * l.b_gate[i];
    bound.factor = after * gain;
    bound.threshold = larger(bound.threshold, bound.bias - gate * after);
    most = 2 * most + magnitude(gate) * peak + magnitude(l.b_gate[i]);
    peak = larger(peak, peak * gain);
  }
  // Of rows of zeros everything is known: their scores shall not wait for an exact one.
  const f32 norm = zero ? 0 : norm_above(squares) * (1 + SLACK);
  const f32 tiny = zero && most == 0 ? 0 : TINY * peak;
  bound.lost = (p.rounded && !zero ? norm_above(lost) * (1 + SLACK) * bound.factor : 0) + tiny;
  bound.norm = norm * bound.factor;
  bound.reach = tiny + SLACK * most;
  p.bounds[i] = bound;
  // A norm that leaves bf16, or a bound that is no number, lets no bound hold.
  const f32 steep = norm < HUGE_SCORE && is_finite(bound.norm) && is_finite(bound.lost) ? norm * peak : infinity();
  const f32 high = is_finite(bound.reach) && is_finite(bound.threshold) && is_finite(bound.bias) ? peak + most : infinity();
  atomicMax(p.peaks, __float_as_uint(steep));
  atomicMax(p.peaks + 1, __float_as_uint(high));
}
