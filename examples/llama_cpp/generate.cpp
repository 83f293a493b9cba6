#include "generate.hpp"

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
