#include "device.hpp"

#include <algorithm>
#include <stdexcept>

#include "ggml-alloc.h"
#include "ggml-backend.h"

namespace {

sae_run synchronous() {
    sae_run run = SAE_RUN_INIT;
    run.stream_kind = SAE_STREAM_SYNCHRONOUS;
    return run;
}

}  // namespace

sae_device device_named(const std::string &buffer_type, bool is_host) {
    if (is_host) return {SAE_DEVICE_CPU, 0};
    const std::string cuda = "CUDA", number = buffer_type.substr(std::min(buffer_type.size(), cuda.size()));
    const bool digits = !number.empty() && number.size() < 4 && number.find_first_not_of("0123456789") == std::string::npos;
    if (buffer_type.rfind(cuda, 0) != 0 || !digits)
        throw std::runtime_error("the residual is in memory of " + buffer_type + ", which the library does not reach; it reaches the CPU's and that of CUDA devices");
    return {SAE_DEVICE_CUDA, std::stoi(number)};
}

sae::Model on_device(const sae::Model &sae, sae_device device, const std::string &file) {
    sae.save(file);
    sae_load_options options = SAE_LOAD_OPTIONS_INIT;
    options.device = device;
    return sae::Model::load(file, &options);
}

Beside::Beside(const Residual &residual, int64_t most_rows, int64_t k)
    : device_(device_named(ggml_backend_buft_name(residual.where), ggml_backend_buft_is_host(residual.where))), k_(k) {
    context_.reset(ggml_init({4 * ggml_tensor_overhead(), nullptr, true}));
    if (!context_) throw std::runtime_error("ggml could not make a context");
    values_ = ggml_new_tensor_2d(context_.get(), GGML_TYPE_F32, k, most_rows);
    indices_ = ggml_new_tensor_2d(context_.get(), GGML_TYPE_I32, k, most_rows);
    counts_ = ggml_new_tensor_1d(context_.get(), GGML_TYPE_I32, most_rows);
    row_slot_ = ggml_new_tensor_1d(context_.get(), GGML_TYPE_I32, most_rows);
    buffer_.reset(ggml_backend_alloc_ctx_tensors_from_buft(context_.get(), residual.where));
    if (!buffer_) throw std::runtime_error(std::string("ggml could not allocate memory of ") + ggml_backend_buft_name(residual.where));
}

void Beside::encode(sae::Session &session, const Residual &r, sae::Features &features) {
    if (r.rows > counts_->ne[0] || r.rows > features.tokens() || features.width() != k_) throw std::logic_error("features are not as announced");
    const sae::FeaturesMut there(sae::TensorMut(static_cast<float *>(values_->data), r.rows, k_).on(device_),
                                 sae::TensorMut(static_cast<int32_t *>(indices_->data), r.rows, k_).on(device_),
                                 sae::TensorMut(static_cast<int32_t *>(counts_->data), r.rows).on(device_));
    const sae_run run = synchronous();
    session.encode(tensor(r), there, &run);
    const sae_features here = features.slice(0, r.rows).c();
    ggml_backend_tensor_get(values_, here.values.data, 0, size_t(r.rows * k_) * sizeof(float));
    ggml_backend_tensor_get(indices_, here.indices.data, 0, size_t(r.rows * k_) * sizeof(int32_t));
    ggml_backend_tensor_get(counts_, here.counts.data, 0, size_t(r.rows) * sizeof(int32_t));
}

void Beside::steer(sae::Session &session, const Residual &r, const std::vector<int32_t> &row_slot) {
    if (r.rows > row_slot_->ne[0] || r.rows > int64_t(row_slot.size())) throw std::logic_error("rows are more than announced");
    ggml_backend_tensor_set(row_slot_, row_slot.data(), 0, size_t(r.rows) * sizeof(int32_t));
    const sae_run run = synchronous();
    session.steer(tensor(r), sae::Tensor(static_cast<const int32_t *>(row_slot_->data), r.rows).on(device_), &run);
}
