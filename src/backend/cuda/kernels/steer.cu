// Steering: the effect of edits on a token, as a change added to its activation vector.
#include "canonical.cuh"
#include "statistics.cuh"

namespace {
// A row's list of edits: none if it is to be left alone.
struct List {
  const Edit *edits;
  i32 length, slot;
};

__device__ List list_of(const Edits &e, i64 t) {
  const i32 slot = e.row_slot ? e.row_slot[t * e.row_slot_stride] : 0;
  if (slot < 0 || slot >= e.slots) return {nullptr, 0, slot};
  return {e.edits + static_cast<i64>(slot) * e.per_slot, e.lengths[slot], slot};
}

__device__ bool needs_activation(const Edit &edit) { return edit.op != ADD || edit.only_active; }

__device__ bool is_listed(const Features &known, i64 t, i32 feature) {
  for (i32 e = 0; e < known.width; ++e) {
    if (known.indices[t * known.indices_stride + e] == feature) return true;
  }
  return false;
}

// Whether the features given of a row tell what its edits need: they do unless they were cut short.
__device__ bool suffices(const Features &known, i64 t, const List &list) {
  if (!known.values) return false;
  if (known.counts[t * known.counts_stride] <= known.width) return true;
  for (i32 e = 0; e < list.length; ++e) {
    if (needs_activation(list.edits[e]) && !is_listed(known, t, list.edits[e].feature)) return false;
  }
  return true;
}

// The change of a latent whose activation is z.
__device__ f32 change(const Edit &edit, f32 z) {
  if (edit.only_active && z == 0) return 0;
  f32 delta = -z;
  if (edit.op == ADD) delta = edit.strength;
  if (edit.op == SET) delta = edit.strength - z;
  if (edit.op == SCALE) delta = (edit.strength - 1) * z;
  if (edit.limit > 0) {
    if (delta < -edit.limit) delta = -edit.limit;
    if (delta > edit.limit) delta = edit.limit;
  }
  return delta;
}

// A latent's activation among a row's features, sought by a warp; the first of equals.
template <typename Index, typename Value> __device__ f32 sought(i32 feature, i32 slots, const Index &index, const Value &value) {
  for (i32 start = 0; start < slots; start += 32) {
    const i32 slot = start + static_cast<i32>(threadIdx.x % 32);
    const u32 hits = __ballot_sync(ALL_LANES, slot < slots && index(slot) == feature);
    if (hits == 0) continue;
    i32 first = 0;
    while (!(hits >> first & 1)) ++first;
    return value(start + first);
  }
  return 0;
}
} // namespace

KERNEL(128) sae_steer_plan(const __grid_constant__ SteerPlanParams p) {
  const i64 t = static_cast<i64>(blockIdx.x) * 128 + threadIdx.x;
  if (t >= p.rows) return;
  const List list = list_of(p.edits, t);
  bool needs = false;
  for (i32 e = 0; e < list.length; ++e) needs |= needs_activation(list.edits[e]);
  p.wanted[t] = needs && !suffices(p.known, t, list);
}

KERNEL(256) sae_steer(const __grid_constant__ SteerParams p) {
  __shared__ f32 sums[33];
  __shared__ i32 is_known;
  const i64 t = blockIdx.x;
  const i32 me = threadIdx.x;
  const Latents &l = p.latents;
  const Features &known = p.known;
  const List list = list_of(p.edits, t);
  if (me == 0) {
    is_known = list.length > 0 && suffices(known, t, list);
    if (!list.edits && list.slot != -1) atomicAdd(p.ignored, static_cast<u64>(1));
  }
  __syncthreads();
  const bool finite = is_known ? known.counts[t * known.counts_stride] >= 0 : p.tokens[t].state != NOT_FINITE;
  const i32 length = finite ? list.length : 0;
  f32 *const deltas = p.deltas + t * p.edits.per_slot;

  // Each edit's change: by a warp that seeks the activation in a list, or by a quad that computes it.
  const bool sought_after = is_known || l.k > 0;
  const i32 team = sought_after ? 32 : 4, teams = 256 / team;
  for (i32 start = 0; start < length; start += teams) {
    const i32 e = start + me / team;
    const bool mine = e < length;
    const Edit edit = list.edits[mine ? e : start];
    const bool needs = mine && needs_activation(edit);
    f32 z = 0;
    if (is_known && needs) {
      z = sought(
          edit.feature, known.width, [&](i32 slot) { return known.indices[t * known.indices_stride + slot]; },
          [&](i32 slot) { return load(known.values, t * known.values_stride + slot, known.dtype); });
    } else if (sought_after && needs) {
      const u64 *const kept = p.kept + t * p.kept_stride;
      z = sought(
          edit.feature, p.limit, [&](i32 slot) { return kept[slot] != 0 ? key_index(kept[slot]) : -1; },
          [&](i32 slot) { return key_value(kept[slot]); });
    } else if (!sought_after) {
      z = score_alone(l, needs ? local(edit.feature, l.first, l.n) : -1, p.x + t * p.padded, ACTIVATIONS);
    }
    if (mine && me % team == 0) deltas[e] = change(edit, z);
  }
  __syncthreads();

  // Rows keep their bits if nothing changes, or anything is not finite.
  f32 broken = 0, some = 0;
  for (i32 e = me; e < length; e += 256) {
    broken += deltas[e] * 0;
    if (deltas[e] != 0) some = 1;
  }
  for (i32 j = me; j < p.d && length > 0; j += 256) broken += read(p.y, t, j) * 0;
  const bool changes = block_sum(some, sums) > 0;
  const bool all_finite = block_sum(broken, sums) == 0;
  if (!changes || !all_finite) {
    if (p.y.data == p.out.data) return;
    for (i32 j = me; j < p.d; j += 256) {
      if (p.out.dtype == F32) {
        static_cast<u32 *>(p.out.data)[place(p.out, t, j)] = static_cast<const u32 *>(p.y.data)[place(p.y, t, j)];
      } else {
        static_cast<u16 *>(p.out.data)[place(p.out, t, j)] = static_cast<const u16 *>(p.y.data)[place(p.y, t, j)];
      }
    }
    return;
  }
  const Statistics statistics =
      is_known ? statistics_of(known, t, p.normalization, p.center) : statistics_of(p.tokens[t], p.normalization, p.center);
  const f32 scale = output_scale(statistics, p.normalization, p.denormalize);
  for (i32 column = 4 * me; column < p.d; column += 4 * 256) {
    Four sum = zero_four();
    with_reader(p.w_dec, p.d, [&](auto reader) {
      [[maybe_unused]] constexpr i32 at_once = decltype(reader)::AT_ONCE;
#pragma unroll at_once
      for (i32 e = 0; e < length; ++e) {
        const f32 delta = deltas[e];
        const i32 i = local(list.edits[e].feature, l.first, l.n);
        if (delta == 0 || i < 0) continue;
        const f32 z = p.norms ? delta / p.norms[i] : delta;
        take(sum, {{z, z, z, z}}, reader.at(p.w_dec, i * p.w_dec.stride + column, p.d - column));
      }
    });
    for (i32 c = 0; c < 4 && column + c < p.d; ++c) {
      write(p.out, t, column + c, __fmaf_rn(scale, sum.v[c], read(p.y, t, column + c)));
    }
  }
}
