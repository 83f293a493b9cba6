#include "shim.h"

#include "_cgo_export.h"

sae_status go_log_set(int32_t level, sae_error **error) {
  return sae_log_set((sae_log_callback)saeGoLog, level, NULL, error);
}

static void parallel_for(void *context, size_t n, sae_task task, void *arg) {
  saeGoParallelFor((uintptr_t)context, n, task, arg);
}

sae_status go_pool_from_host(int32_t threads, uintptr_t context, sae_pool **out, sae_error **error) {
  return sae_pool_from_host(threads, parallel_for, (void *)context, out, error);
}

void go_run_task(sae_task task, void *arg, size_t i) { task(arg, i); }

static void release(void *context) { saeGoRelease((uintptr_t)context); }

void go_set_release(sae_load_options *options, uintptr_t context) {
  options->release = release;
  options->release_context = (void *)context;
}
