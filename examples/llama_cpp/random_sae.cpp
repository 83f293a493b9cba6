#include "random_sae.hpp"

#include <cmath>
#include <random>
#include <vector>

sae::Model random_sae(int64_t d, int64_t n_latents, int64_t k, sae_dtype dtype) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal(0, 1 / std::sqrt(float(d)));  // rows of about unit norm
    std::vector<float> w(size_t(d * n_latents));
    for (float &x : w) x = normal(random);

    sae_model_desc desc = SAE_MODEL_DESC_INIT;
    desc.architecture = SAE_ARCHITECTURE_TOP_K;
    desc.d_in = d;
    desc.n_latents = n_latents;
    desc.k = k;
    const sae::Tensor matrix(w.data(), n_latents, d);
    sae_load_options options = SAE_LOAD_OPTIONS_INIT;
    options.dtype = dtype;
    return sae::Model::from_weights(desc, {{"W_enc", matrix}, {"W_dec", matrix}}, &options);  // copied
}
