// What the model still predicts when an SAE's reconstruction stands for the residual: cross-entropy of the next token.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <sae.hpp>

#include "engine.hpp"

struct SpliceOptions {
    std::string text;   // its held-out documents are read
    int32_t layer;
    size_t tokens, window;
    uint32_t seed;
    int32_t threads;
};

struct Spliced {
    size_t tokens = 0;         // whose next token was predicted
    double clean = 0;          // cross-entropy in nats, mean over them: of the model as it is,
    double zero = 0;           // with zeros for the residual,
    std::vector<double> saes;  // and with each SAE's reconstruction

    double recovered(size_t sae) const { return (zero - saes[sae]) / (zero - clean); }
};

// Attention sinks, on which SAEs are not trained, stay as they are, and predictions there do not count.
Spliced splice(const Model &model, const std::vector<sae::Model> &saes, const sae::Pool &pool, const SpliceOptions &options);

// Splices the SAEs of a folder's .safetensors files, and writes what came of it to `out`, as JSON.
void splice_all(const Model &model, const std::string &folder, const sae::Pool &pool, const SpliceOptions &options, const std::string &out);
