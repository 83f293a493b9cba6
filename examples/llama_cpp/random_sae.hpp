// An SAE with random weights: what a size costs does not depend on what was learned.
#pragma once

#include <cstdint>

#include <sae.hpp>

sae::Model random_sae(int64_t d, int64_t n_latents, int64_t k, sae_dtype dtype = sae::dtype_of<float>());
