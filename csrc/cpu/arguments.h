// The operators' arguments and results on the CPU: from tensors to pointers, and a switch over
// element types.
#pragma once

#include "../tensors.h"
#include "schedule/passes.h"

namespace se_fused::cpu {

inline Shape shape_of(const Tensor& x) {
  STD_TORCH_CHECK(x.is_cpu() && x.dim() >= 2, "x must be a CPU tensor [N, C, *spatial]");
  return {x.size(0), x.size(1), positions_of(x), !x.is_contiguous()};
}

template <class T>
constexpr ScalarType dtype_of = std::is_same_v<T, double> ? ScalarType::Double
    : std::is_same_v<T, float>                            ? ScalarType::Float
    : std::is_same_v<T, bf16>                             ? ScalarType::BFloat16
                                                          : ScalarType::Half;

template <class T>
const T* read(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}
// The data of a tensor that must have `count` elements of type T.
template <class T>
const T* read(const Tensor& t, int64_t count) {
  STD_TORCH_CHECK(
      t.is_cpu() && t.numel() == count && t.scalar_type() == dtype_of<T>,
      "se_fused: a tensor has the wrong device, size or dtype");
  return read<T>(t);
}
template <class T>
const T* read(const OptionalTensor& t, int64_t count) {
  return t ? read<T>(*t, count) : nullptr;
}
template <class T>
T* write(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

// An output like x, on huge pages if it is large.
template <class T>
Tensor map_like(const Tensor& x) {
  Tensor out = empty_map(x);
  advise_huge_pages(out.mutable_data_ptr(), out.numel() * static_cast<int64_t>(sizeof(T)));
  return out;
}

template <class T>
Tensor per_sample(const Tensor& x, int64_t width) {
  return empty_per_sample(x, width, dtype_of<acc_t<T>>);
}

// [K, N, C]
template <class T>
Tensor per_plane(const Tensor& x, int64_t terms) {
  return empty_per_plane(x, terms, dtype_of<acc_t<T>>);
}

// body(T{}) for the element type of x.
template <class Body>
auto with_type(const Tensor& x, const Body& body) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return body(float{});
    case ScalarType::Double: return body(double{});
    case ScalarType::BFloat16: return body(bf16{});
    case ScalarType::Half: return body(fp16{});
    default: STD_TORCH_CHECK(false, "x must be float64, float32, bfloat16 or float16");
  }
}

}  // namespace se_fused::cpu
