// The encoder at the price of bf16 products: those of a tile of tokens and a tile of latents go from the accumulators straight into
// bounds, of which only what reaches the token's floor leaves the chip. Nothing of size [T, n] exists.
#include "bounding.cuh"
#include "radix.cuh"
#include "tensor_cores.cuh"

namespace screening {
constexpr i32 DEPTH = 32;              // columns of a stage
constexpr i32 STAGES = 4;
constexpr i32 ROW = DEPTH * 2;         // bytes
constexpr i32 TILE = SCREEN_TOKENS * ROW;
constexpr i32 BAND = 16;               // tiles of tokens that go through the latents together, while those are in cache
static_assert(STAGES * 2 * TILE == SCREEN_SHARED && SCREEN_TOKENS == SCREEN_LATENTS, "shared memory is what the launch reserves");

// Where 16 bytes of a row lie: moved about so that eight rows of a column never meet in one bank.
__device__ __forceinline__ i32 swizzled(i32 row, i32 chunk) { return row * ROW + ((chunk ^ (row >> 1 & 3)) << 4); }

// Starts copying a stage of 128 rows: two threads a row, two chunks each. Rows and columns that do not exist become zeros.
__device__ __forceinline__ void copy_tile(unsigned char *tile, const u16 *from, i64 stride, i32 first, i32 end, i32 column, i32 d) {
  const i32 row = threadIdx.x / 2;
  const bool exists = first + row < end;
  const u16 *const start = from + (exists ? (first + row) * stride : 0);
#pragma unroll
  for (i32 i = 0; i < 2; ++i) {
    const i32 chunk = threadIdx.x % 2 * 2 + i, j = column + 8 * chunk;
    const bool filled = exists && j < d;
    copy_later(tile + swizzled(row, chunk), start + (filled ? j : 0), filled ? 16 : 0);
  }
}
} // namespace screening

KERNEL(256) sae_screen(const __grid_constant__ ScreenParams p) {
  using namespace screening;
  DYNAMIC_SHARED(stages);
  __shared__ f32 norm_x[SCREEN_TOKENS], lost_x[SCREEN_TOKENS], floors[SCREEN_TOKENS];
  __shared__ f32 facts[5][SCREEN_LATENTS];

  // Which tile: bands of tokens, in each of which tokens go fastest.
  const i32 latent_tiles = (p.count + SCREEN_LATENTS - 1) / SCREEN_LATENTS, token_tiles = (p.rows + SCREEN_TOKENS - 1) / SCREEN_TOKENS;
  const i32 band = static_cast<i32>(blockIdx.x) / (BAND * latent_tiles), inside = static_cast<i32>(blockIdx.x) - band * BAND * latent_tiles;
  const i32 height = least(BAND, token_tiles - band * BAND);
  const i32 first_token = (band * BAND + inside % height) * SCREEN_TOKENS;
  const i32 first_latent = p.first + inside / height * SCREEN_LATENTS, end_latent = p.first + p.count;

  const i32 me = threadIdx.x, lane = me % 32, warp = me / 32;
  if (me < SCREEN_TOKENS) {
    const i32 t = first_token + me;
    const bool exists = t < p.rows;
    norm_x[me] = exists ? p.tokens[t].x : 0;
    lost_x[me] = exists ? p.tokens[t].dx : 0;
    floors[me] = exists ? p.tokens[t].floor : infinity();
  } else {
    const i32 c = me - SCREEN_TOKENS, i = first_latent + c;
    const bool exists = i < end_latent;
    const Bound bound = p.bounds[exists ? i : first_latent];
    facts[0][c] = bound.factor;
    facts[1][c] = bound.bias;
    facts[2][c] = bound.lost;
    facts[3][c] = bound.norm;
    // No bound of a latent that is none reaches any floor. Where latents compete, there are no thresholds.
    facts[4][c] = exists ? bound.reach - bound.threshold : -infinity();
  }
  __syncthreads();
  bool open = false;
  for (i32 t = lane; t < SCREEN_TOKENS; t += 32) open |= floors[t] < infinity();
  if (!__any_sync(ALL_LANES, open)) return; // every warp finds the same

  // Eight warps: two by four, each with 64 tokens and 32 latents.
  const i32 warp_token = warp / 4 * 64, warp_latent = warp % 4 * 32;
  f32 sums[4][4][4] = {};
  const i32 steps = (p.d + DEPTH - 1) / DEPTH;
  const auto start_stage = [&](i32 step) {
    if (step < steps) {
      unsigned char *const stage = stages + step % STAGES * 2 * TILE;
      copy_tile(stage, p.x, p.x_stride, first_token, p.rows, step * DEPTH, p.d);
      copy_tile(stage + TILE, p.w, p.w_stride, first_latent, end_latent, step * DEPTH, p.d);
    }
    commit_copies();
  };
  for (i32 step = 0; step < STAGES - 1; ++step) start_stage(step);
  for (i32 step = 0; step < steps; ++step) {
    await_copies<STAGES - 2>();
    __syncthreads(); // all copies of this stage are there, and nobody reads the one that is filled next
    start_stage(step + STAGES - 1);
    const unsigned char *const a_tile = stages + step % STAGES * 2 * TILE, *const b_tile = a_tile + TILE;
#pragma unroll
    for (i32 half = 0; half < DEPTH / 16; ++half) {
      u32 a[4][4], b[2][4];
#pragma unroll
      for (i32 m = 0; m < 4; ++m) {
        // The four matrices: rows 0 to 7 and 8 to 15 of the left eight columns, then of the right.
        load_matrix_x4(a[m], a_tile + swizzled(warp_token + m * 16 + lane % 16, half * 2 + lane / 16));
      }
#pragma unroll
      for (i32 n = 0; n < 2; ++n) {
        // Eight latents' left and right columns, then those of the next eight.
        load_matrix_x4(b[n], b_tile + swizzled(warp_latent + n * 16 + lane % 8 + lane / 16 * 8, half * 2 + lane / 8 % 2));
      }
#pragma unroll
      for (i32 m = 0; m < 4; ++m) {
#pragma unroll
        for (i32 n = 0; n < 4; ++n) multiply(sums[m][n], a[m], {b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]});
      }
    }
  }
  await_copies<0>();

  // A thread has, of 8 tokens, 8 latents each; four neighbouring threads share a token, and ask for places in its list at once.
#pragma unroll
  for (i32 row = 0; row < 8; ++row) {
    const i32 r = warp_token + row / 2 * 16 + row % 2 * 8 + lane / 4, t = first_token + r;
    const f32 x = norm_x[r], dx = lost_x[r], floor = floors[r];
    f32 upper[8], lower[8];
    u32 passes = 0;
#pragma unroll
    for (i32 column = 0; column < 8; ++column) {
      const i32 c = warp_latent + column / 2 * 8 + lane % 4 * 2 + column % 2;
      const f32 product = sums[row / 2][column / 2][row % 2 * 2 + column % 2];
      f32 middle = __fmaf_rn(product, facts[0][c], facts[1][c]);
      if (p.magnitude) middle = magnitude(middle);
      const f32 within = __fmaf_rn(facts[2][c], x, facts[3][c] * dx);
      upper[column] = middle + (within + facts[4][c]);
      lower[column] = middle - (within + facts[4][c]);
      if (floor < infinity() && !(upper[column] < floor)) passes |= 1u << column;
    }
    u32 before = static_cast<u32>(__popc(passes)), all = before;
#pragma unroll
    for (i32 by = 1; by < 4; by *= 2) {
      const u32 left = __shfl_up_sync(ALL_LANES, all, by, 4);
      if (lane % 4 >= by) all += left;
    }
    before = all - before;
    all = __shfl_sync(ALL_LANES, all, 3, 4);
    u32 base = 0;
    if (lane % 4 == 0 && all > 0) base = atomicAdd(&p.tokens[t].waiting, all);
    base = __shfl_sync(ALL_LANES, base, 0, 4) + before;
#pragma unroll
    for (i32 column = 0; column < 8; ++column) {
      if (!(passes >> column & 1)) continue;
      if (base < p.capacity) {
        const i32 c = warp_latent + column / 2 * 8 + lane % 4 * 2 + column % 2;
        const i64 at = t * p.capacity + base;
        p.waiting[at] = static_cast<u64>(__float_as_uint(upper[column])) << 32 | static_cast<u32>(first_latent + c);
        p.lower[at] = lower[column];
      }
      ++base;
    }
  }
}
