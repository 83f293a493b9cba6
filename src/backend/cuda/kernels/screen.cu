// The encoder at the price of bf16 products: those of a tile of tokens and a tile of latents go from the accumulators straight into
// bounds, of which only what reaches the token's floor leaves the chip. Nothing of size [T, n] exists.
#include "bounding.cuh"
#include "product.cuh"

KERNEL(256) sae_screen(const __grid_constant__ ScreenParams p) {
  using namespace product;
  DYNAMIC_SHARED(stages);
  __shared__ f32 norm_x[SCREEN_TOKENS], lost_x[SCREEN_TOKENS], floors[SCREEN_TOKENS];
  __shared__ f32 facts[5][SCREEN_LATENTS];
  const Operands operands = {p.x, p.w, p.x_stride, p.w_stride, p.rows, p.d, p.first, p.count};
  const Place place = place_of(operands);

  const i32 me = threadIdx.x;
  if (me < SCREEN_TOKENS) {
    const i32 t = place.token + me;
    const bool exists = t < p.rows;
    norm_x[me] = exists ? p.tokens[t].x : 0;
    lost_x[me] = exists ? p.tokens[t].dx : 0;
    floors[me] = exists ? p.tokens[t].floor : infinity();
  } else {
    const i32 c = me - SCREEN_TOKENS, i = place.latent + c;
    const bool exists = i < place.end_latent;
    const Bound bound = p.bounds[exists ? i : place.latent];
    facts[0][c] = bound.factor;
    facts[1][c] = bound.bias;
    facts[2][c] = bound.lost;
    facts[3][c] = bound.norm;
    // No bound of a latent that is none reaches any floor. Where latents compete, there are no thresholds.
    facts[4][c] = exists ? bound.reach - bound.threshold : -infinity();
  }
  __syncthreads();
  if (!any_open(floors)) return;

  Sums sums = {};
  multiply_tile(operands, place, stages, sums);

#pragma unroll
  for (i32 row = 0; row < 8; ++row) {
    const i32 r = Sums::token(row), t = place.token + r;
    const f32 x = norm_x[r], dx = lost_x[r], floor = floors[r];
    f32 upper[8], lower[8];
    u32 passes = 0;
#pragma unroll
    for (i32 column = 0; column < 8; ++column) {
      const i32 c = Sums::latent(column);
      f32 middle = __fmaf_rn(sums.at(row, column), facts[0][c], facts[1][c]);
      if (p.magnitude) middle = magnitude(middle);
      const f32 within = __fmaf_rn(facts[2][c], x, facts[3][c] * dx);
      upper[column] = middle + (within + facts[4][c]);
      lower[column] = middle - (within + facts[4][c]);
      if (floor < infinity() && !(upper[column] < floor)) passes |= 1u << column;
    }
    u32 base = places_for(passes, &p.tokens[t].waiting);
#pragma unroll
    for (i32 column = 0; column < 8; ++column) {
      if (!(passes >> column & 1)) continue;
      if (base < p.capacity) {
        const i64 at = t * p.capacity + base;
        p.waiting[at] = static_cast<u64>(__float_as_uint(upper[column])) << 32 | static_cast<u32>(place.latent + Sums::latent(column));
        p.lower[at] = lower[column];
      }
      ++base;
    }
  }
}
