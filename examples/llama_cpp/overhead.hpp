// What capture and steering cost per decoded token, against the engine alone.
#pragma once

#include <sae.hpp>

#include "engine.hpp"

void show_overhead(const Model &model, const sae::Model &sae, const sae::Pool &pool, int32_t layer);
