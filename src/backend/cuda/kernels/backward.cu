// Gradients without anything of size [T, n], or [T k, d]: the tokens where a latent is active are brought together, and its rows are
// summed over them in the tokens' order. No sum depends on who comes first.
#include "canonical.cuh"

namespace {
// A slot's latent; -1: the slot is not in use.
__device__ i32 latent_of(const Features &codes, const i32 *ids, i64 t, i32 slot) {
  if (codes.counts[t * codes.counts_stride] < 0) return -1;
  const i32 index = codes.indices[t * codes.indices_stride + slot];
  return index >= 0 && ids ? ids[index] : index;
}

__device__ f32 value_of(const Features &codes, i64 t, i32 slot) {
  return static_cast<const f32 *>(codes.values)[t * codes.values_stride + slot];
}

// Puts numbers into ascending order, wherever they lie, and however many.
__device__ void ascend(u32 *numbers, u32 n) {
  const auto order = [&](u32 low, u32 high) {
    if (high < n && numbers[low] > numbers[high]) {
      const u32 v = numbers[low];
      numbers[low] = numbers[high];
      numbers[high] = v;
    }
  };
  for (u32 size = 2; size / 2 < n; size *= 2) {
    // Halves of a block, which ascend, are compared from its ends inwards; then all go up.
    for (u32 i = threadIdx.x; i < n; i += blockDim.x) {
      if (i % size < size / 2) order(i, i / size * size + size - 1 - i % size);
    }
    __syncthreads();
    for (u32 by = size / 4; by > 0; by /= 2) {
      for (u32 i = threadIdx.x; i < n; i += blockDim.x) {
        if (i % (2 * by) < by) order(i, i + by);
      }
      __syncthreads();
    }
  }
}
} // namespace

KERNEL(256) sae_explain(const __grid_constant__ ExplainParams p) {
  const i64 t = blockIdx.x;
  const i32 me = threadIdx.x;
  const Features &codes = p.codes;
  const bool used = codes.counts[t * codes.counts_stride] >= 0;
  f32 *const leftover = p.leftover + t * p.padded;
  const Matrix w_dec = {p.w_dec, p.d, F32, 0};
  for (i32 column = 4 * me; column < p.padded; column += 4 * 256) {
    Four rest = zero_four();
#pragma unroll
    for (i32 c = 0; c < 4; ++c) {
      if (used && column + c < p.d) rest.v[c] = p.targets[t * p.padded + column + c];
    }
    with_reader(w_dec, p.d, [&](auto reader) {
      [[maybe_unused]] constexpr i32 at_once = decltype(reader)::AT_ONCE;
#pragma unroll at_once
      for (i32 slot = 0; slot < codes.width; ++slot) {
        const i32 i = latent_of(codes, p.ids, t, slot);
        if (i < 0) continue;
        const f32 z = -value_of(codes, t, slot);
        take(rest, {{z, z, z, z}}, reader.at(w_dec, static_cast<i64>(i) * p.d + column, p.d - column));
      }
    });
#pragma unroll
    for (i32 c = 0; c < 4; ++c) leftover[column + c] = rest.v[c];
  }
  __syncthreads();
  const f32 error = square(leftover, p.d);
  if (me == 0) p.errors[t] = used ? static_cast<double>(error) : 0;
  for (i32 start = 0; start < codes.width; start += 64) {
    const i32 slot = start + me / 4;
    const i32 i = slot < codes.width ? latent_of(codes, p.ids, t, slot) : -1;
    f32 dot[1];
    dots<1>(w_dec, i, [&](i32) { return leftover; }, p.d, 1, dot);
    if (slot < codes.width && me % 4 == 0) {
      p.pulls[t * codes.width + slot] = i < 0 ? 0 : dot[0] * -p.pull;
      if (i >= 0) atomicAdd(p.starts + i, 1u);
    }
  }
}

KERNEL(1024) sae_lists(const __grid_constant__ ListsParams p) {
  __shared__ u32 warps[32], carried;
  const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (threadIdx.x == 0) carried = 0;
  for (i32 start = 0; start <= p.n; start += 1024) {
    const i32 i = start + static_cast<i32>(threadIdx.x);
    const u32 own = i < p.n ? p.starts[i] : 0;
    u32 sum = own;
    for (u32 by = 1; by < 32; by *= 2) {
      const u32 left = __shfl_up_sync(ALL_LANES, sum, by);
      if (lane >= by) sum += left;
    }
    if (lane == 31) warps[warp] = sum;
    __syncthreads();
    u32 before = carried + sum - own;
    for (u32 w = 0; w < warp; ++w) before += warps[w];
    if (i <= p.n) p.starts[i] = before;
    if (i < p.n) p.ends[i] = before;
    __syncthreads();
    if (threadIdx.x == 1023) carried = before + own;
    __syncthreads();
  }
}

KERNEL(256) sae_fill(const __grid_constant__ FillParams p) {
  const i64 slot = static_cast<i64>(blockIdx.x) * 256 + threadIdx.x;
  if (slot >= static_cast<i64>(p.rows) * p.codes.width) return;
  const i32 i = latent_of(p.codes, p.ids, slot / p.codes.width, static_cast<i32>(slot % p.codes.width));
  if (i >= 0) p.slots[atomicAdd(p.ends + i, 1u)] = static_cast<u32>(slot);
}

KERNEL(128) sae_backward(const __grid_constant__ BackwardParams p) {
  const i64 i = blockIdx.x;
  const u32 first = p.starts[i], count = p.starts[i + 1] - first;
  if (count == 0) return;
  u32 *const slots = p.slots + first;
  __syncthreads();
  ascend(slots, count);
  __syncthreads();
  const u32 width = static_cast<u32>(p.codes.width);
  const bool touched = p.touched[i] != 0;
  __syncthreads();
  for (i32 column = 4 * static_cast<i32>(threadIdx.x); column < p.d; column += 4 * 128) {
    Four encoder = zero_four(), decoder = zero_four();
#pragma unroll
    for (i32 c = 0; c < 4; ++c) {
      if (touched && column + c < p.d) {
        encoder.v[c] = p.w_enc[i * p.d + column + c];
        decoder.v[c] = p.w_dec[i * p.d + column + c];
      }
    }
#pragma unroll 4
    for (u32 e = 0; e < count; ++e) {
      const u32 t = slots[e] / width;
      const f32 pull = p.pulls[slots[e]], z = -p.pull * value_of(p.codes, t, static_cast<i32>(slots[e] % width));
      take(encoder, {{pull, pull, pull, pull}}, load_four(p.inputs + t * p.padded + column));
      take(decoder, {{z, z, z, z}}, load_four(p.leftover + t * p.padded + column));
    }
#pragma unroll
    for (i32 c = 0; c < 4; ++c) {
      if (column + c < p.d) {
        p.w_enc[i * p.d + column + c] = encoder.v[c];
        p.w_dec[i * p.d + column + c] = decoder.v[c];
      }
    }
  }
  if (threadIdx.x != 0) return;
  f32 sum = p.b_enc[i];
  for (u32 e = 0; e < count; ++e) sum += p.pulls[slots[e]];
  p.b_enc[i] = sum;
  p.touched[i] = 1;
}
