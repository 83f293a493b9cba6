// Products of a tile of tokens with a tile of latents on tensor cores: the pipeline that bounds and fast scores are made from.
#pragma once

#include "tensor_cores.cuh"

namespace product {
constexpr i32 DEPTH = 32;              // columns of a stage
constexpr i32 STAGES = 4;
constexpr i32 ROW = DEPTH * 2;         // bytes
constexpr i32 TILE = SCREEN_TOKENS * ROW;
constexpr i32 BAND = 16;               // tiles of tokens that go through the latents together, while those are in cache
static_assert(STAGES * 2 * TILE == SCREEN_SHARED && SCREEN_TOKENS == SCREEN_LATENTS, "shared memory is what the launch reserves");

// What is multiplied: bf16 rows, whose padding to a multiple of 8 is zeros.
struct Operands {
  const u16 *x, *w;
  i64 x_stride, w_stride;
  i32 rows, d;
  i32 first, count; // the latents
};

// Which tile a block has: bands of tokens, in each of which tokens go fastest.
struct Place {
  i32 token, latent, end_latent;
};
__device__ __forceinline__ Place place_of(const Operands &o) {
  const i32 latent_tiles = (o.count + SCREEN_LATENTS - 1) / SCREEN_LATENTS, token_tiles = (o.rows + SCREEN_TOKENS - 1) / SCREEN_TOKENS;
  const i32 band = static_cast<i32>(blockIdx.x) / (BAND * latent_tiles), inside = static_cast<i32>(blockIdx.x) - band * BAND * latent_tiles;
  const i32 height = least(BAND, token_tiles - band * BAND);
  return {(band * BAND + inside % height) * SCREEN_TOKENS, o.first + inside / height * SCREEN_LATENTS, o.first + o.count};
}

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

// What a thread has of its tile: of 8 tokens, 8 latents each. Eight warps: two by four, each with 64 tokens and 32 latents; four
// neighbouring threads share a token.
struct Sums {
  f32 of[4][4][4];

  __device__ __forceinline__ static i32 token(i32 row) { return static_cast<i32>(threadIdx.x / 128) * 64 + row / 2 * 16 + row % 2 * 8 + static_cast<i32>(threadIdx.x) % 32 / 4; }
  __device__ __forceinline__ static i32 latent(i32 column) { return static_cast<i32>(threadIdx.x) / 32 % 4 * 32 + column / 2 * 8 + static_cast<i32>(threadIdx.x) % 4 * 2 + column % 2; }
  __device__ __forceinline__ f32 at(i32 row, i32 column) const { return of[row / 2][column / 2][row % 2 * 2 + column % 2]; }
};

__device__ __forceinline__ void multiply_tile(const Operands &o, const Place &place, unsigned char *stages, Sums &sums) {
  const i32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, warp_token = warp / 4 * 64, warp_latent = warp % 4 * 32;
  const i32 steps = (o.d + DEPTH - 1) / DEPTH;
  const auto start_stage = [&](i32 step) {
    if (step < steps) {
      unsigned char *const stage = stages + step % STAGES * 2 * TILE;
      copy_tile(stage, o.x, o.x_stride, place.token, o.rows, step * DEPTH, o.d);
      copy_tile(stage + TILE, o.w, o.w_stride, place.latent, place.end_latent, step * DEPTH, o.d);
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
        for (i32 n = 0; n < 4; ++n) multiply(sums.of[m][n], a[m], {b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]});
      }
    }
  }
  await_copies<0>();
}

// Where in a token's list a thread may put what passes: the four threads that share the token ask at once.
__device__ __forceinline__ u32 places_for(u32 passes, u32 *waiting) {
  const i32 lane = threadIdx.x % 32;
  u32 before = static_cast<u32>(__popc(passes)), all = before;
#pragma unroll
  for (i32 by = 1; by < 4; by *= 2) {
    const u32 left = __shfl_up_sync(ALL_LANES, all, by, 4);
    if (lane % 4 >= by) all += left;
  }
  before = all - before;
  all = __shfl_sync(ALL_LANES, all, 3, 4);
  u32 base = 0;
  if (lane % 4 == 0 && all > 0) base = atomicAdd(waiting, all);
  return __shfl_sync(ALL_LANES, base, 0, 4) + before;
}

// Whether any token of a tile still asks for anything; every warp finds the same.
__device__ __forceinline__ bool any_open(const f32 (&floors)[SCREEN_TOKENS]) {
  bool open = false;
  for (i32 t = threadIdx.x % 32; t < SCREEN_TOKENS; t += 32) open |= floors[t] < infinity();
  return __any_sync(ALL_LANES, open);
}
} // namespace product
