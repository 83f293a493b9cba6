// Several texts written at once: one batch a step, one row a sequence.
#pragma once

#include <cstdint>
#include <vector>

#include "engine.hpp"

struct Sampling {
    float temperature = 0.5f;
    int32_t top_k = 20;
    float repeat_penalty = 1.15f;
    uint32_t seed = 1;  // the same for every sequence: what differs between the texts is the steering alone
};

// Continues each prompt (given without the start token) as sequence 0, 1, … by n tokens. Returns the new tokens.
std::vector<std::vector<llama_token>> generate(const Model &model, Engine &engine, const std::vector<std::vector<llama_token>> &prompts, size_t n,
                                               const Sampling &sampling = {});
