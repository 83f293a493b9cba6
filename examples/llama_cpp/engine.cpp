#include "engine.hpp"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <stdexcept>
#include <string>

#include "ggml-backend.h"

namespace {

void quiet_log(ggml_log_level level, const char *text, void *) {
    if (level == GGML_LOG_LEVEL_ERROR) std::fputs(text, stderr);
}

struct BackendOnce {
    BackendOnce() {
        llama_log_set(quiet_log, nullptr);
        llama_backend_init();
    }
    ~BackendOnce() { llama_backend_free(); }
};

llama_context *make_context(const Model &model, const EngineOptions &o, ggml_backend_sched_eval_callback eval, void *user) {
    llama_context_params p = llama_context_default_params();
    p.n_ctx = o.n_ctx_seq * o.n_seqs;
    p.n_batch = o.n_batch;
    p.n_ubatch = o.n_ubatch;
    p.n_seq_max = o.n_seqs;
    p.n_threads = p.n_threads_batch = o.n_threads;
    p.kv_unified = o.kv_unified;
    p.type_k = p.type_v = o.cache;
    p.flash_attn_type = o.flash_attention ? LLAMA_FLASH_ATTN_TYPE_AUTO : LLAMA_FLASH_ATTN_TYPE_DISABLED;
    p.no_perf = true;
    if (o.hooked) {
        p.cb_eval = eval;
        p.cb_eval_user_data = user;
    }
    llama_context *context = llama_init_from_model(model.get(), p);
    if (!context) throw std::runtime_error("llama.cpp could not make a context of " + std::to_string(p.n_ctx) + " positions");
    return context;
}

}  // namespace

Model::Model(const std::string &path, int32_t gpu_layers) {
    static BackendOnce backend;
    llama_model_params p = llama_model_default_params();
    p.n_gpu_layers = gpu_layers;
    model_.reset(llama_model_load_from_file(path.c_str(), p));
    if (!model_) throw std::runtime_error("llama.cpp could not load " + path + " (run examples/llama_cpp/get.sh first)");
    vocab_ = llama_model_get_vocab(model_.get());
    if (start() == LLAMA_TOKEN_NULL) throw std::runtime_error(path + " names no token to begin a text with (tokenizer.ggml.bos_token_id)");
}

std::string Model::name() const {
    char name[128];
    return llama_model_meta_val_str(model_.get(), "general.name", name, sizeof name) > 0 ? name : "a model without a name";
}

std::string Model::description() const {
    char type[16];
    const bool known = llama_model_meta_val_str(model_.get(), "general.file_type", type, sizeof type) > 0;
    return std::to_string((llama_model_n_params(model_.get()) + 500000) / 1000000) + "M parameters, " + (known ? llama_ftype_name(llama_ftype(std::stoi(type))) : "of unknown file type");
}

void Model::check_hook(int64_t layer) const {
    if (layer < 0 || layer >= n_layers() - 1)
        throw std::invalid_argument("layer " + std::to_string(layer) + " cannot be hooked: choose 0 to " + std::to_string(n_layers() - 2));
}

std::vector<llama_token> Model::tokenize(std::string_view text) const {
    std::vector<llama_token> tokens(text.size() + 2);
    const int32_t n = llama_tokenize(vocab_, text.data(), int32_t(text.size()), tokens.data(), int32_t(tokens.size()), false, false);
    if (n < 0) throw std::runtime_error("llama.cpp could not tokenize a text of " + std::to_string(text.size()) + " bytes");
    tokens.resize(size_t(n));
    return tokens;
}

std::string Model::text(llama_token token) const {
    char piece[256];
    const int32_t n = llama_token_to_piece(vocab_, token, piece, sizeof piece, 0, true);
    return n > 0 ? std::string(piece, size_t(n)) : std::string();
}

std::string Model::text(const llama_token *tokens, size_t n) const {
    std::string all;
    for (size_t i = 0; i < n; i++) all += text(tokens[i]);
    return all;
}

std::string widened(const std::string &model, const std::string &copy, int32_t threads) {
    if (std::filesystem::exists(copy)) return copy;
    llama_model_quantize_params p = llama_model_quantize_default_params();
    p.ftype = LLAMA_FTYPE_ALL_F32;
    p.allow_requantize = true;
    p.nthread = threads;
    const std::string part = copy + ".part";
    if (llama_model_quantize(model.c_str(), part.c_str(), &p)) throw std::runtime_error("llama.cpp could not widen the weights of " + model + " into " + part + " (four bytes for each are needed)");
    std::filesystem::rename(part, copy);
    return copy;
}

Engine::Engine(const Model &model, const EngineOptions &o)
    : d_(model.d()), on_device_(o.on_device), rows_(o.kv_unified, 1) {
    std::vector<int32_t> layers = o.more_layers;
    layers.insert(layers.begin(), o.layer);
    for (const int32_t layer : layers) {
        model.check_hook(layer);
        places_.push_back({o.site + "-" + std::to_string(layer), layer});
    }
    context_.reset(make_context(model, o, eval, this));
    rows_ = RowMap(o.kv_unified, llama_n_ctx_seq(context_.get()));
}

void Engine::decode(const std::vector<BatchRow> &batch) {
    struct Batch {
        llama_batch b;
        explicit Batch(size_t n) : b(llama_batch_init(int32_t(n), 0, 1)) {}
        ~Batch() { llama_batch_free(b); }
    } owned(batch.size());
    llama_batch &b = owned.b;
    b.n_tokens = int32_t(batch.size());
    for (size_t i = 0; i < batch.size(); i++) {
        b.token[i] = batch[i].token;
        b.pos[i] = batch[i].pos;
        b.n_seq_id[i] = 1;
        b.seq_id[i][0] = batch[i].seq;
        b.logits[i] = batch[i].wants_logits;
    }
    rows_.begin(batch);
    batch_ = &batch;
    last_layer_ = std::numeric_limits<int32_t>::max();
    failure_ = nullptr;
    const int32_t status = llama_decode(context_.get(), b);
    if (failure_) std::rethrow_exception(failure_);
    if (status != 0) throw std::runtime_error("llama_decode failed with status " + std::to_string(status));
}

void Engine::forget() { llama_memory_clear(llama_get_memory(context_.get()), false); }

const float *Engine::logits(size_t batch_row) const {
    const float *l = llama_get_logits_ith(context_.get(), int32_t(batch_row));
    if (!l) throw std::logic_error("row " + std::to_string(batch_row) + " did not ask for logits");
    return l;
}

bool Engine::eval(ggml_tensor *t, bool ask, void *self) {
    auto *engine = static_cast<Engine *>(self);
    return ask ? engine->wants(t) : engine->observe(t);
}

const Engine::Place *Engine::place_of(const ggml_tensor *t) const {
    const auto found = std::find_if(places_.begin(), places_.end(), [&](const Place &place) { return place.tensor == t->name; });
    return found == places_.end() ? nullptr : &*found;
}

bool Engine::wants(const ggml_tensor *t) {
    if (!hook_ || failure_) return false;
    rows_.see(t);
    return place_of(t) != nullptr;
}

// After the block has run. Returning false makes llama.cpp skip the rest of the graph; it is no error path.
bool Engine::observe(ggml_tensor *t) {
    try {
        const Place &place = *place_of(t);
        if (t->type != GGML_TYPE_F32 || t->ne[0] != d_ || !ggml_is_contiguous(t)) throw std::runtime_error(place.tensor + " is not a contiguous f32 tensor");
        if (!on_device_ && !ggml_backend_buffer_is_host(t->buffer)) throw std::runtime_error(place.tensor + " is not in host memory, where this hook reads it");
        const int64_t n = ggml_nrows(t);
        const std::vector<int32_t> &rows = place.layer > last_layer_ ? rows_.same() : rows_.rows(n);
        last_layer_ = place.layer;
        return hook_(Residual{static_cast<float *>(t->data), ggml_backend_buffer_get_type(t->buffer), n, d_, place.layer, rows.data(), batch_->data()}) == Then::go_on;
    } catch (...) {
        failure_ = std::current_exception();
        return false;
    }
}
