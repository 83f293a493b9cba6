// How the next token is drawn.
#pragma once

#include <cstdint>
#include <memory>

#include "engine.hpp"

struct Sampling {
    float temperature = 0.5f;
    int32_t top_k = 20;
    float repeat_penalty = 1.15f;
    uint32_t seed = 1;  // the same for every sequence: what differs between the texts is the steering alone
};

struct FreeSampler {
    void operator()(llama_sampler *s) const { llama_sampler_free(s); }
};
using Sampler = std::unique_ptr<llama_sampler, FreeSampler>;

Sampler make_sampler(const Model &model, const Sampling &sampling);
