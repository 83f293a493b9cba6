#include "stream.hpp"

#include <algorithm>
#include <cmath>

ResidualStream::ResidualStream(const Model &model, Engine &engine, Corpus &corpus, size_t window, size_t windows_per_batch)
    : model_(model), engine_(engine), corpus_(corpus), window_(window), windows_per_batch_(windows_per_batch), d_(size_t(model.d())) {}

// A batch's text.
void ResidualStream::take(std::vector<Window> &windows) {
    windows.clear();
    for (Window window; windows.size() < windows_per_batch_ && corpus_.next(model_, window);) windows.push_back(window);
}

void ResidualStream::skip(size_t batches) {
    std::vector<Window> windows;
    for (size_t i = 0; i < batches; i++) take(windows);
}

bool ResidualStream::next(Rows &rows) {
    take(rows.windows);
    std::vector<BatchRow> batch;
    for (size_t seq = 0; seq < rows.windows.size(); seq++)
        for (size_t pos = 0; pos < window_; pos++) batch.push_back({rows.windows[seq].tokens[pos], llama_pos(pos), llama_seq_id(seq)});
    if (batch.empty()) return false;

    rows.x.resize(batch.size() * d_);
    const HookScope hook(engine_, [&](const Residual &r) {
        for (int64_t i = 0; i < r.rows; i++) std::copy_n(r.data + i * r.d, d_, rows.x.begin() + std::ptrdiff_t(size_t(r.batch_row[i]) * d_));
        return Then::stop;  // what comes after the hooked block is not needed: half the work saved
    });
    engine_.forget();
    engine_.decode(batch);
    rows.keep = without_sinks(rows.x, d_, window_);
    return true;
}

// The first token of a window gathers the attention that has nowhere to go: its norm is a hundred times that of the others.
// Rarely the second token does so too (a line break, say).
std::vector<int32_t> without_sinks(const std::vector<float> &x, size_t d, size_t window) {
    const size_t n = x.size() / d;
    std::vector<float> norm(n);
    for (size_t i = 0; i < n; i++) {
        float sum = 0;
        for (size_t j = 0; j < d; j++) sum += x[i * d + j] * x[i * d + j];
        norm[i] = std::sqrt(sum);
    }
    std::vector<float> sorted = norm;
    std::nth_element(sorted.begin(), sorted.begin() + std::ptrdiff_t(n / 2), sorted.end());
    std::vector<int32_t> keep(n);
    for (size_t i = 0; i < n; i++) keep[i] = i % window != 0 && norm[i] < ResidualStream::large * sorted[n / 2];
    return keep;
}
