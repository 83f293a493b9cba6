#include "sampler.hpp"

#include <cmath>
#include <vector>

Sampler make_sampler(const Model &model, const Sampling &s) {
    Sampler chain(llama_sampler_chain_init(llama_sampler_chain_default_params()));
    std::vector<llama_logit_bias> never;  // the texts are as long as asked for
    for (llama_token t = 0; t < model.n_vocab(); t++)
        if (model.ends_text(t)) never.push_back({t, -INFINITY});
    llama_sampler_chain_add(chain.get(), llama_sampler_init_logit_bias(model.n_vocab(), int32_t(never.size()), never.data()));
    llama_sampler_chain_add(chain.get(), llama_sampler_init_penalties(model.n_vocab(), 64, s.repeat_penalty, 0, 0));
    llama_sampler_chain_add(chain.get(), llama_sampler_init_top_k(s.top_k));
    llama_sampler_chain_add(chain.get(), llama_sampler_init_temp(s.temperature));
    llama_sampler_chain_add(chain.get(), llama_sampler_init_dist(s.seed));
    return chain;
}
