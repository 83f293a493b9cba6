// The engine's threads at the library's service.
#pragma once

#include <cstdint>
#include <sae.hpp>

// OpenMP keeps one team for each thread that calls, and ggml's loops run on the one of this thread: threads of its own would
// only wait for the cores that these hold. `threads` must be the engine's, or the team is made anew at each change.
sae::Pool engine_threads(int32_t threads);
