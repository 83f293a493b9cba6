// Writes residuals to .npy files, for benchmarks that train on the same rows over and over.
#pragma once

#include <cstdint>
#include <string>

#include "engine.hpp"

struct RecordOptions {
    std::string text, folder;
    int32_t layer;
    size_t training, held_out, window;
    uint32_t seed;
    int32_t threads;
};

void record(const Model &model, const RecordOptions &options);
