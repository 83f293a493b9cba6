#include "engine_threads.hpp"

namespace {

void parallel_for(void *context, size_t n, sae_task task, void *arg) {
    const int threads = int(reinterpret_cast<intptr_t>(context));
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (size_t i = 0; i < n; i++) task(arg, i);
}

}  // namespace

sae::Pool engine_threads(int32_t threads) { return sae::Pool::from_host(threads, parallel_for, reinterpret_cast<void *>(intptr_t(threads))); }
