/* The same call again and again, as C makes it: seconds for `n` of them. */

#define _POSIX_C_SOURCE 199309L
#include <stdint.h>
#include <time.h>

typedef int32_t (*call_of_five)(void *, void *, void *, void *, void *, void **);

double loop(call_of_five call, int64_t n, void *a, void *b, void *c, void *d, void *e) {
  struct timespec start, end;
  void *error = 0;
  clock_gettime(CLOCK_MONOTONIC, &start);
  for (int64_t i = 0; i < n; ++i) {
    if (call(a, b, c, d, e, &error)) return -1;
  }
  clock_gettime(CLOCK_MONOTONIC, &end);
  return (double)(end.tv_sec - start.tv_sec) + (double)(end.tv_nsec - start.tv_nsec) * 1e-9;
}
