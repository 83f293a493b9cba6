#include "generate.hpp"

#include <cmath>
#include <memory>

namespace {

struct FreeSampler { void operator()(llama_sampler *s) const { llama_sampler_free(s); } };
using Sampler = std::unique_ptr<llama_sampler, FreeSampler>;

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

}  // namespace

std::vector<std::vector<llama_token>> generate(const Model &model, Engine &engine, const std::vector<std::vector<llama_token>> &prompts, size_t n,
                                               const Sampling &sampling) {
    std::vector<BatchRow> batch;
    std::vector<size_t> last;        // each sequence's row with logits
    std::vector<llama_pos> next_pos;
    std::vector<Sampler> samplers;
    for (size_t s = 0; s < prompts.size(); s++) {
        const auto seq = llama_seq_id(s);
        batch.push_back({model.start(), 0, seq});
        for (llama_token t : prompts[s]) batch.push_back({t, batch.back().pos + 1, seq});
        batch.back().wants_logits = true;
        last.push_back(batch.size() - 1);
        next_pos.push_back(batch.back().pos + 1);
        samplers.push_back(make_sampler(model, sampling));
    }

    std::vector<std::vector<llama_token>> texts(prompts.size());
    engine.forget();
    for (size_t step = 0;; step++) {
        engine.decode(batch);
        batch.clear();
        for (size_t s = 0; s < prompts.size(); s++) {
            const llama_token t = llama_sampler_sample(samplers[s].get(), engine.get(), int32_t(last[s]));
            texts[s].push_back(t);
            last[s] = s;
            batch.push_back({t, next_pos[s]++, llama_seq_id(s), true});
        }
        if (step + 1 == n) return texts;
    }
}
