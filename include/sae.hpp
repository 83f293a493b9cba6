// libsae for C++17: sae.h with owners, views and errors. Header only.
//
//   sae::Model model = sae::Model::load("sae.safetensors");
//   sae::Session session = sae::Session::create(model);
//   sae::Features features(tokens, 32);
//   session.encode({activations, tokens, d}, features);      // activations: const float *
//   for (auto [latent, value] : features.row(0)) std::printf("%d: %g\n", latent, value);
//
// Everything that owns moves and does not copy. Views point to the caller's memory and live no longer than it.
//
// Failure: functions throw sae::Error. With SAE_NO_EXCEPTIONS defined (or exceptions off in the compiler) nothing
// throws: whatever returned `T` returns `sae::Result<T>`, to be asked before its value is used.
//
// What each call does, with its shapes and errors, is said in sae.h.

#ifndef SAE_HPP
#define SAE_HPP

#include "sae.h"

#include <cstddef>
#include <cstdint>
#include <exception>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#if !defined(SAE_NO_EXCEPTIONS) && !defined(__cpp_exceptions) && !defined(_CPPUNWIND)
#define SAE_NO_EXCEPTIONS
#endif

namespace sae {
// The two ways to fail are different types to the linker, so files compiled in either way can be linked together.
#ifdef SAE_NO_EXCEPTIONS
inline namespace no_exceptions {
#else
inline namespace with_exceptions {
#endif

// ---- Errors ----------------------------------------------------------------------------------------------------------

/// A failure: what kind, and a message that names the thing, what was expected and what was found.
class Error : public std::exception {
 public:
  Error(sae_status status, std::string message) : status_(status), message_(std::move(message)) {}

  /// Takes over an error of the C functions.
  static Error take(sae_status status, sae_error *error) {
    Error taken(status, error ? sae_error_message(error) : sae_status_name(status));
    sae_error_free(error);
    return taken;
  }

  /// `SAE_ERROR_…`.
  [[nodiscard]] sae_status status() const noexcept { return status_; }
  [[nodiscard]] const std::string &message() const noexcept { return message_; }
  [[nodiscard]] const char *what() const noexcept override { return message_.c_str(); }

 private:
  sae_status status_;
  std::string message_;
};

/// A value, or why there is none.
template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}
  Result(Error error) : error_(std::move(error)) {}

  [[nodiscard]] bool ok() const noexcept { return value_.has_value(); }
  explicit operator bool() const noexcept { return ok(); }
  /// The value; only if `ok()`.
  [[nodiscard]] T &value() & noexcept { return *value_; }
  [[nodiscard]] const T &value() const & noexcept { return *value_; }
  [[nodiscard]] T &&value() && noexcept { return std::move(*value_); }
  T &operator*() & noexcept { return *value_; }
  T *operator->() noexcept { return &*value_; }
  /// The error; only if not `ok()`.
  [[nodiscard]] const Error &error() const noexcept { return *error_; }

 private:
  std::optional<T> value_;
  std::optional<Error> error_;
};

template <>
class [[nodiscard]] Result<void> {
 public:
  Result() = default;
  Result(Error error) : error_(std::move(error)) {}

  [[nodiscard]] bool ok() const noexcept { return !error_.has_value(); }
  explicit operator bool() const noexcept { return ok(); }
  [[nodiscard]] const Error &error() const noexcept { return *error_; }

 private:
  std::optional<Error> error_;
};

#ifdef SAE_NO_EXCEPTIONS
/// What a call that can fail returns: `Result<T>`.
template <class T = void>
using Outcome = Result<T>;
#else
/// What a call that can fail returns: `T`, or it throws `Error`.
template <class T = void>
using Outcome = T;
#endif

namespace detail {

inline Outcome<> finish(sae_status status, sae_error *error) {
#ifdef SAE_NO_EXCEPTIONS
  if (status != SAE_OK) return Error::take(status, error);
  return {};
#else
  if (status != SAE_OK) throw Error::take(status, error);
#endif
}

template <class T>
Outcome<T> finish(sae_status status, sae_error *error, T value) {
#ifdef SAE_NO_EXCEPTIONS
  if (status != SAE_OK) return Error::take(status, error);
#else
  if (status != SAE_OK) throw Error::take(status, error);
#endif
  return value;
}

template <class T, void (*free)(T *)>
struct Free {
  void operator()(T *handle) const noexcept { free(handle); }
};

template <class T, void (*free)(T *)>
using Owner = std::unique_ptr<T, Free<T, free>>;

}  // namespace detail

// ---- Views -----------------------------------------------------------------------------------------------------------

/// The bits of an IEEE binary16 number.
struct f16 {
  std::uint16_t bits;
};

/// The bits of a bfloat16 number.
struct bf16 {
  std::uint16_t bits;
};

/// The element type of `float`, `f16`, `bf16` and `std::int32_t`.
template <class T>
[[nodiscard]] constexpr sae_dtype dtype_of() noexcept {
  if constexpr (std::is_same_v<T, float>) {
    return {SAE_DTYPE_FLOAT, 32, 1};
  } else if constexpr (std::is_same_v<T, f16>) {
    return {SAE_DTYPE_FLOAT, 16, 1};
  } else if constexpr (std::is_same_v<T, bf16>) {
    return {SAE_DTYPE_BFLOAT, 16, 1};
  } else {
    static_assert(std::is_same_v<T, std::int32_t>, "tensors hold float, sae::f16, sae::bf16 or std::int32_t");
    return {SAE_DTYPE_INT, 32, 1};
  }
}

/// A tensor to read: a vector `[length]`, or a matrix `[rows, cols]` whose rows start `stride` elements apart.
class Tensor {
 public:
  /// No tensor.
  Tensor() = default;

  template <class T>
  Tensor(const T *data, std::int64_t length) : Tensor(data, dtype_of<T>(), length) {}

  /// `stride` 0: no gaps between rows.
  template <class T>
  Tensor(const T *data, std::int64_t rows, std::int64_t cols, std::int64_t stride = 0)
      : Tensor(data, dtype_of<T>(), rows, cols, stride) {}

  /// Element types that are known at run time only.
  Tensor(const void *data, sae_dtype dtype, std::int64_t length) : Tensor(data, dtype, 1, length, 1, 1) {}
  Tensor(const void *data, sae_dtype dtype, std::int64_t rows, std::int64_t cols, std::int64_t stride)
      : Tensor(data, dtype, 2, rows, cols, stride == 0 ? cols : stride) {}

  /// A vector of everything that has `data()` and `size()`.
  template <class C, class T = std::remove_cv_t<std::remove_pointer_t<decltype(std::declval<const C &>().data())>>>
  Tensor(const C &container) : Tensor(container.data(), static_cast<std::int64_t>(container.size())) {}

  [[nodiscard]] bool absent() const noexcept { return tensor_.ndim == 0; }
  [[nodiscard]] std::int64_t rows() const noexcept { return absent() ? 0 : shape_[0]; }
  [[nodiscard]] sae_dtype dtype() const noexcept { return tensor_.dtype; }

  /// The same memory, on another device than the CPU.
  [[nodiscard]] Tensor on(sae_device device) const noexcept {
    Tensor moved = *this;
    moved.tensor_.device = device;
    return moved;
  }

  /// As the C functions take it; points into this object.
  [[nodiscard]] sae_tensor c() const noexcept {
    sae_tensor tensor = tensor_;
    if (!absent()) {
      tensor.shape = const_cast<std::int64_t *>(shape_);
      tensor.strides = const_cast<std::int64_t *>(strides_);
    }
    return tensor;
  }

 private:
  Tensor(const void *data, sae_dtype dtype, std::int32_t ndim, std::int64_t rows, std::int64_t cols, std::int64_t stride)
      : shape_{rows, cols}, strides_{stride, 1} {
    tensor_.data = const_cast<void *>(data);
    tensor_.device = {SAE_DEVICE_CPU, 0};
    tensor_.ndim = ndim;
    tensor_.dtype = dtype;
  }

  sae_tensor tensor_{};
  std::int64_t shape_[2] = {0, 0};
  std::int64_t strides_[2] = {0, 0};
};

/// A tensor to write.
class TensorMut : public Tensor {
 public:
  TensorMut() = default;

  template <class T, class = std::enable_if_t<!std::is_const_v<T>>>
  TensorMut(T *data, std::int64_t length) : Tensor(data, length) {}

  template <class T, class = std::enable_if_t<!std::is_const_v<T>>>
  TensorMut(T *data, std::int64_t rows, std::int64_t cols, std::int64_t stride = 0) : Tensor(data, rows, cols, stride) {}

  TensorMut(void *data, sae_dtype dtype, std::int64_t length) : Tensor(data, dtype, length) {}
  TensorMut(void *data, sae_dtype dtype, std::int64_t rows, std::int64_t cols, std::int64_t stride)
      : Tensor(data, dtype, rows, cols, stride) {}

  template <class C, class T = std::remove_pointer_t<decltype(std::declval<C &>().data())>,
            class = std::enable_if_t<!std::is_const_v<T>>>
  TensorMut(C &container) : Tensor(container) {}

  /// The same memory, on another device than the CPU.
  [[nodiscard]] TensorMut on(sae_device device) const noexcept {
    TensorMut moved;
    static_cast<Tensor &>(moved) = Tensor::on(device);
    return moved;
  }
};

/// Activations: x, or x + addend.
struct Input {
  Tensor x;
  Tensor addend;

  Input(Tensor x_, Tensor addend_ = {}) : x(x_), addend(addend_) {}
  template <class T>
  Input(T *data, std::int64_t rows, std::int64_t cols, std::int64_t stride = 0) : x(data, rows, cols, stride) {}
};

// ---- Features --------------------------------------------------------------------------------------------------------

/// Features to read, in memory of whoever; see `sae_features`.
struct FeaturesRef {
  Tensor values;
  Tensor indices;
  Tensor counts;
  Tensor row_state;

  /// As the C functions take it; points into this object.
  [[nodiscard]] sae_features c() const noexcept {
    sae_features features = SAE_FEATURES_INIT;
    features.values = values.c();
    features.indices = indices.c();
    features.counts = counts.c();
    features.row_state = row_state.c();
    return features;
  }
};

/// Features to write.
struct FeaturesMut : FeaturesRef {
  FeaturesMut(TensorMut values_, TensorMut indices_, TensorMut counts_, TensorMut row_state_ = {})
      : FeaturesRef{values_, indices_, counts_, row_state_} {}
};

/// A latent that is active on a token.
struct Active {
  std::int32_t index;
  float value;
};

/// The active latents of a token, strongest first.
class ActiveRow {
 public:
  class Iterator {
   public:
    Iterator(const std::int32_t *index, const float *value) : index_(index), value_(value) {}
    Active operator*() const noexcept { return {*index_, *value_}; }
    Iterator &operator++() noexcept {
      ++index_, ++value_;
      return *this;
    }
    bool operator!=(const Iterator &other) const noexcept { return index_ != other.index_; }

   private:
    const std::int32_t *index_;
    const float *value_;
  };

  ActiveRow(const std::int32_t *indices, const float *values, std::int64_t size)
      : indices_(indices), values_(values), size_(size) {}
  [[nodiscard]] Iterator begin() const noexcept { return {indices_, values_}; }
  [[nodiscard]] Iterator end() const noexcept { return {indices_ + size_, values_ + size_}; }
  [[nodiscard]] std::int64_t size() const noexcept { return size_; }
  [[nodiscard]] Active operator[](std::int64_t i) const noexcept { return {indices_[i], values_[i]}; }

 private:
  const std::int32_t *indices_;
  const float *values_;
  std::int64_t size_;
};

/// Features of some tokens, with memory of their own.
class Features {
 public:
  Features() = default;

  /// Room for `tokens` of up to `width` active latents; `row_state_width` as the model's info says.
  Features(std::int64_t tokens, std::int64_t width, std::int64_t row_state_width = 0)
      : width_(width),
        row_state_width_(row_state_width),
        values_(static_cast<std::size_t>(tokens * width)),
        indices_(static_cast<std::size_t>(tokens * width), -1),
        counts_(static_cast<std::size_t>(tokens)),
        row_state_(static_cast<std::size_t>(tokens * row_state_width)) {}

  [[nodiscard]] std::int64_t tokens() const noexcept { return static_cast<std::int64_t>(counts_.size()); }
  [[nodiscard]] std::int64_t width() const noexcept { return width_; }
  [[nodiscard]] const std::vector<float> &values() const noexcept { return values_; }
  [[nodiscard]] const std::vector<std::int32_t> &indices() const noexcept { return indices_; }
  [[nodiscard]] const std::vector<std::int32_t> &counts() const noexcept { return counts_; }
  [[nodiscard]] const std::vector<float> &row_state() const noexcept { return row_state_; }

  /// The active latents of a token, as many as fit the width.
  [[nodiscard]] ActiveRow row(std::int64_t token) const noexcept {
    const std::int32_t *indices = indices_.data() + token * width_;
    std::int64_t size = 0;
    while (size < width_ && indices[size] >= 0) ++size;
    return {indices, values_.data() + token * width_, size};
  }

  /// Some of the tokens, to read.
  [[nodiscard]] FeaturesRef slice(std::int64_t first, std::int64_t tokens) const {
    return {{values_.data() + first * width_, tokens, width_},
            {indices_.data() + first * width_, tokens, width_},
            {counts_.data() + first, tokens},
            row_state_width_ == 0 ? Tensor()
                                  : Tensor(row_state_.data() + first * row_state_width_, tokens, row_state_width_)};
  }

  /// Some of the tokens, to write.
  [[nodiscard]] FeaturesMut slice(std::int64_t first, std::int64_t tokens) {
    return {{values_.data() + first * width_, tokens, width_},
            {indices_.data() + first * width_, tokens, width_},
            {counts_.data() + first, tokens},
            row_state_width_ == 0 ? TensorMut()
                                  : TensorMut(row_state_.data() + first * row_state_width_, tokens, row_state_width_)};
  }

  operator FeaturesRef() const { return slice(0, tokens()); }
  operator FeaturesMut() { return slice(0, tokens()); }

 private:
  std::int64_t width_ = 0;
  std::int64_t row_state_width_ = 0;
  std::vector<float> values_;
  std::vector<std::int32_t> indices_;
  std::vector<std::int32_t> counts_;
  std::vector<float> row_state_;
};

// ---- Edits -----------------------------------------------------------------------------------------------------------

namespace detail {
[[nodiscard]] inline sae_edit edit(std::int32_t feature, std::int32_t op, float strength) noexcept {
  sae_edit made{};
  made.feature = feature;
  made.op = op;
  made.strength = strength;
  return made;
}
}  // namespace detail

/// Adds `strength` to the activation of a latent.
[[nodiscard]] inline sae_edit add(std::int32_t feature, float strength) noexcept {
  return detail::edit(feature, SAE_EDIT_ADD, strength);
}
/// Makes the activation of a latent `strength`.
[[nodiscard]] inline sae_edit set(std::int32_t feature, float strength) noexcept {
  return detail::edit(feature, SAE_EDIT_SET, strength);
}
/// Multiplies the activation of a latent by `strength`.
[[nodiscard]] inline sae_edit scale(std::int32_t feature, float strength) noexcept {
  return detail::edit(feature, SAE_EDIT_SCALE, strength);
}
/// Makes the activation of a latent 0.
[[nodiscard]] inline sae_edit ablate(std::int32_t feature) noexcept {
  return detail::edit(feature, SAE_EDIT_ABLATE, 0.0f);
}

// ---- Threads ---------------------------------------------------------------------------------------------------------

/// Threads that sessions and trainers may share.
class Pool {
 public:
  /// Threads of the library's own; 0: one per core.
  [[nodiscard]] static Outcome<Pool> create(std::int32_t threads) {
    sae_pool *made = nullptr;
    sae_error *error = nullptr;
    const sae_status status = sae_pool_create(threads, &made, &error);
    return detail::finish(status, error, Pool(made));
  }

  /// The host's threads, through its own parallel loop.
  [[nodiscard]] static Outcome<Pool> from_host(std::int32_t threads, sae_parallel_for parallel_for, void *context) {
    sae_pool *made = nullptr;
    sae_error *error = nullptr;
    const sae_status status = sae_pool_from_host(threads, parallel_for, context, &made, &error);
    return detail::finish(status, error, Pool(made));
  }

  [[nodiscard]] std::int32_t threads() const noexcept { return sae_pool_threads(pool_.get()); }
  /// For the `pool` of options.
  [[nodiscard]] const sae_pool *get() const noexcept { return pool_.get(); }

 private:
  explicit Pool(sae_pool *pool) : pool_(pool) {}
  detail::Owner<sae_pool, sae_pool_free> pool_;
};

// ---- Models ----------------------------------------------------------------------------------------------------------

/// A weight tensor with its name, for `Model::from_weights`.
struct NamedTensor {
  const char *name;
  Tensor tensor;
};

/// An SAE: immutable, usable by any number of threads. Sessions keep what they need of it.
class Model {
 public:
  [[nodiscard]] static Outcome<Model> load(const std::string &path, const sae_load_options *options = nullptr) {
    sae_model *made = nullptr;
    sae_error *error = nullptr;
    const sae_status status = sae_model_load(path.c_str(), options, &made, &error);
    return detail::finish(status, error, Model(made));
  }

  [[nodiscard]] static Outcome<Model> from_weights(const sae_model_desc &desc, const std::vector<NamedTensor> &weights,
                                                   const sae_load_options *options = nullptr) {
    std::vector<sae_named_tensor> named;
    for (const NamedTensor &weight : weights) named.push_back({weight.name, weight.tensor.c()});
    sae_model *made = nullptr;
    sae_error *error = nullptr;
    const sae_status status = sae_model_from_weights(&desc, named.data(), named.size(), options, &made, &error);
    return detail::finish(status, error, Model(made));
  }

  /// What loading would need.
  [[nodiscard]] static Outcome<sae_memory> memory(const std::string &path, const sae_load_options *options = nullptr) {
    sae_memory memory = SAE_MEMORY_INIT;
    sae_error *error = nullptr;
    const sae_status status = sae_model_memory(path.c_str(), options, &memory, &error);
    return detail::finish(status, error, memory);
  }

  Outcome<> save(const std::string &path, const sae_save_options *options = nullptr) const {
    sae_error *error = nullptr;
    const sae_status status = sae_model_save(model_.get(), path.c_str(), options, &error);
    return detail::finish(status, error);
  }

  /// What the model is; its texts live as long as the model.
  [[nodiscard]] Outcome<sae_info> info() const {
    sae_info info = SAE_INFO_INIT;
    sae_error *error = nullptr;
    const sae_status status = sae_model_info(model_.get(), &info, &error);
    return detail::finish(status, error, info);
  }

  /// Copies rows of `SAE_WEIGHT_…`.
  Outcome<> read(std::int32_t which, std::int64_t first, std::int64_t rows, const TensorMut &out) const {
    const sae_tensor to = out.c();
    sae_error *error = nullptr;
    const sae_status status = sae_model_read(model_.get(), which, first, rows, &to, &error);
    return detail::finish(status, error);
  }

  /// The same model with decoder rows of norm 1.
  [[nodiscard]] Outcome<Model> fold_decoder_norms() const {
    return made([&](sae_model **out, sae_error **error) {
      return sae_model_fold_decoder_norms(model_.get(), out, error);
    });
  }

  /// The model that takes x as this one takes `x * scale`.
  [[nodiscard]] Outcome<Model> fold_activation_scale(float scale) const {
    return made([&](sae_model **out, sae_error **error) {
      return sae_model_fold_activation_scale(model_.get(), scale, out, error);
    });
  }

  /// The same model keeping another number of latents per token.
  [[nodiscard]] Outcome<Model> with_k(std::int64_t k) const {
    return made([&](sae_model **out, sae_error **error) { return sae_model_with_k(model_.get(), k, out, error); });
  }

  /// These latents alone, numbered from 0 in their order.
  [[nodiscard]] Outcome<Model> subset(const std::vector<std::int32_t> &ids) const {
    return made([&](sae_model **out, sae_error **error) {
      return sae_model_subset(model_.get(), ids.data(), ids.size(), out, error);
    });
  }

  /// The first latents as a model of their own.
  [[nodiscard]] Outcome<Model> prefix(std::int64_t n_latents) const {
    return made([&](sae_model **out, sae_error **error) {
      return sae_model_prefix(model_.get(), n_latents, out, error);
    });
  }

  /// A JumpReLU model of this TopK one, with as many active latents on average over the sample.
  [[nodiscard]] Outcome<Model> with_threshold(const Tensor &sample, const Pool *pool = nullptr) const {
    const sae_tensor x = sample.c();
    return made([&](sae_model **out, sae_error **error) {
      return sae_model_with_threshold(model_.get(), &x, pool ? pool->get() : nullptr, out, error);
    });
  }

  [[nodiscard]] const sae_model *get() const noexcept { return model_.get(); }

 private:
  friend class Trainer;
  explicit Model(sae_model *model) : model_(model) {}

  template <class Make>
  static Outcome<Model> made(Make make) {
    sae_model *out = nullptr;
    sae_error *error = nullptr;
    const sae_status status = make(&out, &error);
    return detail::finish(status, error, Model(out));
  }

  detail::Owner<sae_model, sae_model_free> model_;
};

// ---- Sessions --------------------------------------------------------------------------------------------------------

/// Whom to steer, and where; see `sae_steering`.
struct Steering {
  Tensor row_slot;
  std::optional<FeaturesRef> known;
  Tensor y;
};

/// One stream of work over one model, for one thread at a time.
class Session {
 public:
  [[nodiscard]] static Outcome<Session> create(const Model &model, const sae_session_options *options = nullptr) {
    sae_session *made = nullptr;
    sae_error *error = nullptr;
    const sae_status status = sae_session_create(model.get(), options, &made, &error);
    return detail::finish(status, error, Session(made));
  }

  /// What such a session would need.
  [[nodiscard]] static Outcome<sae_memory> memory(const Model &model, const sae_session_options *options = nullptr) {
    sae_memory memory = SAE_MEMORY_INIT;
    sae_error *error = nullptr;
    const sae_status status = sae_session_memory(model.get(), options, &memory, &error);
    return detail::finish(status, error, memory);
  }

  /// Sparse features of each token.
  Outcome<> encode(const Input &input, const FeaturesMut &out, const sae_run *run = nullptr) {
    const sae_tensor x = input.x.c(), addend = input.addend.c();
    const sae_features to = out.c();
    sae_error *error = nullptr;
    const sae_status status = sae_encode(session_.get(), run, &x, &addend, &to, &error);
    return detail::finish(status, error);
  }

  /// Activations of the latents `ids` alone, into `out` `[tokens, ids]`.
  Outcome<> encode_selected(const Input &input, const Tensor &ids, const TensorMut &out, const sae_run *run = nullptr) {
    const sae_tensor x = input.x.c(), addend = input.addend.c(), which = ids.c(), to = out.c();
    sae_error *error = nullptr;
    const sae_status status = sae_encode_selected(session_.get(), run, &x, &addend, &which, &to, &error);
    return detail::finish(status, error);
  }

  /// All activations or pre-activations (`SAE_DENSE_…`), into `z` `[tokens, n_latents]`.
  Outcome<> encode_dense(const Tensor &input, const TensorMut &z, std::int32_t what = SAE_DENSE_ACTIVATIONS,
                         const sae_run *run = nullptr) {
    const sae_tensor x = input.c(), to = z.c();
    sae_error *error = nullptr;
    const sae_status status = sae_encode_dense(session_.get(), run, &x, what, &to, &error);
    return detail::finish(status, error);
  }

  /// Activation vectors from features; `raw` is the input, for models with a skip path.
  Outcome<> decode(const FeaturesRef &features, const TensorMut &x_hat, const Tensor &raw = {},
                   const sae_run *run = nullptr) {
    const sae_features from = features.c();
    const sae_tensor x = raw.c(), to = x_hat.c();
    sae_error *error = nullptr;
    const sae_status status = sae_decode(session_.get(), run, &from, &x, &to, &error);
    return detail::finish(status, error);
  }

  /// Encodes and decodes at once.
  Outcome<> reconstruct(const Input &input, const TensorMut &x_hat, const sae_run *run = nullptr) {
    const sae_tensor x = input.x.c(), addend = input.addend.c(), to = x_hat.c();
    sae_error *error = nullptr;
    const sae_status status = sae_reconstruct(session_.get(), run, &x, &addend, nullptr, &to, &error);
    return detail::finish(status, error);
  }

  /// Encodes and decodes at once, and tells the features.
  Outcome<> reconstruct(const Input &input, const FeaturesMut &out, const TensorMut &x_hat,
                        const sae_run *run = nullptr) {
    const sae_tensor x = input.x.c(), addend = input.addend.c(), to = x_hat.c();
    const sae_features features = out.c();
    sae_error *error = nullptr;
    const sae_status status = sae_reconstruct(session_.get(), run, &x, &addend, &features, &to, &error);
    return detail::finish(status, error);
  }

  /// Replaces the edits of a slot.
  Outcome<> set_edits(std::int32_t slot, const sae_edit *edits, std::size_t count) {
    sae_error *error = nullptr;
    const sae_status status = sae_set_edits(session_.get(), slot, edits, count, &error);
    return detail::finish(status, error);
  }
  Outcome<> set_edits(std::int32_t slot, std::initializer_list<sae_edit> edits) {
    return set_edits(slot, edits.begin(), edits.size());
  }
  Outcome<> set_edits(std::int32_t slot, const std::vector<sae_edit> &edits) {
    return set_edits(slot, edits.data(), edits.size());
  }

  /// Steers `x` in place; `row_slot` `[tokens]` says by which slot, and if absent, all by slot 0.
  Outcome<> steer(const TensorMut &x, const Tensor &row_slot = {}, const sae_run *run = nullptr) {
    Steering steering;
    steering.row_slot = row_slot;
    return steer(Input(x), steering, x, run);
  }

  /// Steers whom it is said, into `result`, which may be exactly what is edited: `steering.y`, or x without one.
  Outcome<> steer(const Input &input, const Steering &steering, const TensorMut &result, const sae_run *run = nullptr) {
    const sae_tensor x = input.x.c(), addend = input.addend.c();
    const sae_tensor row_slot = steering.row_slot.c(), y = steering.y.c(), out = result.c();
    sae_features known = SAE_FEATURES_INIT;
    if (steering.known) known = steering.known->c();
    sae_steering how = SAE_STEERING_INIT;
    how.row_slot = &row_slot;
    how.known = steering.known ? &known : nullptr;
    how.y = &y;
    how.out = &out;
    sae_error *error = nullptr;
    const sae_status status = sae_steer(session_.get(), run, &x, &addend, &how, &error);
    return detail::finish(status, error);
  }

  /// Features of latent shards into those of the whole.
  Outcome<> merge(const std::vector<FeaturesRef> &parts, const FeaturesMut &out, const sae_run *run = nullptr) {
    sae_features from[SAE_MAX_PARTS];
    for (std::size_t i = 0; i < parts.size() && i < SAE_MAX_PARTS; ++i) from[i] = parts[i].c();
    const sae_features to = out.c();
    sae_error *error = nullptr;
    const sae_status status = sae_features_merge(session_.get(), run, from, parts.size(), &to, &error);
    return detail::finish(status, error);
  }

  /// Fails if calls have met indices or slots out of range.
  Outcome<> status() {
    sae_error *error = nullptr;
    const sae_status status = sae_session_status(session_.get(), &error);
    return detail::finish(status, error);
  }

  /// Waits until everything it was asked for is done, on whatever stream.
  Outcome<> wait() {
    sae_error *error = nullptr;
    const sae_status status = sae_session_wait(session_.get(), &error);
    return detail::finish(status, error);
  }

  /// The name of the instruction set it uses.
  [[nodiscard]] const char *kernels() const noexcept { return sae_session_kernels(session_.get()); }

  [[nodiscard]] sae_session *get() const noexcept { return session_.get(); }

 private:
  explicit Session(sae_session *session) : session_(session) {}
  detail::Owner<sae_session, sae_session_free> session_;
};

// ---- The doctor ------------------------------------------------------------------------------------------------------

/// How to examine; see `sae_doctor_options`.
struct Examination {
  Tensor positions;
  Tensor target;
  const class Report *baseline = nullptr;
  const Pool *pool = nullptr;
  std::int64_t max_rows = 0;
};

/// What the doctor says of a model and a sample of activations.
class Report {
 public:
  /// Examines whether activations `x` are what the model expects.
  [[nodiscard]] static Outcome<Report> examine(const Model &model, const Tensor &x, const Examination &how = {}) {
    const sae_tensor from = x.c(), positions = how.positions.c(), target = how.target.c();
    sae_doctor_options options = SAE_DOCTOR_OPTIONS_INIT;
    options.positions = &positions;
    options.target = &target;
    options.baseline = how.baseline ? how.baseline->get() : nullptr;
    options.pool = how.pool ? how.pool->get() : nullptr;
    options.max_rows = how.max_rows;
    sae_report *made = nullptr;
    sae_error *error = nullptr;
    const sae_status status = sae_doctor(model.get(), &from, &options, &made, &error);
    return detail::finish(status, error, Report(made));
  }

  /// Its numbers.
  [[nodiscard]] Outcome<sae_report_info> info() const {
    sae_report_info info = SAE_REPORT_INFO_INIT;
    sae_error *error = nullptr;
    const sae_status status = sae_report_get(report_.get(), &info, &error);
    return detail::finish(status, error, info);
  }

  /// Finding `i`, the worst first; its texts live as long as the report.
  [[nodiscard]] Outcome<sae_finding> finding(std::int64_t i) const {
    sae_finding finding = SAE_FINDING_INIT;
    sae_error *error = nullptr;
    const sae_status status = sae_report_finding(report_.get(), i, &finding, &error);
    return detail::finish(status, error, finding);
  }

  /// All of it, for people and for programs.
  [[nodiscard]] std::string text() const { return sae_report_text(report_.get()); }
  [[nodiscard]] std::string json() const { return sae_report_json(report_.get()); }

  [[nodiscard]] const sae_report *get() const noexcept { return report_.get(); }

 private:
  explicit Report(sae_report *report) : report_(report) {}
  detail::Owner<sae_report, sae_report_free> report_;
};

// ---- Trainers --------------------------------------------------------------------------------------------------------

/// What to train on; see `sae_train_batch`.
struct Batch {
  Tensor x;
  Tensor addend;
  Tensor row_mask;
  bool accumulate = false;
  /// For transcoders.
  Tensor target;

  Batch(Tensor x_, Tensor row_mask_ = {}) : x(x_), row_mask(row_mask_) {}
  template <class T>
  Batch(T *data, std::int64_t rows, std::int64_t cols, std::int64_t stride = 0) : x(data, rows, cols, stride) {}
};

/// One training run, for one thread at a time.
class Trainer {
 public:
  [[nodiscard]] static Outcome<Trainer> create(const sae_train_options &options) {
    sae_trainer *made = nullptr;
    sae_error *error = nullptr;
    const sae_status status = sae_trainer_create(&options, &made, &error);
    return detail::finish(status, error, Trainer(made));
  }

  /// Continues a run from its last checkpoint.
  [[nodiscard]] static Outcome<Trainer> resume(const std::string &dir, const sae_train_options *options = nullptr) {
    sae_trainer *made = nullptr;
    sae_error *error = nullptr;
    const sae_status status = sae_trainer_resume(dir.c_str(), options, &made, &error);
    return detail::finish(status, error, Trainer(made));
  }

  /// Starts the run from a first sample.
  Outcome<> init_from(const Tensor &sample) {
    const sae_tensor from = sample.c();
    sae_error *error = nullptr;
    const sae_status status = sae_trainer_init_from(trainer_.get(), &from, &error);
    return detail::finish(status, error);
  }

  /// Starts the run from a model.
  Outcome<> warm_start(const Model &model, const Tensor &sample) {
    const sae_tensor from = sample.c();
    sae_error *error = nullptr;
    const sae_status status = sae_trainer_warm_start(trainer_.get(), model.get(), &from, &error);
    return detail::finish(status, error);
  }

  /// Starts a transcoder's run from a first sample of inputs and their targets.
  Outcome<> init_transcoder(const Tensor &sample, const Tensor &target) {
    const sae_tensor from = sample.c(), to = target.c();
    sae_error *error = nullptr;
    const sae_status status = sae_trainer_init_transcoder(trainer_.get(), &from, &to, &error);
    return detail::finish(status, error);
  }

  /// Starts a transcoder's run from a model.
  Outcome<> warm_start_transcoder(const Model &model, const Tensor &sample, const Tensor &target) {
    const sae_tensor from = sample.c(), to = target.c();
    sae_error *error = nullptr;
    const sae_status status =
        sae_trainer_warm_start_transcoder(trainer_.get(), model.get(), &from, &to, &error);
    return detail::finish(status, error);
  }

  /// Trains on a batch.
  Outcome<sae_train_stats> step(const Batch &batch, const sae_run *run = nullptr) {
    const sae_tensor x = batch.x.c(), addend = batch.addend.c(), row_mask = batch.row_mask.c();
    const sae_tensor target = batch.target.c();
    sae_train_batch what = SAE_TRAIN_BATCH_INIT;
    what.x = &x;
    what.addend = &addend;
    what.row_mask = &row_mask;
    what.target = &target;
    what.flags = batch.accumulate ? SAE_BATCH_ACCUMULATE : 0;
    sae_train_stats stats = SAE_TRAIN_STATS_INIT;
    sae_error *error = nullptr;
    const sae_status status = sae_train_step(trainer_.get(), run, &what, &stats, &error);
    return detail::finish(status, error, stats);
  }

  /// What the run is, and how far it has come.
  [[nodiscard]] Outcome<sae_train_progress> progress() {
    sae_train_progress progress = SAE_TRAIN_PROGRESS_INIT;
    sae_error *error = nullptr;
    const sae_status status = sae_trainer_progress(trainer_.get(), &progress, &error);
    return detail::finish(status, error, progress);
  }

  /// Saves a checkpoint into a directory.
  Outcome<> save(const std::string &dir) {
    sae_error *error = nullptr;
    const sae_status status = sae_trainer_save(trainer_.get(), dir.c_str(), &error);
    return detail::finish(status, error);
  }

  /// A model of what was trained so far.
  [[nodiscard]] Outcome<Model> export_model(std::int32_t what = SAE_EXPORT_WEIGHTS) {
    sae_model *made = nullptr;
    sae_error *error = nullptr;
    const sae_status status = sae_trainer_export(trainer_.get(), what, &made, &error);
    return detail::finish(status, error, Model(made));
  }

  [[nodiscard]] sae_trainer *get() const noexcept { return trainer_.get(); }

 private:
  explicit Trainer(sae_trainer *trainer) : trainer_(trainer) {}
  detail::Owner<sae_trainer, sae_trainer_free> trainer_;
};

}  // inline namespace
}  // namespace sae

#endif  // SAE_HPP
