// Writes residuals to .npy files, for benchmarks that train on the same rows over and over.
//
// With shards, what is recorded already is kept: a run that was killed goes on behind its last whole shard, and more rows of the
// same text may be asked for later.
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
    size_t shard = 0;  // rows of a shard; 0: all in one file
};

void record(const Model &model, const RecordOptions &options);
