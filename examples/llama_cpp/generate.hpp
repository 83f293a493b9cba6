// Several texts written at once: one batch a step, one row a sequence.
#pragma once

#include <cstdint>
#include <vector>

#include "engine.hpp"
#include "sampler.hpp"

// Continues each prompt (given without the start token) as sequence 0, 1, … by n tokens. Returns the new tokens.
std::vector<std::vector<llama_token>> generate(const Model &model, Engine &engine, const std::vector<std::vector<llama_token>> &prompts, size_t n,
                                               const Sampling &sampling = {});
