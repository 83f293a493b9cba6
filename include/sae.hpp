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

#include <array>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
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
    Error taken(error ? sae_error_status(error) : status, error ? sae_error_message(error) : sae_status_name(status));
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

/// Calls a C function, whose last argument takes the error.
template <class Function, class... Args>
Outcome<> call(Function function, Args... args) {
  sae_error *error = nullptr;
  const sae_status status = function(args..., &error);
  return finish(status, error);
}

/// Calls a C function that fills in `value` before the error.
template <class T, class Function, class... Args>
Outcome<T> fill(T value, Function function, Args... args) {
  sae_error *error = nullptr;
  const sae_status status = function(args..., &value, &error);
  return finish(status, error, value);
}

/// Calls a C function that makes a handle; T owns it.
template <class T, class Handle, class Function, class... Args>
Outcome<T> make(Function function, Args... args) {
  Handle *made = nullptr;
  sae_error *error = nullptr;
  const sae_status status = function(args..., &made, &error);
  return finish(status, error, T(made));
}

/// Owns a handle of the C functions: moves, and does not copy.
template <class T, void (*free)(T *)>
class Handle {
 public:
  /// Takes over a handle.
  explicit Handle(T *handle) noexcept : handle_(handle) {}

  /// For the C functions.
  [[nodiscard]] T *get() const noexcept { return handle_.get(); }
  /// Gives the handle away: whoever gets it frees it.
  [[nodiscard]] T *release() noexcept { return handle_.release(); }

 private:
  struct Free {
    void operator()(T *handle) const noexcept { free(handle); }
  };
  std::unique_ptr<T, Free> handle_;
};

}  // namespace detail

// ---- Views -----------------------------------------------------------------------------------------------------------

/// A view of an array: of a list `{a, b}`, and of whatever has `data()` and `size()`, such as std::vector, std::array and
/// std::span. T is const where it is to read.
template <class T>
class Span {
 public:
  Span() = default;
  Span(T *data, std::size_t size) noexcept : data_(data), size_(size) {}
  template <std::size_t n>
  Span(T (&array)[n]) noexcept : data_(array), size_(n) {}
  template <class C, class = std::enable_if_t<std::is_convertible_v<decltype(std::declval<C &>().data()), T *>>>
  Span(C &&container) noexcept : data_(container.data()), size_(container.size()) {}
  /// Lives no longer than the list, which is to the end of the call that it is written in.
  Span(std::initializer_list<std::remove_const_t<T>> list) noexcept : Span(list.begin(), list.size()) {}

  [[nodiscard]] T *data() const noexcept { return data_; }
  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  [[nodiscard]] T *begin() const noexcept { return data_; }
  [[nodiscard]] T *end() const noexcept { return data_ + size_; }
  [[nodiscard]] T &operator[](std::size_t i) const noexcept { return data_[i]; }

 private:
  T *data_ = nullptr;
  std::size_t size_ = 0;
};

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

/// A tensor to read: a vector `[length]`, a matrix `[rows, cols]` whose rows start `stride` elements apart, or a block
/// `[tokens, layers, d]`, as crosscoders take it.
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
  Tensor(const void *data, sae_dtype dtype, std::int64_t length) : Tensor(data, dtype, 1, Dimensions{length}, Dimensions{1}) {}
  Tensor(const void *data, sae_dtype dtype, std::int64_t rows, std::int64_t cols, std::int64_t stride)
      : Tensor(data, dtype, 2, Dimensions{rows, cols}, Dimensions{stride == 0 ? cols : stride, 1}) {}

  /// A vector of everything that has `data()` and `size()`.
  template <class C, class T = std::remove_cv_t<std::remove_pointer_t<decltype(std::declval<const C &>().data())>>>
  Tensor(const C &container) : Tensor(container.data(), static_cast<std::int64_t>(container.size())) {}

  /// `[tokens, layers, d]`, whose tokens and layers start so many elements apart; 0, 0: no gaps.
  template <class T>
  [[nodiscard]] static Tensor block(const T *data, std::int64_t tokens, std::int64_t layers, std::int64_t d,
                                    std::int64_t token_stride = 0, std::int64_t layer_stride = 0) {
    return block(data, dtype_of<T>(), tokens, layers, d, token_stride, layer_stride);
  }
  [[nodiscard]] static Tensor block(const void *data, sae_dtype dtype, std::int64_t tokens, std::int64_t layers,
                                    std::int64_t d, std::int64_t token_stride = 0, std::int64_t layer_stride = 0) {
    const std::int64_t layer_step = layer_stride == 0 ? d : layer_stride;
    const std::int64_t token_step = token_stride == 0 ? layers * layer_step : token_stride;
    return {data, dtype, 3, Dimensions{tokens, layers, d}, Dimensions{token_step, layer_step, 1}};
  }

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
      tensor.shape = const_cast<std::int64_t *>(shape_.data());
      tensor.strides = const_cast<std::int64_t *>(strides_.data());
    }
    return tensor;
  }

 private:
  using Dimensions = std::array<std::int64_t, 3>;

  Tensor(const void *data, sae_dtype dtype, std::int32_t ndim, Dimensions shape, Dimensions strides)
      : shape_(shape), strides_(strides) {
    tensor_.data = const_cast<void *>(data);
    tensor_.device = {SAE_DEVICE_CPU, 0};
    tensor_.ndim = ndim;
    tensor_.dtype = dtype;
  }

  sae_tensor tensor_{};
  Dimensions shape_{};
  Dimensions strides_{};
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

  /// `[tokens, layers, d]`, whose tokens and layers start so many elements apart; 0, 0: no gaps.
  template <class T, class = std::enable_if_t<!std::is_const_v<T>>>
  [[nodiscard]] static TensorMut block(T *data, std::int64_t tokens, std::int64_t layers, std::int64_t d,
                                       std::int64_t token_stride = 0, std::int64_t layer_stride = 0) {
    return block(data, dtype_of<T>(), tokens, layers, d, token_stride, layer_stride);
  }
  [[nodiscard]] static TensorMut block(void *data, sae_dtype dtype, std::int64_t tokens, std::int64_t layers, std::int64_t d,
                                       std::int64_t token_stride = 0, std::int64_t layer_stride = 0) {
    TensorMut made;
    static_cast<Tensor &>(made) = Tensor::block(data, dtype, tokens, layers, d, token_stride, layer_stride);
    return made;
  }

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
/// The same edit, of tokens on which the latent is active alone.
[[nodiscard]] inline sae_edit only_active(sae_edit edit) noexcept {
  edit.flags |= SAE_EDIT_ONLY_ACTIVE;
  return edit;
}
/// The same edit, changing the activation by at most `limit`.
[[nodiscard]] inline sae_edit limited(sae_edit edit, float limit) noexcept {
  edit.limit = limit;
  return edit;
}

// ---- How a call runs -------------------------------------------------------------------------------------------------

/// How one call runs, to be written where a call takes `const sae_run *`: `session.encode(x, out, sae::Run().fast())`.
class Run {
 public:
  /// Scores may differ from one device to another.
  Run &fast() noexcept { return flag(SAE_RUN_FAST); }
  /// Features by index instead of strongest first.
  Run &order_index() noexcept { return flag(SAE_RUN_ORDER_INDEX); }
  /// x + addend is rounded to x's type.
  Run &round_sum() noexcept { return flag(SAE_RUN_ROUND_SUM); }
  /// On the host's stream.
  Run &on_stream(void *stream) noexcept {
    run_.stream_kind = SAE_STREAM_HOST;
    run_.stream = stream;
    return *this;
  }
  /// The call returns when the work is done.
  Run &synchronous() noexcept {
    run_.stream_kind = SAE_STREAM_SYNCHRONOUS;
    return *this;
  }
  /// In the host's working memory.
  Run &in(void *workspace, std::size_t size) noexcept {
    run_.workspace = workspace;
    run_.workspace_size = size;
    return *this;
  }

  operator const sae_run *() const noexcept { return &run_; }

 private:
  Run &flag(std::uint32_t flag) noexcept {
    run_.flags |= flag;
    return *this;
  }
  sae_run run_ = SAE_RUN_INIT;
};

// ---- The library -----------------------------------------------------------------------------------------------------

/// The release of the library that is loaded, such as "0.1.0".
[[nodiscard]] inline const char *version() noexcept { return sae_version(); }

/// The ABI of the library that is loaded; compare with `SAE_ABI_VERSION`.
[[nodiscard]] inline std::uint32_t abi_version() noexcept { return sae_abi_version(); }

/// A format of files that is read, and whether models are saved in it too.
struct Format {
  const char *name;
  bool writes;
};

/// All formats.
[[nodiscard]] inline std::vector<Format> formats() {
  std::vector<Format> all;
  std::int32_t writes = 0;
  while (const char *name = sae_format_name(all.size(), &writes)) all.push_back({name, writes != 0});
  return all;
}

/// The instruction sets that this machine runs, slowest first.
[[nodiscard]] inline std::vector<const char *> kernels() {
  std::vector<const char *> all;
  while (const char *name = sae_kernels_name(all.size())) all.push_back(name);
  return all;
}

/// Has `listener(level, text)` hear everything up to `level`, for the whole process and for good; it must not throw, and is
/// called from whatever thread has something to say. The text is a `std::string_view` that lives as long as the call.
template <class Listener>
Outcome<> log_to(std::int32_t level, Listener listener) {
  auto owned = std::make_unique<Listener>(std::move(listener));
  const auto hear = [](std::int32_t said, const char *text, std::size_t length, void *context) noexcept {
    (*static_cast<Listener *>(context))(said, std::string_view(text, length));
  };
  sae_error *error = nullptr;
  const sae_status status = sae_log_set(hear, level, owned.get(), &error);
  if (status == SAE_OK) (void)owned.release();
  return detail::finish(status, error);
}

// ---- Threads ---------------------------------------------------------------------------------------------------------

/// Threads that sessions and trainers may share.
class Pool : public detail::Handle<sae_pool, sae_pool_free> {
 public:
  using Handle::Handle;

  /// Threads of the library's own; 0: one per core.
  [[nodiscard]] static Outcome<Pool> create(std::int32_t threads) {
    return detail::make<Pool, sae_pool>(sae_pool_create, threads);
  }

  /// The host's threads, through its own parallel loop.
  [[nodiscard]] static Outcome<Pool> from_host(std::int32_t threads, sae_parallel_for parallel_for, void *context) {
    return detail::make<Pool, sae_pool>(sae_pool_from_host, threads, parallel_for, context);
  }

  [[nodiscard]] std::int32_t threads() const noexcept { return sae_pool_threads(get()); }
};

// ---- Models ----------------------------------------------------------------------------------------------------------

/// A weight tensor with its name, for `Model::from_weights`.
struct NamedTensor {
  const char *name;
  Tensor tensor;
};

/// An SAE: immutable, usable by any number of threads. Sessions keep what they need of it.
class Model : public detail::Handle<sae_model, sae_model_free> {
 public:
  using Handle::Handle;

  [[nodiscard]] static Outcome<Model> load(const std::string &path, const sae_load_options *options = nullptr) {
    return detail::make<Model, sae_model>(sae_model_load, path.c_str(), options);
  }

  [[nodiscard]] static Outcome<Model> from_weights(const sae_model_desc &desc, Span<const NamedTensor> weights,
                                                   const sae_load_options *options = nullptr) {
    std::vector<sae_named_tensor> named;
    for (const NamedTensor &weight : weights) named.push_back({weight.name, weight.tensor.c()});
    return detail::make<Model, sae_model>(sae_model_from_weights, &desc, named.data(), named.size(), options);
  }

  /// What loading would need.
  [[nodiscard]] static Outcome<sae_memory> memory(const std::string &path, const sae_load_options *options = nullptr) {
    return detail::fill<sae_memory>(SAE_MEMORY_INIT, sae_model_memory, path.c_str(), options);
  }

  Outcome<> save(const std::string &path, const sae_save_options *options = nullptr) const {
    return detail::call(sae_model_save, get(), path.c_str(), options);
  }

  /// What the model is; its texts live as long as the model.
  [[nodiscard]] Outcome<sae_info> info() const { return detail::fill<sae_info>(SAE_INFO_INIT, sae_model_info, get()); }

  /// Copies rows of `SAE_WEIGHT_…`.
  Outcome<> read(std::int32_t which, std::int64_t first, std::int64_t rows, const TensorMut &out) const {
    const sae_tensor to = out.c();
    return detail::call(sae_model_read, get(), which, first, rows, &to);
  }

  /// The same model with decoder rows of norm 1.
  [[nodiscard]] Outcome<Model> fold_decoder_norms() const {
    return detail::make<Model, sae_model>(sae_model_fold_decoder_norms, get());
  }

  /// The model that takes x as this one takes `x * scale`.
  [[nodiscard]] Outcome<Model> fold_activation_scale(float scale) const {
    return detail::make<Model, sae_model>(sae_model_fold_activation_scale, get(), scale);
  }

  /// The same model keeping another number of latents per token.
  [[nodiscard]] Outcome<Model> with_k(std::int64_t k) const {
    return detail::make<Model, sae_model>(sae_model_with_k, get(), k);
  }

  /// These latents alone, numbered from 0 in their order.
  [[nodiscard]] Outcome<Model> subset(Span<const std::int32_t> ids) const {
    return detail::make<Model, sae_model>(sae_model_subset, get(), ids.data(), ids.size());
  }

  /// The first latents as a model of their own.
  [[nodiscard]] Outcome<Model> prefix(std::int64_t n_latents) const {
    return detail::make<Model, sae_model>(sae_model_prefix, get(), n_latents);
  }

  /// A JumpReLU model of this TopK one, with as many active latents on average over the sample.
  [[nodiscard]] Outcome<Model> with_threshold(const Tensor &sample, const Pool *pool = nullptr) const {
    const sae_tensor x = sample.c();
    return detail::make<Model, sae_model>(sae_model_with_threshold, get(), &x, pool ? pool->get() : nullptr);
  }
};

// ---- Sessions --------------------------------------------------------------------------------------------------------

/// Whom to steer, and where; see `sae_steering`.
struct Steering {
  Tensor row_slot;
  std::optional<FeaturesRef> known;
  Tensor y;
};

/// One stream of work over one model, for one thread at a time.
class Session : public detail::Handle<sae_session, sae_session_free> {
 public:
  using Handle::Handle;

  [[nodiscard]] static Outcome<Session> create(const Model &model, const sae_session_options *options = nullptr) {
    return detail::make<Session, sae_session>(sae_session_create, model.get(), options);
  }

  /// What such a session would need.
  [[nodiscard]] static Outcome<sae_memory> memory(const Model &model, const sae_session_options *options = nullptr) {
    return detail::fill<sae_memory>(SAE_MEMORY_INIT, sae_session_memory, model.get(), options);
  }

  /// Sparse features of each token.
  Outcome<> encode(const Input &input, const FeaturesMut &out, const sae_run *run = nullptr) {
    const sae_tensor x = input.x.c(), addend = input.addend.c();
    const sae_features to = out.c();
    return detail::call(sae_encode, get(), run, &x, &addend, &to);
  }

  /// Activations of the latents `ids` alone, into `out` `[tokens, ids]`.
  Outcome<> encode_selected(const Input &input, const Tensor &ids, const TensorMut &out, const sae_run *run = nullptr) {
    const sae_tensor x = input.x.c(), addend = input.addend.c(), which = ids.c(), to = out.c();
    return detail::call(sae_encode_selected, get(), run, &x, &addend, &which, &to);
  }

  /// All activations or pre-activations (`SAE_DENSE_…`), into `z` `[tokens, n_latents]`.
  Outcome<> encode_dense(const Tensor &input, const TensorMut &z, std::int32_t what = SAE_DENSE_ACTIVATIONS,
                         const sae_run *run = nullptr) {
    const sae_tensor x = input.c(), to = z.c();
    return detail::call(sae_encode_dense, get(), run, &x, what, &to);
  }

  /// Activation vectors from features; `raw` is the input, for models with a skip path.
  Outcome<> decode(const FeaturesRef &features, const TensorMut &x_hat, const Tensor &raw = {},
                   const sae_run *run = nullptr) {
    const sae_features from = features.c();
    const sae_tensor x = raw.c(), to = x_hat.c();
    return detail::call(sae_decode, get(), run, &from, &x, &to);
  }

  /// Encodes and decodes at once.
  Outcome<> reconstruct(const Input &input, const TensorMut &x_hat, const sae_run *run = nullptr) {
    const sae_tensor x = input.x.c(), addend = input.addend.c(), to = x_hat.c();
    return detail::call(sae_reconstruct, get(), run, &x, &addend, nullptr, &to);
  }

  /// Encodes and decodes at once, and tells the features.
  Outcome<> reconstruct(const Input &input, const FeaturesMut &out, const TensorMut &x_hat,
                        const sae_run *run = nullptr) {
    const sae_tensor x = input.x.c(), addend = input.addend.c(), to = x_hat.c();
    const sae_features features = out.c();
    return detail::call(sae_reconstruct, get(), run, &x, &addend, &features, &to);
  }

  /// Replaces the edits of a slot: `session.set_edits(0, {sae::scale(7, 2.0f), sae::ablate(9)})`.
  Outcome<> set_edits(std::int32_t slot, Span<const sae_edit> edits) {
    return detail::call(sae_set_edits, get(), slot, edits.data(), edits.size());
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
    return detail::call(sae_steer, get(), run, &x, &addend, &how);
  }

  /// Features of latent shards into those of the whole.
  Outcome<> merge(Span<const FeaturesRef> parts, const FeaturesMut &out, const sae_run *run = nullptr) {
    sae_features from[SAE_MAX_PARTS];
    for (std::size_t i = 0; i < parts.size() && i < SAE_MAX_PARTS; ++i) from[i] = parts[i].c();
    const sae_features to = out.c();
    return detail::call(sae_features_merge, get(), run, from, parts.size(), &to);
  }

  /// Fails if calls have met indices or slots out of range.
  Outcome<> status() { return detail::call(sae_session_status, get()); }

  /// Waits until everything it was asked for is done, on whatever stream.
  Outcome<> wait() { return detail::call(sae_session_wait, get()); }

  /// The name of the instruction set it uses.
  [[nodiscard]] const char *kernels() const noexcept { return sae_session_kernels(get()); }
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
class Report : public detail::Handle<sae_report, sae_report_free> {
 public:
  using Handle::Handle;

  /// Examines whether activations `x` are what the model expects.
  [[nodiscard]] static Outcome<Report> examine(const Model &model, const Tensor &x, const Examination &how = {}) {
    const sae_tensor from = x.c(), positions = how.positions.c(), target = how.target.c();
    sae_doctor_options options = SAE_DOCTOR_OPTIONS_INIT;
    options.positions = &positions;
    options.target = &target;
    options.baseline = how.baseline ? how.baseline->get() : nullptr;
    options.pool = how.pool ? how.pool->get() : nullptr;
    options.max_rows = how.max_rows;
    return detail::make<Report, sae_report>(sae_doctor, model.get(), &from, &options);
  }

  /// Its numbers.
  [[nodiscard]] Outcome<sae_report_info> info() const {
    return detail::fill<sae_report_info>(SAE_REPORT_INFO_INIT, sae_report_get, get());
  }

  /// Finding `i`, the worst first; its texts live as long as the report.
  [[nodiscard]] Outcome<sae_finding> finding(std::int64_t i) const {
    return detail::fill<sae_finding>(SAE_FINDING_INIT, sae_report_finding, get(), i);
  }

  /// All of it, for people and for programs.
  [[nodiscard]] std::string text() const { return sae_report_text(get()); }
  [[nodiscard]] std::string json() const { return sae_report_json(get()); }
};

// ---- Buffers ---------------------------------------------------------------------------------------------------------

/// Rows on their way into a buffer; see `sae_buffer_rows`.
struct Rows {
  Tensor x;
  Tensor addend;
  Tensor row_mask;
  /// One number for each row of x; NULL: none.
  const std::int64_t *documents = nullptr;
  /// Rows before this one were taken by an earlier push.
  std::int64_t first = 0;
  /// x + addend is rounded to x's type.
  bool round_sum = false;

  Rows(Tensor x_) : x(x_) {}
};

/// Activations that wait to be trained on, mixed as they come. Any thread may push, take and close at any time.
class Buffer : public detail::Handle<sae_buffer, sae_buffer_free> {
 public:
  using Handle::Handle;

  [[nodiscard]] static Outcome<Buffer> create(const sae_buffer_options &options) {
    return detail::make<Buffer, sae_buffer>(sae_buffer_create, &options);
  }

  /// What such a buffer takes, and how many rows it holds.
  [[nodiscard]] static Outcome<sae_buffer_size> memory(const sae_buffer_options &options) {
    return detail::fill<sae_buffer_size>(SAE_BUFFER_SIZE_INIT, sae_buffer_memory, &options);
  }

  /// Goes on from a saved buffer.
  [[nodiscard]] static Outcome<Buffer> restore(const std::string &path, const sae_buffer_options *options = nullptr) {
    return detail::make<Buffer, sae_buffer>(sae_buffer_restore, path.c_str(), options);
  }

  /// Takes rows in, as many as there is room for within the time; tells how many, from `rows.first` on.
  Outcome<std::int64_t> push(const Rows &rows, std::int64_t wait_ms = SAE_WAIT_FOREVER) {
    const sae_tensor x = rows.x.c(), addend = rows.addend.c(), row_mask = rows.row_mask.c();
    sae_buffer_rows what = SAE_BUFFER_ROWS_INIT;
    what.x = &x;
    what.addend = &addend;
    what.row_mask = &row_mask;
    what.documents = rows.documents;
    what.first = rows.first;
    what.flags = rows.round_sum ? SAE_RUN_ROUND_SUM : 0;
    return detail::fill<std::int64_t>(0, sae_buffer_push, get(), &what, wait_ms);
  }

  /// Fills `out` with a batch; tells how many of its rows are in use: 0 if there was none in time, `SAE_BUFFER_END` if
  /// there will be none any more. `documents`, if it is not NULL, has room for a number for each row.
  Outcome<std::int64_t> take(const TensorMut &out, std::int64_t wait_ms = SAE_WAIT_FOREVER,
                             std::int64_t *documents = nullptr) {
    const sae_tensor to = out.c();
    return detail::fill<std::int64_t>(0, sae_buffer_take, get(), &to, documents, wait_ms);
  }

  /// No more rows are taken in; what is held is given to the last.
  Outcome<> close() { return detail::call(sae_buffer_close, get()); }

  /// What became of the rows so far.
  [[nodiscard]] Outcome<sae_buffer_state> stats() const {
    return detail::fill<sae_buffer_state>(SAE_BUFFER_STATE_INIT, sae_buffer_stats, get());
  }

  /// Saves all that decides what comes next, rows included, into a file.
  Outcome<> save(const std::string &path) const { return detail::call(sae_buffer_save, get(), path.c_str()); }
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
class Trainer : public detail::Handle<sae_trainer, sae_trainer_free> {
 public:
  using Handle::Handle;

  [[nodiscard]] static Outcome<Trainer> create(const sae_train_options &options) {
    return detail::make<Trainer, sae_trainer>(sae_trainer_create, &options);
  }

  /// Continues a run from its last checkpoint.
  [[nodiscard]] static Outcome<Trainer> resume(const std::string &dir, const sae_train_options *options = nullptr) {
    return detail::make<Trainer, sae_trainer>(sae_trainer_resume, dir.c_str(), options);
  }

  /// Starts the run from a first sample.
  Outcome<> init_from(const Tensor &sample) {
    const sae_tensor from = sample.c();
    return detail::call(sae_trainer_init_from, get(), &from);
  }

  /// Starts the run from a model.
  Outcome<> warm_start(const Model &model, const Tensor &sample) {
    const sae_tensor from = sample.c();
    return detail::call(sae_trainer_warm_start, get(), model.get(), &from);
  }

  /// Starts a transcoder's run from a first sample of inputs and their targets.
  Outcome<> init_transcoder(const Tensor &sample, const Tensor &target) {
    const sae_tensor from = sample.c(), to = target.c();
    return detail::call(sae_trainer_init_transcoder, get(), &from, &to);
  }

  /// Starts a transcoder's run from a model.
  Outcome<> warm_start_transcoder(const Model &model, const Tensor &sample, const Tensor &target) {
    const sae_tensor from = sample.c(), to = target.c();
    return detail::call(sae_trainer_warm_start_transcoder, get(), model.get(), &from, &to);
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
    return detail::fill<sae_train_stats>(SAE_TRAIN_STATS_INIT, sae_train_step, get(), run, &what);
  }

  /// Learning rates are the schedule's times this from the next step on.
  Outcome<> set_rate(double rate) { return detail::call(sae_trainer_set_rate, get(), rate); }

  /// What the run is, and how far it has come.
  [[nodiscard]] Outcome<sae_train_progress> progress() {
    return detail::fill<sae_train_progress>(SAE_TRAIN_PROGRESS_INIT, sae_trainer_progress, get());
  }

  /// Saves a checkpoint into a directory.
  Outcome<> save(const std::string &dir) { return detail::call(sae_trainer_save, get(), dir.c_str()); }

  /// A model of what was trained so far.
  [[nodiscard]] Outcome<Model> export_model(std::int32_t what = SAE_EXPORT_WEIGHTS) {
    return detail::make<Model, sae_model>(sae_trainer_export, get(), what);
  }
};

// ---- Atlases ---------------------------------------------------------------------------------------------------------

/// A window of tokens around an activation, and the latent's activations on them.
struct Window {
  sae_atlas_window place = SAE_ATLAS_WINDOW_INIT;
  std::vector<std::int32_t> tokens;
  std::vector<float> activations;
};

/// What was seen of each feature, for one thread at a time.
class Atlas : public detail::Handle<sae_atlas, sae_atlas_free> {
 public:
  using Handle::Handle;

  [[nodiscard]] static Outcome<Atlas> create(const sae_atlas_options &options) {
    return detail::make<Atlas, sae_atlas>(sae_atlas_create, &options);
  }

  /// The most bytes that such an atlas ever takes.
  [[nodiscard]] static Outcome<std::uint64_t> memory(const sae_atlas_options &options) {
    return detail::fill<std::uint64_t>(0, sae_atlas_memory, &options);
  }

  /// A saved atlas, unless it takes more than so many bytes; 0: 8 GiB.
  [[nodiscard]] static Outcome<Atlas> load(const std::string &path, std::uint64_t max_bytes = 0) {
    return detail::make<Atlas, sae_atlas>(sae_atlas_load, path.c_str(), max_bytes);
  }

  /// Watches tokens `[T]` and their features; `documents` and `positions`, unless NULL, are T numbers.
  Outcome<> observe(const FeaturesRef &features, const Tensor &tokens, const std::int64_t *documents = nullptr,
                    const std::int64_t *positions = nullptr) {
    const sae_features from = features.c();
    const sae_tensor of = tokens.c();
    return detail::call(sae_atlas_observe, get(), &from, &of, documents, positions);
  }

  /// Ends all documents.
  Outcome<> finish() { return detail::call(sae_atlas_finish, get()); }

  /// Adds what another has seen, of other documents.
  Outcome<> merge(const Atlas &other) { return detail::call(sae_atlas_merge, get(), other.get()); }

  /// Ends all documents, and saves.
  Outcome<> save(const std::string &path) { return detail::call(sae_atlas_save, get(), path.c_str()); }

  /// What it is, and has seen.
  [[nodiscard]] Outcome<sae_atlas_info> info() const {
    return detail::fill<sae_atlas_info>(SAE_ATLAS_INFO_INIT, sae_atlas_get, get());
  }

  /// The numbers of a latent.
  [[nodiscard]] Outcome<sae_atlas_feature> feature(std::int64_t latent) const {
    return detail::fill<sae_atlas_feature>(SAE_ATLAS_FEATURE_INIT, sae_atlas_read, get(), latent);
  }

  /// The `index`th window of a latent, of the kind `SAE_WINDOWS_…`.
  [[nodiscard]] Outcome<Window> window(std::int64_t latent, std::int32_t kind, std::int64_t index) const {
    Window found;
    sae_atlas_info info = SAE_ATLAS_INFO_INIT;
    sae_error *error = nullptr;
    sae_status status = sae_atlas_get(get(), &info, &error);
    if (status == SAE_OK) {
      found.tokens.resize(static_cast<std::size_t>(info.max_window));
      found.activations.resize(static_cast<std::size_t>(info.max_window));
      status = sae_atlas_read_window(get(), latent, kind, index, &found.place, found.tokens.data(),
                                     found.activations.data(), &error);
      found.tokens.resize(static_cast<std::size_t>(found.place.length));
      found.activations.resize(static_cast<std::size_t>(found.place.length));
    }
    return detail::finish(status, error, std::move(found));
  }
};

}  // inline namespace
}  // namespace sae

#endif  // SAE_HPP
