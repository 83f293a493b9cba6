// llama.cpp with its residual stream made accessible: a model, a context, and a hook on `l_out-N`, or on another tensor of block N, of one block or
// several.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "llama.h"
#include "rows.hpp"

// One entry of a batch: a token at a position of a sequence, and whether its logits are wanted.
struct BatchRow {
    llama_token token;
    llama_pos pos;
    llama_seq_id seq;
    bool wants_logits = false;
};

// The residual after a hooked block, for the rows of one ubatch. It is the engine's own memory: what is written here steers the model.
struct Residual {
    float *data;            // [rows, d], contiguous; in the memory of `where`
    ggml_backend_buffer_type_t where;
    int64_t rows, d;
    int32_t layer;             // after which block
    const int32_t *batch_row;  // [rows]: which entry of the batch each row is
    const BatchRow *batch;

    const float *row(int64_t i) const { return data + i * d; }
    const BatchRow &at(int64_t i) const { return batch[batch_row[i]]; }
};

enum class Then { go_on, stop };  // stop: the blocks after the hook are not computed (nor their KV cache written)

class Model {
  public:
    explicit Model(const std::string &path, int32_t gpu_layers = 0);  // so many of the last layers on a GPU, if llama.cpp was built for one

    int32_t d() const { return llama_model_n_embd(model_.get()); }
    int32_t n_layers() const { return llama_model_n_layer(model_.get()); }
    void check_hook(int64_t layer) const;  // throws if the residual after this block cannot be hooked
    int32_t n_vocab() const { return llama_vocab_n_tokens(vocab_); }
    std::string name() const;         // as its file says: what it is, and in which type its weights are
    std::string description() const;
    llama_token start() const { return llama_vocab_bos(vocab_); }  // what stands before every text here, the attention's sink
    bool ends_text(llama_token token) const { return llama_vocab_is_eog(vocab_, token); }

    std::vector<llama_token> tokenize(std::string_view text) const;
    std::string text(llama_token token) const;
    std::string text(const llama_token *tokens, size_t n) const;

    llama_model *get() const { return model_.get(); }

  private:
    struct Free { void operator()(llama_model *m) const { llama_model_free(m); } };
    std::unique_ptr<llama_model, Free> model_;
    const llama_vocab *vocab_;
};

// A copy of a model whose weights are f32, made once: the same weights, but their products are no longer of activations rounded to
// 8 bits, and take less time on a CPU. Gives the copy's path.
std::string widened(const std::string &model, const std::string &copy, int32_t threads);

struct EngineOptions {
    int32_t layer = 0;           // the hook is on the residual after this block (0-based)
    std::vector<int32_t> more_layers = {};  // and after these
    std::string site = "l_out";  // or on another of the block's tensors of that width: ffn_inp, attn_out, ffn_out
    bool hooked = true;          // false: no callback at all, the engine as it comes
    bool on_device = false;      // the hook takes residuals in a GPU's memory too (device.hpp)
    uint32_t n_ctx_seq = 256;    // positions per sequence
    uint32_t n_seqs = 1;
    uint32_t n_batch = 2048;
    uint32_t n_ubatch = 512;
    bool kv_unified = false;     // one KV cache for all sequences, or one each
    ggml_type cache = GGML_TYPE_F16;  // what keys and values are kept in
    bool flash_attention = true; // its kernels differ by how many rows they get, in more than the last bits
    int32_t n_threads = 2;       // give the library's pool as many
};

class Engine {
  public:
    using Hook = std::function<Then(const Residual &)>;

    Engine(const Model &model, const EngineOptions &options);
    Engine(const Engine &) = delete;
    Engine &operator=(const Engine &) = delete;

    void on_residual(Hook hook) { hook_ = std::move(hook); }  // nullptr: off
    void decode(const std::vector<BatchRow> &batch);
    void forget();                                            // empties the KV cache
    const float *logits(size_t batch_row) const;              // of the last decode
    llama_context *get() const { return context_.get(); }

  private:
    struct Place {
        std::string tensor;
        int32_t layer;
    };

    static bool eval(ggml_tensor *t, bool ask, void *self);
    const Place *place_of(const ggml_tensor *t) const;
    bool wants(const ggml_tensor *t);
    bool observe(ggml_tensor *t);

    struct Free { void operator()(llama_context *c) const { llama_free(c); } };
    std::vector<Place> places_;
    int32_t d_;
    bool on_device_;
    RowMap rows_;
    const std::vector<BatchRow> *batch_ = nullptr;  // during decode
    int32_t last_layer_ = 0;                        // where the hook was last; an earlier block begins another ubatch
    Hook hook_;
    std::exception_ptr failure_;  // exceptions must not cross llama.cpp's C frames
    std::unique_ptr<llama_context, Free> context_;
};

// A hook that is off again at the end of the scope, whatever happens in it: it may refer to what lives there.
class HookScope {
  public:
    HookScope(Engine &engine, Engine::Hook hook) : engine_(engine) { engine_.on_residual(std::move(hook)); }
    ~HookScope() { engine_.on_residual(nullptr); }
    HookScope(const HookScope &) = delete;
    HookScope &operator=(const HookScope &) = delete;

  private:
    Engine &engine_;
};
