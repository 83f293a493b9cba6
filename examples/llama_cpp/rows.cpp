#include "rows.hpp"

#include <cstring>
#include <stdexcept>
#include <string>

#include "engine.hpp"

void RowMap::begin(const std::vector<BatchRow> &batch) {
    waiting_.clear();
    positions_ = cells_ = nullptr;
    for (size_t i = 0; i < batch.size(); i++) waiting_[key(batch[i].seq, batch[i].pos)].push_back(int32_t(i));
}

void RowMap::see(const ggml_tensor *node) {
    if (node->op == GGML_OP_ROPE) positions_ = node->src[1];
    if (node->op == GGML_OP_SET_ROWS && std::strcmp(node->src[1]->name, "attn_inp_k_idxs") == 0) cells_ = node->src[1];
}

const std::vector<int32_t> &RowMap::rows(int64_t n) {
    if (!positions_ || !cells_ || positions_->type != GGML_TYPE_I32 || cells_->type != GGML_TYPE_I64)
        throw std::runtime_error("this model's graph has no RoPE positions or no K-cache indices: rows cannot be mapped");
    if (positions_->ne[0] != n || cells_->ne[0] != n)
        throw std::runtime_error("the residual has " + std::to_string(n) + " rows, its ubatch " + std::to_string(positions_->ne[0]) +
                                 ": the last block carries only output rows, hook an earlier one");
    const auto *pos = static_cast<const int32_t *>(positions_->data);
    const auto *cell = static_cast<const int64_t *>(cells_->data);
    rows_.resize(size_t(n));
    for (int64_t i = 0; i < n; i++) {
        auto found = waiting_.find(key(cell[i] / cells_per_stream_, pos[i]));
        if (found == waiting_.end() || found->second.empty())
            throw std::runtime_error("a row at position " + std::to_string(pos[i]) + " is not in the batch");
        rows_[size_t(i)] = found->second.front();
        found->second.pop_front();
    }
    return rows_;
}
