// The few instructions that C++ has no word for: products of tensor cores, and copies into shared memory that go on meanwhile.
// On the CPU the stand-in does lane by lane what PTX documents.
#pragma once

#include "common.cuh"

#ifdef __CUDACC__

__device__ __forceinline__ u32 shared_address(const void *at) {
  u32 address;
  asm("{ .reg .u64 a; cvta.to.shared.u64 a, %1; cvt.u32.u64 %0, a; }" : "=r"(address) : "l"(at));
  return address;
}

// Four 8 x 8 matrices of 16 bits; `row` is where this lane's row of 16 bytes starts.
__device__ __forceinline__ void load_matrix_x4(u32 (&out)[4], const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(row))
               : "memory");
}

// c += a b for 16 x 16 times 16 x 8.
__device__ __forceinline__ void multiply(f32 (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Copies the first `filled` of 16 bytes, and zeros behind them.
__device__ __forceinline__ void copy_later(void *to, const void *from, i32 filled) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(filled) : "memory");
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <i32 GROUPS> __device__ __forceinline__ void await_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS) : "memory");
}

#else

inline void load_matrix_x4(u32 (&out)[4], const void *row) { stand_in::load_matrix_x4(out, row); }
inline void multiply(f32 (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) { stand_in::multiply(c, a, b); }
inline void copy_later(void *to, const void *from, i32 filled) { stand_in::copy_later(to, from, 16, filled); }
inline void commit_copies() { stand_in::commit_copies(); }
template <i32 GROUPS> inline void await_copies() { stand_in::await_copies(GROUPS); }

#endif
