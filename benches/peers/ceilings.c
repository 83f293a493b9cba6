// What this machine can do at most: bytes read and updated a second, and products of each kind. Every kind of product is
// tried with the widest instruction that the processor says it has; `product_name` is NULL where it has none.
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <immintrin.h>
#include <sys/syscall.h>
#define WIDEST __attribute__((target_clones("avx512f", "avx2", "default")))
#elif defined(__aarch64__)
#include <arm_neon.h>
#include <asm/hwcap.h>
#include <sys/auxv.h>
#define WIDEST
#else
#define WIDEST
#endif

#define EXPORT __attribute__((visibility("default")))
#define MOST_THREADS 256

typedef struct {
  void (*body)(void *);
  void *memory;
  size_t bytes;
  long rounds;
} job;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void *run(void *j) {
  ((job *)j)->body(j);
  return NULL;
}

// Seconds until every thread is through its job; the caller takes the first.
static double run_all(job *jobs, int threads) {
  pthread_t ids[MOST_THREADS];
  const double start = now();
  for (int i = 1; i < threads; i++)
    if (pthread_create(&ids[i], NULL, run, &jobs[i])) abort();
  run(&jobs[0]);
  for (int i = 1; i < threads; i++) pthread_join(ids[i], NULL);
  return now() - start;
}

// ---- Memory: each thread its own part of it, as four streams ----

static volatile uint64_t sink;

WIDEST static uint64_t sum4(const uint64_t *restrict a, const uint64_t *restrict b, const uint64_t *restrict c, const uint64_t *restrict d, size_t n) {
  uint64_t sums[4] = {0};
  for (size_t i = 0; i < n; i++) sums[0] += a[i], sums[1] += b[i], sums[2] += c[i], sums[3] += d[i];
  return sums[0] + sums[1] + sums[2] + sums[3];
}

static void read_memory(void *p) {
  const job *j = p;
  const size_t n = j->bytes / 32;
  const uint64_t *m = j->memory;
  sink = sum4(m, m + n, m + 2 * n, m + 3 * n, n);
}

WIDEST static void scale4(float *restrict a, float *restrict b, float *restrict c, float *restrict d, size_t n) {
  for (size_t i = 0; i < n; i++) a[i] *= 0.999f, b[i] *= 0.999f, c[i] *= 0.999f, d[i] *= 0.999f;
}

static void update_memory(void *p) {
  const job *j = p;
  const size_t n = j->bytes / 16;
  float *m = j->memory;
  scale4(m, m + n, m + 2 * n, m + 3 * n, n);
}

static double split(void (*body)(void *), void *memory, size_t bytes, int threads) {
  job jobs[MOST_THREADS];
  const size_t part = bytes / (size_t)threads / 64 * 64;
  for (int i = 0; i < threads; i++) jobs[i] = (job){body, (char *)memory + (size_t)i * part, part, 1};
  return run_all(jobs, threads);
}

// Seconds to read `bytes` once.
EXPORT double read_once(void *memory, size_t bytes, int threads) { return split(read_memory, memory, bytes, threads); }
// Seconds to read `bytes`, floats, and write them back changed.
EXPORT double update_once(void *memory, size_t bytes, int threads) { return split(update_memory, memory, bytes, threads); }

// ---- Products: independent chains of one instruction, in registers ----

typedef struct {
  const char *name;
  double operations;  // of a round: a multiplication and an addition are two
  void (*body)(void *);
} product;

// Twelve chains hide the latency of every such instruction there is. What goes in is not known to the compiler.
static volatile float some = 1e-9f;
#define CHAINS 12
#define EACH(f) f(0) f(1) f(2) f(3) f(4) f(5) f(6) f(7) f(8) f(9) f(10) f(11)
#define START(i) c##i = a,
#define CHAIN_BODY(function, target_list, vector, set, register_kind, step)    \
  __attribute__((target(target_list))) static void function(void *p) {         \
    const vector a = set, b = set;                                             \
    vector EACH(START) last = a;                                               \
    for (long r = ((job *)p)->rounds; r > 0; r--) { EACH(step) }               \
    __asm__ volatile("" : register_kind(last));                                \
  }
#define CHAIN(i, register_kind, value) c##i = value; __asm__ volatile("" : register_kind(c##i));

#if defined(__x86_64__)
#define FMA_256(i) CHAIN(i, "+x", _mm256_fmadd_ps(a, b, c##i))
#define FMA_512(i) CHAIN(i, "+v", _mm512_fmadd_ps(a, b, c##i))
#define INT8_256(i) CHAIN(i, "+x", _mm256_add_epi32(c##i, _mm256_madd_epi16(_mm256_maddubs_epi16(a, c##i), b)))
#define INT8_512(i) CHAIN(i, "+v", _mm512_dpbusd_epi32(c##i, a, b))
#define BF16_512(i) CHAIN(i, "+v", _mm512_dpbf16_ps(c##i, (__m512bh)a, (__m512bh)b))
CHAIN_BODY(fma_256, "avx2,fma", __m256, _mm256_set1_ps(some), "+x", FMA_256)
CHAIN_BODY(fma_512, "avx512f", __m512, _mm512_set1_ps(some), "+v", FMA_512)
CHAIN_BODY(int8_256, "avx2", __m256i, _mm256_set1_epi8((char)(some + 3)), "+x", INT8_256)
CHAIN_BODY(int8_512, "avx512f,avx512bw,avx512vnni", __m512i, _mm512_set1_epi8((char)(some + 3)), "+v", INT8_512)
CHAIN_BODY(bf16_512, "avx512f,avx512bf16", __m512, _mm512_set1_ps(some), "+v", BF16_512)

// 16 × 16 results of 64 bytes of each operand.
#define TILE_BODY(function, instruction)                                                       \
  __attribute__((target("amx-tile,amx-int8,amx-bf16"))) static void function(void *p) {        \
    struct { uint8_t palette, start, zero[14]; uint16_t columns[16]; uint8_t rows[16]; } config = {.palette = 1}; \
    for (int i = 0; i < 8; i++) config.columns[i] = 64, config.rows[i] = 16;                   \
    _tile_loadconfig(&config);                                                                 \
    _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);                                \
    _tile_zero(4); _tile_zero(5); _tile_zero(6); _tile_zero(7);                                \
    for (long r = ((job *)p)->rounds; r > 0; r--) {                                            \
      instruction(0, 4, 6); instruction(1, 4, 7); instruction(2, 5, 6); instruction(3, 5, 7);  \
    }                                                                                          \
    _tile_release();                                                                           \
  }
TILE_BODY(int8_tiles, _tile_dpbusd)
TILE_BODY(bf16_tiles, _tile_dpbf16ps)

static int tiles_permitted(void) {
  enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
  return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

static product best(int kind) {
  unsigned a, b = 0, c = 0, d = 0;
  __asm__("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "0"(7), "2"(0));  // AMX, which older compilers do not know by name
  const int amx_bf16 = d >> 22 & 1, amx_int8 = d >> 25 & 1, avx512 = __builtin_cpu_supports("avx512f");
  const double lanes = avx512 ? 16 : 8;
  switch (kind) {
    case 0:
      if (avx512) return (product){"AVX-512 vfmadd", CHAINS * 2 * lanes, fma_512};
      if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return (product){"AVX2 vfmadd", CHAINS * 2 * lanes, fma_256};
      break;
    case 1:
      if (amx_int8 && tiles_permitted()) return (product){"AMX tdpbusd", 4 * 2 * 16 * 16 * 64, int8_tiles};
      if (__builtin_cpu_supports("avx512vnni")) return (product){"AVX-512 vpdpbusd", CHAINS * 8 * lanes, int8_512};
      if (__builtin_cpu_supports("avx2")) return (product){"AVX2 vpmaddubsw + vpmaddwd", CHAINS * 8 * lanes, int8_256};
      break;
    case 2:
      if (amx_bf16 && tiles_permitted()) return (product){"AMX tdpbf16ps", 4 * 2 * 16 * 16 * 32, bf16_tiles};
      if (__builtin_cpu_supports("avx512bf16")) return (product){"AVX-512 vdpbf16ps", CHAINS * 4 * lanes, bf16_512};
  }
  return (product){0};
}
#elif defined(__aarch64__)
#define FMA_NEON(i) CHAIN(i, "+w", vfmaq_f32(c##i, a, b))
#define INT8_NEON(i) CHAIN(i, "+w", vdotq_s32(c##i, vreinterpretq_s8_s32(a), vreinterpretq_s8_s32(b)))
#define BF16_NEON(i) CHAIN(i, "+w", vbfdotq_f32(c##i, vreinterpretq_bf16_f32(a), vreinterpretq_bf16_f32(b)))
CHAIN_BODY(fma_neon, "+simd", float32x4_t, vdupq_n_f32(some), "+w", FMA_NEON)
CHAIN_BODY(int8_neon, "arch=armv8.2-a+dotprod", int32x4_t, vdupq_n_s32((int)some + 3), "+w", INT8_NEON)
CHAIN_BODY(bf16_neon, "arch=armv8.2-a+bf16", float32x4_t, vdupq_n_f32(some), "+w", BF16_NEON)

static product best(int kind) {
  if (kind == 0) return (product){"NEON fmla", CHAINS * 8, fma_neon};
  if (kind == 1 && getauxval(AT_HWCAP) & HWCAP_ASIMDDP) return (product){"NEON sdot", CHAINS * 32, int8_neon};
  if (kind == 2 && getauxval(AT_HWCAP2) & HWCAP2_BF16) return (product){"NEON bfdot", CHAINS * 16, bf16_neon};
  return (product){0};
}
#else
static product best(int kind) { return (void)kind, (product){0}; }
#endif

// The instruction that products of kind 0 (f32), 1 (int8) or 2 (bf16) are measured with, NULL if there is none.
EXPORT const char *product_name(int kind) { return best(kind).name; }

// Operations a second.
EXPORT double product_rate(int kind, long rounds, int threads) {
  const product p = best(kind);
  job jobs[MOST_THREADS];
  for (int i = 0; i < threads; i++) jobs[i] = (job){p.body, NULL, 0, rounds};
  return p.operations * (double)rounds * threads / run_all(jobs, threads);
}
