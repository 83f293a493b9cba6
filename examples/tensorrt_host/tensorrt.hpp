// The part of TensorRT 10's plugin interface that an SAE meets, with its names and calling rules: to build and try a plugin where
// there is no TensorRT. A plugin that is compiled against this compiles against NvInferRuntime.h and cuda_runtime_api.h, but for
// the methods that only describe it to the builder, which are left out.
#pragma once

#include <cstddef>
#include <cstdint>

using cudaStream_t = void *;

namespace nvinfer1 {

enum class DataType : std::int32_t { kFLOAT = 0, kHALF = 1, kINT32 = 3, kBF16 = 7 };

struct Dims {
  static constexpr std::int32_t MAX_DIMS = 8;
  std::int32_t nbDims;
  std::int64_t d[MAX_DIMS];
};

struct PluginTensorDesc {
  Dims dims;
  DataType type;
};

/// What the builder knows of a tensor: its dimensions now, and the most of each.
struct DynamicPluginTensorDesc {
  PluginTensorDesc desc;
  Dims max;
};

class IPluginResourceContext;

class IPluginV3 {
 public:
  virtual ~IPluginV3() = default;
};

/// At build time: how much working memory `enqueue` gets, from the largest shapes.
class IPluginV3OneBuild {
 public:
  virtual ~IPluginV3OneBuild() = default;
  virtual std::size_t getWorkspaceSize(const DynamicPluginTensorDesc *inputs, std::int32_t nbInputs,
                                       const DynamicPluginTensorDesc *outputs, std::int32_t nbOutputs) const noexcept = 0;
};

/// At run time. `enqueue` may neither throw nor wait, must leave its inputs alone, and finds its working memory in any state;
/// 0 is success.
class IPluginV3OneRuntime {
 public:
  virtual ~IPluginV3OneRuntime() = default;
  virtual std::int32_t onShapeChange(const PluginTensorDesc *in, std::int32_t nbInputs, const PluginTensorDesc *out,
                                     std::int32_t nbOutputs) noexcept = 0;
  virtual std::int32_t enqueue(const PluginTensorDesc *inputDesc, const PluginTensorDesc *outputDesc,
                               const void *const *inputs, void *const *outputs, void *workspace,
                               cudaStream_t stream) noexcept = 0;
  /// A plugin of its own for an execution context: contexts run at the same time.
  virtual IPluginV3 *attachToContext(IPluginResourceContext *context) noexcept = 0;
};

}  // namespace nvinfer1
