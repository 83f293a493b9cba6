// An SAE as two plugins of a TensorRT engine: one that encodes, and one that steers. Both give new tensors and leave their inputs
// alone, work in the memory that the engine hands them, and on its stream; neither throws.
//
// The model is loaded once and shared. Each execution context has a plugin of its own (`attachToContext`), and with it a session.
#pragma once

#include <cstdio>
#include <memory>
#include <optional>
#include <utility>

#include <sae.hpp>

#include "tensorrt.hpp"

namespace sae_plugins {

using nvinfer1::DataType;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginTensorDesc;

/// The model, and how large calls are: what all plugins of an engine share.
struct Setup {
  std::shared_ptr<const sae::Model> model;
  std::int64_t max_tokens = 0;
  /// Lists of edits that requests can choose from.
  std::int64_t slots = 1;

  /// The engine brings the working memory.
  [[nodiscard]] sae_session_options options() const noexcept {
    sae_session_options options = SAE_SESSION_OPTIONS_INIT;
    options.max_tokens = max_tokens;
    options.slots = slots;
    options.flags = SAE_SESSION_HOST_WORKSPACE;
    return options;
  }
};

/// What both plugins have in common.
class Plugin : public nvinfer1::IPluginV3, public nvinfer1::IPluginV3OneBuild, public nvinfer1::IPluginV3OneRuntime {
 public:
  explicit Plugin(Setup setup) : setup_(std::move(setup)) {}

  std::size_t getWorkspaceSize(const DynamicPluginTensorDesc *, std::int32_t, const DynamicPluginTensorDesc *,
                               std::int32_t) const noexcept override {
    return workspace_size();
  }

  std::int32_t onShapeChange(const PluginTensorDesc *in, std::int32_t nbInputs, const PluginTensorDesc *,
                             std::int32_t) noexcept override {
    return nbInputs > 0 && in[0].dims.nbDims == 2 && in[0].dims.d[0] <= setup_.max_tokens ? 0 : 1;
  }

 protected:
  /// A plugin for a context, whose session is made now: enqueue may not.
  template <class T>
  T *attach() const noexcept {
    return guarded<T *>(nullptr, [&] {
      auto made = std::make_unique<T>(setup_);
      const sae_session_options options = setup_.options();
      made->session_.emplace(sae::Session::create(*setup_.model, &options));
      made->workspace_size_ = workspace_size();
      return made.release();
    });
  }

  /// On the device that the model is on, in the engine's memory and on its stream. (The processor has no streams.)
  [[nodiscard]] sae::Run run(void *workspace, cudaStream_t stream) const noexcept {
    sae::Run run;
    run.in(workspace, workspace_size_);
    if (device().device_type == SAE_DEVICE_CUDA) run.on_stream(stream);
    return run;
  }

  [[nodiscard]] static sae_dtype dtype(DataType type) noexcept {
    switch (type) {
      case DataType::kHALF: return {SAE_DTYPE_FLOAT, 16, 1};
      case DataType::kBF16: return {SAE_DTYPE_BFLOAT, 16, 1};
      case DataType::kINT32: return {SAE_DTYPE_INT, 32, 1};
      default: return {SAE_DTYPE_FLOAT, 32, 1};
    }
  }

  [[nodiscard]] sae::Tensor input(const PluginTensorDesc &desc, const void *data) const {
    const sae::Tensor tensor = desc.dims.nbDims == 1
                                   ? sae::Tensor(data, dtype(desc.type), desc.dims.d[0])
                                   : sae::Tensor(data, dtype(desc.type), desc.dims.d[0], desc.dims.d[1], 0);
    return tensor.on(device());
  }

  [[nodiscard]] sae::TensorMut output(const PluginTensorDesc &desc, void *data) const {
    const sae::TensorMut tensor = desc.dims.nbDims == 1
                                      ? sae::TensorMut(data, dtype(desc.type), desc.dims.d[0])
                                      : sae::TensorMut(data, dtype(desc.type), desc.dims.d[0], desc.dims.d[1], 0);
    return tensor.on(device());
  }

  /// What a call gives, or `otherwise`, with the reason on the error stream, if it fails: an engine takes no exceptions.
  template <class T, class Call>
  static T guarded(T otherwise, Call call) noexcept {
    try {
      return call();
    } catch (const std::exception &error) {
      std::fprintf(stderr, "libsae: %s\n", error.what());
      return otherwise;
    }
  }

  std::optional<sae::Session> session_;

 private:
  [[nodiscard]] sae_device device() const noexcept { return device_; }

  [[nodiscard]] std::size_t workspace_size() const noexcept {
    return guarded<std::size_t>(0, [&] {
      const sae_session_options options = setup_.options();
      return static_cast<std::size_t>(sae::Session::memory(*setup_.model, &options).workspace);
    });
  }

  Setup setup_;
  sae_device device_ = setup_.model->info().device;
  std::size_t workspace_size_ = 0;
};

/// x `[T, d]` → values `[T, width]` f32, indices `[T, width]` i32, counts `[T]` i32.
class Encode final : public Plugin {
 public:
  using Plugin::Plugin;

  nvinfer1::IPluginV3 *attachToContext(nvinfer1::IPluginResourceContext *) noexcept override { return attach<Encode>(); }

  std::int32_t enqueue(const PluginTensorDesc *in, const PluginTensorDesc *out, const void *const *inputs,
                       void *const *outputs, void *workspace, cudaStream_t stream) noexcept override {
    return guarded(1, [&] {
      const sae::FeaturesMut features(output(out[0], outputs[0]), output(out[1], outputs[1]), output(out[2], outputs[2]));
      session_.value().encode(input(in[0], inputs[0]), features, run(workspace, stream));
      return 0;
    });
  }
};

/// x `[T, d]`, slots `[T]` i32 (−1: leave alone) → x steered, `[T, d]`: each row by the edits of its request's slot.
class Steer final : public Plugin {
 public:
  using Plugin::Plugin;

  nvinfer1::IPluginV3 *attachToContext(nvinfer1::IPluginResourceContext *) noexcept override { return attach<Steer>(); }

  /// Between two calls: what a slot does from the next one on. No memory moves, so captured graphs stay good.
  void set_edits(std::int32_t slot, sae::Span<const sae_edit> edits) { session_.value().set_edits(slot, edits); }

  std::int32_t enqueue(const PluginTensorDesc *in, const PluginTensorDesc *out, const void *const *inputs,
                       void *const *outputs, void *workspace, cudaStream_t stream) noexcept override {
    return guarded(1, [&] {
      sae::Steering steering;
      steering.row_slot = input(in[1], inputs[1]);
      session_.value().steer(input(in[0], inputs[0]), steering, output(out[0], outputs[0]), run(workspace, stream));
      return 0;
    });
  }
};

}  // namespace sae_plugins
