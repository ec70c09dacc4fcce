// Tensors of the stable ABI, as the bodies of the operators need them on any device.
#pragma once

#include <optional>
#include <string>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "activations.h"

// The one that passes torch's own message on came after torch 2.11.
#ifdef STABLE_TORCH_ERROR_CODE_CHECK
#define SE_FUSED_TORCH_CHECK STABLE_TORCH_ERROR_CODE_CHECK
#else
#define SE_FUSED_TORCH_CHECK TORCH_ERROR_CODE_CHECK
#endif

namespace se_fused {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// A fresh tensor on x's device. Straight from the C shim: a third of what a call through the
// dispatcher costs.
inline Tensor empty_beside(
    const Tensor& x, const int64_t* sizes, const int64_t* strides, int64_t dims,
    ScalarType dtype) {
  const int32_t code = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  int32_t device_type;
  SE_FUSED_TORCH_CHECK(aoti_torch_get_device_type(x.get(), &device_type));
  AtenTensorHandle handle;
  SE_FUSED_TORCH_CHECK(aoti_torch_empty_strided(
      dims, sizes, strides, code, device_type, x.get_device_index(), &handle));
  return Tensor(handle);
}

// An uninitialised tensor like the map x: its shape, dtype and layout.
inline Tensor empty_map(const Tensor& x) {
  return empty_beside(x, x.sizes().data(), x.strides().data(), x.dim(), x.scalar_type());
}

// [N, width]
inline Tensor empty_per_sample(const Tensor& x, int64_t width, ScalarType dtype) {
  const int64_t sizes[] = {x.size(0), width}, strides[] = {width, 1};
  return empty_beside(x, sizes, strides, 2, dtype);
}

// [K, N, C]
inline Tensor empty_per_plane(const Tensor& x, int64_t terms, ScalarType dtype) {
  const int64_t samples = x.size(0), channels = x.size(1);
  const int64_t sizes[] = {terms, samples, channels};
  const int64_t strides[] = {(samples > 0 ? samples : 1) * channels, channels, 1};
  return empty_beside(x, sizes, strides, 3, dtype);
}

// [size]
inline Tensor vector_beside(const Tensor& x, int64_t size, ScalarType dtype) {
  const int64_t stride = 1;
  return empty_beside(x, &size, &stride, 1, dtype);
}
// In the place of a result that is not wanted.
inline Tensor nothing(const Tensor& x, ScalarType dtype) { return vector_beside(x, 0, dtype); }

inline ScalarType accumulator_dtype(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline int64_t positions_of(const Tensor& x) {
  int64_t positions = 1;
  for (int64_t d = 2; d < x.dim(); ++d) positions *= x.size(d);
  return positions;
}

// The enumerator of a name.
template <class E>
E parse(const std::string& name) {
  for (int i = 0; names_of(E{}, i) != nullptr; ++i)
    if (name == names_of(E{}, i)) return static_cast<E>(i);
  STD_TORCH_CHECK(false, "se_fused: unknown name ", name);
}

}  // namespace se_fused
