// The decoder: a gather of decoder rows, summed in the order of the slots.
#include "canonical.cuh"
#include "statistics.cuh"

// A thread has four neighbouring columns.
KERNEL(128) sae_decode(const __grid_constant__ DecodeParams p) {
  constexpr i32 BATCH = 64;
  __shared__ i32 ids[BATCH], counts[2];
  __shared__ f32 factors[BATCH];
  const i64 t = blockIdx.y;
  const i32 me = threadIdx.x, lane = me % 32, column = static_cast<i32>(blockIdx.x) * DECODE_COLUMNS + 4 * me;
  const Features &f = p.features;
  const bool listed = f.values;
  const bool finite = listed ? f.counts[t * f.counts_stride] >= 0 : p.tokens[t].state != NOT_FINITE;
  const i32 slots = !finite ? 0 : listed ? f.width : p.limit;
  Four sum = zero_four();
#pragma unroll
  for (i32 c = 0; c < 4; ++c) {
    if (column + c < p.d) sum.v[c] = p.b_dec[column + c];
  }
  for (i32 start = 0; start < slots; start += BATCH) {
    __syncthreads();
    if (me < BATCH) {
      // Two warps read the batch; what is none is left out, and the order stays.
      const i32 slot = start + me;
      i32 index = -1;
      f32 z = 0;
      if (slot < slots && listed) {
        index = f.indices[t * f.indices_stride + slot];
        z = load(f.values, t * f.values_stride + slot, f.dtype);
      } else if (slot < slots) {
        const u64 key = p.kept[t * p.kept_stride + slot];
        if (key != 0) index = key_index(key);
        z = key_value(key);
      }
      const i32 i = local(index, p.first, p.n);
      if (i < 0 && index != -1 && blockIdx.x == 0) atomicAdd(p.ignored, static_cast<u64>(1));
      const u32 valid = __ballot_sync(ALL_LANES, i >= 0);
      if (i >= 0) {
        const i32 at = me / 32 * 32 + __popc(valid & ((1u << lane) - 1));
        ids[at] = i;
        factors[at] = p.norms ? z / p.norms[i] : z;
      }
      if (lane == 0) counts[me / 32] = __popc(valid);
    }
    __syncthreads();
    with_reader(p.w_dec, p.d, [&](auto reader) {
      [[maybe_unused]] constexpr i32 at_once = decltype(reader)::AT_ONCE;
#pragma unroll 1
      for (i32 half = 0; half < 2; ++half) {
        const i32 end = half * 32 + counts[half];
#pragma unroll at_once
        for (i32 e = half * 32; e < end; ++e) {
          const f32 z = factors[e];
          take(sum, {{z, z, z, z}}, reader.at(p.w_dec, ids[e] * p.w_dec.stride + column, p.d - column));
        }
      }
    });
  }
  const Statistics statistics = listed ? statistics_of(f, t, p.normalization, p.center) : statistics_of(p.tokens[t], p.normalization, p.center);
#pragma unroll
  for (i32 c = 0; c < 4; ++c) {
    if (column + c >= p.d) continue;
    f32 v = sum.v[c];
    if (p.denormalize) v = denormalized(v, statistics, p.normalization, p.center);
    if (p.skip) v += p.skip[t * p.skip_stride + column + c];
    write(p.out, t, column + c, finite ? v : not_a_number());
  }
}
