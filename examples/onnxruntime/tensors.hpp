// ONNX Runtime's values as the library's tensors: the last dimension is the vector, all before it are tokens.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "lanes.hpp"

namespace adapter {

using Shape = std::vector<std::int64_t>;

template <ONNXTensorElementDataType type>
constexpr sae_dtype dtype() {
  static_assert(type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT || type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 || type == ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16);
  if constexpr (type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) return {SAE_DTYPE_FLOAT, 32, 1};
  if constexpr (type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16) return {SAE_DTYPE_FLOAT, 16, 1};
  return {SAE_DTYPE_BFLOAT, 16, 1};
}

inline Shape shape_of(const Ort::ConstValue &value) { return value.GetTensorTypeAndShapeInfo().GetShape(); }

inline std::int64_t product(const Shape &shape) {
  std::int64_t all = 1;
  for (const std::int64_t size : shape) all *= size;
  return all;
}

// The dimensions of the tokens.
inline Shape tokens_of(Shape shape, const char *name) {
  if (shape.empty()) throw std::invalid_argument(std::string(name) + ": expected at least one dimension, [..., d], found a scalar");
  shape.pop_back();
  return shape;
}

inline Shape with(Shape shape, std::int64_t last) {
  shape.push_back(last);
  return shape;
}

inline void expect_shape(const Ort::ConstValue &value, const Shape &expected, const char *name) {
  const auto text = [](const Shape &shape) {
    std::string all = "[";
    for (std::size_t i = 0; i < shape.size(); i++) all += (i ? ", " : "") + std::to_string(shape[i]);
    return all + "]";
  };
  if (const Shape found = shape_of(value); found != expected) throw std::invalid_argument(std::string(name) + ": expected shape " + text(expected) + ", found " + text(found));
}

// An input as a matrix of as many columns, on the device where the node runs.
inline sae::Tensor matrix(const Ort::ConstValue &value, sae_dtype type, sae_device device) {
  const Shape shape = shape_of(value);
  const std::int64_t cols = shape.empty() ? 1 : shape.back();
  const std::int64_t rows = product(tokens_of(shape, "x"));
  return sae::Tensor(value.GetTensorRawData(), type, rows, cols, 0).on(device);
}

inline sae::Tensor vector(const Ort::ConstValue &value, sae_dtype type, sae_device device) {
  return sae::Tensor(value.GetTensorRawData(), type, product(shape_of(value))).on(device);
}

inline sae::TensorMut matrix(Ort::UnownedValue value, sae_dtype type, const Shape &shape, sae_device device) {
  Shape tokens = shape;
  tokens.pop_back();
  return sae::TensorMut(value.GetTensorMutableRawData(), type, product(tokens), shape.back(), 0).on(device);
}

inline sae::TensorMut vector(Ort::UnownedValue value, sae_dtype type, const Shape &shape, sae_device device) {
  return sae::TensorMut(value.GetTensorMutableRawData(), type, product(shape)).on(device);
}

}  // namespace adapter
