#include "stream.hpp"

#include <algorithm>
#include <cmath>

ResidualStream::ResidualStream(const Model &model, Engine &engine, Corpus &corpus, size_t window, size_t windows_per_batch)
    : model_(model), engine_(engine), corpus_(corpus), window_(window), windows_per_batch_(windows_per_batch), d_(size_t(model.d())) {}

bool ResidualStream::next(Rows &rows) {
    rows.windows.clear();
    std::vector<BatchRow> batch;
    for (Window window; rows.windows.size() < windows_per_batch_ && corpus_.next(model_, window);) {
        for (size_t pos = 0; pos < window_; pos++)
            batch.push_back({window.tokens[pos], llama_pos(pos), llama_seq_id(rows.windows.size())});
        rows.windows.push_back(window);
    }
    if (batch.empty()) return false;

    rows.x.resize(batch.size() * d_);
    const HookScope hook(engine_, [&](const Residual &r) {
        for (int64_t i = 0; i < r.rows; i++) std::copy_n(r.data + i * r.d, d_, rows.x.begin() + std::ptrdiff_t(size_t(r.batch_row[i]) * d_));
        return Then::stop;  // what comes after the hooked block is not needed: half the work saved
    });
    engine_.forget();
    engine_.decode(batch);
    mark_sinks(rows);
    return true;
}

// The first token of a window gathers the attention that has nowhere to go: its norm is a hundred times that of the others.
// Rarely the second token does so too (a line break, say).
void ResidualStream::mark_sinks(Rows &rows) const {
    const size_t n = rows.x.size() / d_;
    std::vector<float> norm(n);
    for (size_t i = 0; i < n; i++) {
        float sum = 0;
        for (size_t j = 0; j < d_; j++) sum += rows.x[i * d_ + j] * rows.x[i * d_ + j];
        norm[i] = std::sqrt(sum);
    }
    std::vector<float> sorted = norm;
    std::nth_element(sorted.begin(), sorted.begin() + std::ptrdiff_t(n / 2), sorted.end());
    rows.keep.resize(n);
    for (size_t i = 0; i < n; i++) rows.keep[i] = i % window_ != 0 && norm[i] < large * sorted[n / 2];
}
