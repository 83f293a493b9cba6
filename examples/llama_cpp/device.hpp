// Where the engine keeps its tensors on a GPU: the SAE is there too, reads and steers the residual in place, and only features come back.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <sae.hpp>

#include "engine.hpp"

// What the library calls the device whose memory llama.cpp calls `buffer_type`; throws where the library does not reach it.
sae_device device_named(const std::string &buffer_type, bool is_host);

// The same SAE on a device, by way of a file.
sae::Model on_device(const sae::Model &sae, sae_device device, const std::string &file);

// Memory beside a residual, wherever that is, for calls on it. llama.cpp shows no stream of its own: it has waited for the tensor before it calls
// the hook, and goes on when the hook returns, so that calls are done by then.
class Beside {
  public:
    Beside(const Residual &residual, int64_t most_rows, int64_t k);

    void encode(sae::Session &session, const Residual &r, sae::Features &features);  // the first rows of `features`
    void steer(sae::Session &session, const Residual &r, const std::vector<int32_t> &row_slot);

  private:
    struct Free {
        void operator()(ggml_context *c) const { ggml_free(c); }
        void operator()(ggml_backend_buffer_t b) const { ggml_backend_buffer_free(b); }
    };
    sae::TensorMut tensor(const Residual &r) const { return sae::TensorMut(r.data, r.rows, r.d).on(device_); }

    sae_device device_;
    int64_t k_;
    std::unique_ptr<ggml_context, Free> context_;
    std::unique_ptr<ggml_backend_buffer, Free> buffer_;
    ggml_tensor *values_, *indices_, *counts_, *row_slot_;
};
