// Which entry of the batch is each row of a ubatch?
//
// llama.cpp cuts a batch into ubatches and reorders its rows: with one KV cache per sequence, rows of different sequences are
// regrouped (`split_equal`); with a unified cache they keep the batch's order (`split_simple`). The callback is not told. But the
// graph carries what is needed: each row's position (RoPE's second source) and the cache cell it is written to (the index
// of the K cache's SET_ROWS), whose quotient by the cache's size is the sequence. A row is then the first entry of the
// batch, not yet seen, with that sequence (any, in a unified cache) and position.
#pragma once

#include <cstdint>
#include <deque>
#include <unordered_map>
#include <vector>

#include "ggml.h"

class RowMap {
  public:
    RowMap(bool unified, int64_t cells_per_stream) : unified_(unified), cells_per_stream_(cells_per_stream) {}

    void begin(const std::vector<struct BatchRow> &batch);         // a new batch
    void see(const ggml_tensor *node);                             // every node of the graph, as it is scheduled
    const std::vector<int32_t> &rows(int64_t n);                   // the current ubatch's n rows; throws if they are not of this batch

    const std::vector<int32_t> &same() const { return rows_; }     // the same ubatch's, once more: at a later block

  private:
    int64_t key(int64_t stream, int64_t pos) const { return ((unified_ ? 0 : stream) << 32) | pos; }

    bool unified_;
    int64_t cells_per_stream_;
    const ggml_tensor *positions_ = nullptr, *cells_ = nullptr;
    std::unordered_map<int64_t, std::deque<int32_t>> waiting_;     // batch entries by (stream, position), in the batch's order
    std::vector<int32_t> rows_;
};
