// Operators of ONNX Runtime over libsae, in the domain "libsae": SaeEncode, SaeDecode and SaeSteer, for the CPU and for CUDA.
// The README says what each takes and gives. A session of the runtime may be run by several threads at once.
#include "tensors.hpp"

namespace adapter {

constexpr sae_dtype f32{SAE_DTYPE_FLOAT, 32, 1}, i32{SAE_DTYPE_INT, 32, 1};
constexpr ONNXTensorElementDataType FLOAT = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, INT32 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;

enum class Where { cpu, cuda };

// Nothing is thrown into the runtime: what went wrong becomes its status.
template <class F>
OrtStatusPtr guarded(F f) noexcept {
  try {
    f();
    return nullptr;
  } catch (const sae::Error &error) {
    return Ort::GetApi().CreateStatus(error.status() == SAE_ERROR_INVALID_ARGUMENT ? ORT_INVALID_ARGUMENT : ORT_FAIL, error.what());
  } catch (const Ort::Exception &error) {
    return Ort::GetApi().CreateStatus(error.GetOrtErrorCode(), error.what());
  } catch (const std::invalid_argument &error) {
    return Ort::GetApi().CreateStatus(ORT_INVALID_ARGUMENT, error.what());
  } catch (const std::exception &error) {
    return Ort::GetApi().CreateStatus(ORT_FAIL, error.what());
  }
}

std::int64_t attribute(const Ort::ConstKernelInfo &info, const char *name, std::int64_t otherwise) {
  std::int64_t value = otherwise;
  if (Ort::Status(Ort::GetApi().KernelInfoGetAttribute_int64(info, name, &value)).IsOK()) return value;
  return otherwise;
}

// What the kernels have in common: the model, its sessions, and where they run.
template <Where where>
class Node {
 public:
  explicit Node(const Ort::ConstKernelInfo &info)
      : device_{where == Where::cpu ? SAE_DEVICE_CPU : SAE_DEVICE_CUDA, where == Where::cpu ? 0 : std::int32_t(attribute(info, "device_id", 0))},
        lanes_(model_of(info.GetAttribute<std::string>("model"), device_), {attribute(info, "width", 0), attribute(info, "slots", 1), attribute(info, "edits_per_slot", 16)}) {}

 protected:
  // On CUDA, the runtime's stream.
  sae_run run(OrtKernelContext *context) const {
    sae_run run = SAE_RUN_INIT;
    if constexpr (where == Where::cuda) {
      run.stream_kind = SAE_STREAM_HOST;
      run.stream = Ort::KernelContext(context).GetGPUComputeStream();
    }
    return run;
  }

  sae_device device_;
  Lanes lanes_;
};

// An optional input, absent where the graph leaves it out.
Ort::ConstValue input(const Ort::KernelContext &context, std::size_t index) { return index < context.GetInputCount() ? context.GetInput(index) : Ort::ConstValue{}; }

template <Where where, ONNXTensorElementDataType type>
class EncodeKernel : Node<where> {
 public:
  explicit EncodeKernel(const Ort::ConstKernelInfo &info) : Node<where>(info) {
    const sae_info about = this->lanes_.model().info();
    width_ = attribute(info, "width", 0);
    if (width_ == 0 && about.k == 0) throw std::invalid_argument("SaeEncode: this model has no k; give the attribute width, the most features per token");
    if (width_ == 0) width_ = about.k;
    row_state_width_ = about.row_state_width;
  }

  OrtStatusPtr ComputeV2(OrtKernelContext *raw) {
    return guarded([&] {
      Ort::KernelContext context(raw);
      const Ort::ConstValue x = context.GetInput(0), addend = input(context, 1);
      const Shape tokens = tokens_of(shape_of(x), "x"), wide = with(tokens, width_), state = with(tokens, row_state_width_);
      if (addend) expect_shape(addend, shape_of(x), "addend");
      const sae::Input in(matrix(x, dtype<type>(), this->device_), addend ? matrix(addend, dtype<type>(), this->device_) : sae::Tensor());
      const bool with_state = context.GetOutputCount() > 3;
      sae::TensorMut row_state;
      if (with_state) {
        const Ort::UnownedValue output = context.GetOutput(3, state);
        if (row_state_width_ > 0) row_state = matrix(output, f32, state, this->device_);
      } else if (row_state_width_ > 0) {
        throw std::invalid_argument("SaeEncode: decoding this model needs what encoding found of each token; name the fourth output, row_state");
      }
      const sae::FeaturesMut out(matrix(context.GetOutput(0, wide), f32, wide, this->device_), matrix(context.GetOutput(1, wide), i32, wide, this->device_),
                                 vector(context.GetOutput(2, tokens), i32, tokens, this->device_), row_state);
      const sae_run run = this->run(raw);
      typename Lanes::Taken lane(this->lanes_, product(tokens), raw);
      lane->session().encode(in, out, &run);
    });
  }

 private:
  std::int64_t width_ = 0, row_state_width_ = 0;
};

template <Where where, ONNXTensorElementDataType type>
class DecodeKernel : Node<where> {
 public:
  explicit DecodeKernel(const Ort::ConstKernelInfo &info) : Node<where>(info), d_out_(this->lanes_.model().info().d_out) {}

  OrtStatusPtr ComputeV2(OrtKernelContext *raw) {
    return guarded([&] {
      Ort::KernelContext context(raw);
      const Ort::ConstValue values = context.GetInput(0), indices = context.GetInput(1), counts = context.GetInput(2), row_state = input(context, 3), x = input(context, 4);
      const Shape tokens = tokens_of(shape_of(values), "values"), shape = with(tokens, d_out_);
      expect_shape(indices, shape_of(values), "indices");
      expect_shape(counts, tokens, "counts");
      const sae_device device = this->device_;
      const bool state = row_state && shape_of(row_state).back() > 0;
      const sae::FeaturesRef features{matrix(values, f32, device), matrix(indices, i32, device), vector(counts, i32, device), state ? matrix(row_state, f32, device) : sae::Tensor()};
      const sae_run run = this->run(raw);
      typename Lanes::Taken lane(this->lanes_, product(tokens), raw);
      lane->session().decode(features, matrix(context.GetOutput(0, shape), f32, shape, device), x ? matrix(x, f32, device) : sae::Tensor(), &run);
    });
  }

 private:
  std::int64_t d_out_;
};

template <Where where, ONNXTensorElementDataType type>
class SteerKernel : Node<where> {
 public:
  explicit SteerKernel(const Ort::ConstKernelInfo &info) : Node<where>(info), slots_(attribute(info, "slots", 1)) {}

  OrtStatusPtr ComputeV2(OrtKernelContext *raw) {
    return guarded([&] {
      Ort::KernelContext context(raw);
      const Ort::ConstValue x = context.GetInput(0), row_slot = input(context, 4);
      const Shape shape = shape_of(x), tokens = tokens_of(shape, "x");
      if (row_slot) expect_shape(row_slot, tokens, "row_slot");
      std::vector<std::vector<sae_edit>> edits = this->edits(context);
      sae::Steering steering;
      if (row_slot) steering.row_slot = vector(row_slot, i32, this->device_);
      const sae::TensorMut out = matrix(context.GetOutput(0, shape), dtype<type>(), shape, this->device_);
      const sae_run run = this->run(raw);
      typename Lanes::Taken lane(this->lanes_, product(tokens), raw);
      for (std::size_t slot = 0; slot < edits.size(); slot++) lane->set_edits(std::int32_t(slot), std::move(edits[slot]));
      lane->session().steer(sae::Input(matrix(x, dtype<type>(), this->device_)), steering, out, &run);
    });
  }

 private:
  // The edits of each slot. These inputs are in host memory on CUDA too.
  std::vector<std::vector<sae_edit>> edits(const Ort::KernelContext &context) const {
    const Ort::ConstValue features = context.GetInput(1), ops = context.GetInput(2), strengths = context.GetInput(3), slots = input(context, 5), limits = input(context, 6);
    const Shape shape = shape_of(features);
    if (shape.size() != 1) throw std::invalid_argument("features: expected one dimension, [edits], found " + std::to_string(shape.size()));
    expect_shape(ops, shape, "ops"), expect_shape(strengths, shape, "strengths");
    if (slots) expect_shape(slots, shape, "slots");
    if (limits) expect_shape(limits, shape, "limits");
    std::vector<std::vector<sae_edit>> all(static_cast<std::size_t>(slots_));
    for (std::int64_t i = 0; i < shape[0]; i++) {
      sae_edit edit{};
      edit.feature = features.GetTensorData<std::int32_t>()[i];
      edit.op = ops.GetTensorData<std::int32_t>()[i];
      edit.strength = strengths.GetTensorData<float>()[i];
      if (limits) edit.limit = limits.GetTensorData<float>()[i];
      const std::int32_t slot = slots ? slots.GetTensorData<std::int32_t>()[i] : 0;
      if (slot < 0 || slot >= slots_) throw std::invalid_argument("slots[" + std::to_string(i) + "]: expected 0 to " + std::to_string(slots_ - 1) + " (the attribute slots says how many), found " + std::to_string(slot));
      all[static_cast<std::size_t>(slot)].push_back(edit);
    }
    return all;
  }

  std::int64_t slots_;
};

// ---- What the runtime is told of them --------------------------------------------------------------------------------

struct Argument {
  ONNXTensorElementDataType type;
  bool optional = false, on_host = false;
};

template <class Kernel, class Signature, Where where>
struct Op : Ort::CustomOpBase<Op<Kernel, Signature, where>, Kernel, true> {
  const char *GetName() const { return Signature::name; }
  const char *GetExecutionProviderType() const { return where == Where::cpu ? nullptr : "CUDAExecutionProvider"; }

  std::size_t GetInputTypeCount() const { return std::size(Signature::inputs); }
  ONNXTensorElementDataType GetInputType(std::size_t i) const { return Signature::inputs[i].type; }
  OrtCustomOpInputOutputCharacteristic GetInputCharacteristic(std::size_t i) const { return characteristic(Signature::inputs[i]); }
  OrtMemType GetInputMemoryType(std::size_t i) const { return Signature::inputs[i].on_host ? OrtMemTypeCPUInput : OrtMemTypeDefault; }

  std::size_t GetOutputTypeCount() const { return std::size(Signature::outputs); }
  ONNXTensorElementDataType GetOutputType(std::size_t i) const { return Signature::outputs[i].type; }
  OrtCustomOpInputOutputCharacteristic GetOutputCharacteristic(std::size_t i) const { return characteristic(Signature::outputs[i]); }

  OrtStatusPtr CreateKernelV2(const OrtApi &, const OrtKernelInfo *info, void **kernel) const {
    return guarded([&] { *kernel = std::make_unique<Kernel>(Ort::ConstKernelInfo(info)).release(); });
  }

 private:
  static OrtCustomOpInputOutputCharacteristic characteristic(const Argument &argument) { return argument.optional ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED; }
};

template <ONNXTensorElementDataType type>
struct Encode {
  static constexpr const char *name = "SaeEncode";
  static constexpr Argument inputs[] = {{type}, {type, true}};                       // x, addend
  static constexpr Argument outputs[] = {{FLOAT}, {INT32}, {INT32}, {FLOAT, true}};  // values, indices, counts, row_state
};

template <ONNXTensorElementDataType type>
struct Decode {
  static constexpr const char *name = "SaeDecode";
  static constexpr Argument inputs[] = {{FLOAT}, {INT32}, {INT32}, {FLOAT, true}, {FLOAT, true}};  // values, indices, counts, row_state, x
  static constexpr Argument outputs[] = {{FLOAT}};                                                 // x_hat
};

template <ONNXTensorElementDataType type>
struct Steer {
  static constexpr const char *name = "SaeSteer";
  // x, features, ops, strengths, row_slot, slots, limits
  static constexpr Argument inputs[] = {{type}, {INT32, false, true}, {INT32, false, true}, {FLOAT, false, true}, {INT32, true}, {INT32, true, true}, {FLOAT, true, true}};
  static constexpr Argument outputs[] = {{type}};
};

template <template <Where, ONNXTensorElementDataType> class Kernel, template <ONNXTensorElementDataType> class Signature, ONNXTensorElementDataType type>
void add(Ort::CustomOpDomain &domain) {
  static const Op<Kernel<Where::cpu, type>, Signature<type>, Where::cpu> cpu;
  static const Op<Kernel<Where::cuda, type>, Signature<type>, Where::cuda> cuda;
  domain.Add(&cpu);
  domain.Add(&cuda);
}

template <ONNXTensorElementDataType type>
void add_for(Ort::CustomOpDomain &domain) {
  add<EncodeKernel, Encode, type>(domain);
  add<SteerKernel, Steer, type>(domain);
}

}  // namespace adapter

extern "C" __attribute__((visibility("default"))) OrtStatus *ORT_API_CALL RegisterCustomOps(OrtSessionOptions *options, const OrtApiBase *base) {
  const OrtApi *api = base->GetApi(ORT_API_VERSION);
  if (api == nullptr) return base->GetApi(1)->CreateStatus(ORT_FAIL, "libsae's operators were built for a newer ONNX Runtime than this one");
  Ort::InitApi(api);
  return adapter::guarded([&] {
    // The runtime keeps pointers to it for as long as the process lives.
    static Ort::CustomOpDomain &domain = *[] {
      auto *made = new Ort::CustomOpDomain("libsae");
      adapter::add_for<ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT>(*made);
      adapter::add_for<ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16>(*made);
      adapter::add_for<ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16>(*made);
      adapter::add<adapter::DecodeKernel, adapter::Decode, adapter::FLOAT>(*made);
      return made;
    }();
    Ort::UnownedSessionOptions(options).Add(domain);
  });
}
