// Trains an SAE on the residuals as they stream out of the engine.
#pragma once

#include <cstdint>
#include <string>

#include <sae.hpp>

#include "stream.hpp"

struct TrainSettings {
    size_t tokens = 60000;        // of text
    size_t passes = 4;            // the first as the text streams by, the others over what was kept of it, shuffled
    size_t batch = 512;
    size_t window = 128;          // tokens of context
    int64_t n_latents = 4608, k = 32;
    int32_t layer = 14;
    float learning_rate = 2.5e-3f;
    uint32_t seed = 1;
};

// At most so many rows are kept, for the later passes and to find the features' best contexts in (302 MB).
constexpr size_t max_kept_rows = 131072;

sae::Model train(const Model &model, const std::string &text, const TrainSettings &settings, const sae::Pool &pool, Rows &kept);

struct HeldOut {
    double fvu = 0;                // fraction of variance unexplained, over `rows` rows
    size_t rows = 0;
    size_t first = 0, large = 0;   // rows left out as attention sinks: first tokens, and others of large norm (ResidualStream)
};

// On documents that training never saw, until there are so many rows.
HeldOut held_out_fvu(const Model &model, const sae::Model &sae, const std::string &text, const TrainSettings &settings, const sae::Pool &pool, size_t tokens);
