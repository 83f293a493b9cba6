// Kernels with known faults, and without, to see that the stand-in tells them apart.
#include "common.cuh"

struct OutParams {
  i32 *out;
};

// A sum over neighbours in shared memory, which is right only behind a barrier.
KERNEL(64) sae_barrier(const OutParams p) {
  __shared__ i32 values[64];
  values[threadIdx.x] = threadIdx.x;
  __syncthreads();
  p.out[threadIdx.x] = values[63 - threadIdx.x];
}
KERNEL(64) sae_no_barrier(const OutParams p) {
  __shared__ i32 values[64];
  values[threadIdx.x] = threadIdx.x;
  p.out[threadIdx.x] = values[63 - threadIdx.x];
}
// Whoever is last leaves his number: of the block, of the grid.
KERNEL(64) sae_race(const OutParams p) { p.out[0] = threadIdx.x; }
KERNEL(32) sae_block_race(const OutParams p) { p.out[0] = blockIdx.x; }
// An addition that is not one step.
KERNEL(64) sae_lost_update(const OutParams p) {
  const i32 old = p.out[0];
  __syncwarp();
  p.out[0] = old + 1;
}
KERNEL(64) sae_atomic(const OutParams p) { atomicAdd(p.out, 1); }
// Lanes talk.
KERNEL(64) sae_lanes(const OutParams p) {
  const i32 me = threadIdx.x;
  i32 *const out = p.out + me * 6;
  out[0] = __shfl_sync(ALL_LANES, me, 5);
  out[1] = __shfl_xor_sync(ALL_LANES, me, 3);
  out[2] = __shfl_down_sync(ALL_LANES, me, 2, 4);
  out[3] = __shfl_up_sync(ALL_LANES, me, 1, 8);
  out[4] = static_cast<i32>(__ballot_sync(ALL_LANES, me % 3 == 0));
  out[5] = block_sum(me, p.out + 64 * 6);
}
// Half a block waits for the other, which has gone.
KERNEL(64) sae_deadlock(const OutParams p) {
  if (threadIdx.x < 32) return;
  __syncthreads();
  p.out[0] = 1;
}
// Lanes of one warp that meet in different places.
KERNEL(32) sae_divergent(const OutParams p) {
  p.out[threadIdx.x] = threadIdx.x < 16 ? __shfl_sync(ALL_LANES, 1, 0) : static_cast<i32>(__ballot_sync(ALL_LANES, 1));
}
// What shared memory holds at first.
KERNEL(32) sae_garbage(const OutParams p) {
  __shared__ i32 values[32];
  DYNAMIC_SHARED(bytes);
  p.out[threadIdx.x] = values[threadIdx.x] | static_cast<i32>(bytes[threadIdx.x]);
  __syncthreads();
  values[threadIdx.x] = 0;
}

#undef KERNELS
#define KERNELS(X)                                                                                                             \
  X(barrier, OutParams)                                                                                                        \
  X(no_barrier, OutParams)                                                                                                     \
  X(race, OutParams)                                                                                                           \
  X(block_race, OutParams)                                                                                                     \
  X(lost_update, OutParams)                                                                                                    \
  X(atomic, OutParams)                                                                                                         \
  X(lanes, OutParams)                                                                                                          \
  X(deadlock, OutParams)                                                                                                       \
  X(divergent, OutParams)                                                                                                      \
  X(garbage, OutParams)
