// Text in, residuals out: the stream that training and recording read.
#pragma once

#include <cstdint>
#include <vector>

#include "engine.hpp"
#include "text.hpp"

struct Rows {                      // the residuals of some windows, window after window
    std::vector<Window> windows;
    std::vector<float> x;          // [windows x window length, d]
    std::vector<int32_t> keep;     // per row, a row mask: 0 for attention sinks, which are a window's first token and rows of large norm
};

// A row mask over the rows of some windows: 0 for attention sinks.
std::vector<int32_t> without_sinks(const std::vector<float> &x, size_t d, size_t window);

class ResidualStream {
  public:
    static constexpr float large = 8;  // times the median norm of the rows of one batch

    ResidualStream(const Model &model, Engine &engine, Corpus &corpus, size_t window, size_t windows_per_batch);

    bool next(Rows &rows);         // false: the text has come to its end
    void skip(size_t batches);     // as many batches of text that are not to be read again

  private:
    void take(std::vector<Window> &windows);

    const Model &model_;
    Engine &engine_;
    Corpus &corpus_;
    size_t window_, windows_per_batch_, d_;
};
