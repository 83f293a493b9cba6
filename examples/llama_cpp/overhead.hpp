// What capture and steering cost per decoded token, against the engine alone.
#pragma once

#include <string>

#include <sae.hpp>

#include "engine.hpp"

// The engine gets as many threads as the pool has. The table is also written to `file`, as JSON.
void show_overhead(const Model &model, const sae::Model &sae, const sae::Pool &pool, int32_t layer, const std::string &file);
