// The CPU bodies of the operators of a block with BatchNorm.
#include "arguments.h"
#include "norm.h"

namespace se_fused::cpu {
namespace {

// The [C] arrays of a normalization; where the block has none, those that leave x as it is.
template <class T>
class Norm {
  using A = acc_t<T>;

 public:
  Norm(
      const OptionalTensor& center, const OptionalTensor& scale, const OptionalTensor& shift,
      int64_t channels) {
    if (center) {
      arrays = {read<A>(*center, channels), read<A>(*scale, channels), read<A>(*shift, channels)};
      return;
    }
    none_.assign(2 * channels, A(0));
    std::fill(none_.begin() + channels, none_.end(), A(1));
    arrays = {none_.data(), none_.data() + channels, none_.data()};
  }
  Normalization<A> arrays;

 private:
  std::vector<A> none_;
};

// a [N, C] · b [C] + c [C] (null: nothing)
template <class A>
std::unique_ptr<A[]> scaled(const Shape& s, const A* a, const A* b, const A* c) {
  auto out = scratch<A>(s.samples * s.channels);
  for (int64_t n = 0; n < s.samples; ++n)
    for (int64_t i = 0; i < s.channels; ++i)
      out[n * s.channels + i] = a[n * s.channels + i] * b[i] + (c ? c[i] : A(0));
  return out;
}

template <class T>
const T* read_optional(const OptionalTensor& t, int64_t count) {
  return t ? read<T>(*t, count) : nullptr;
}

const uint8_t* read_mask(const OptionalTensor& mask, const Shape& s, const Matrix& m) {
  if (!mask) return nullptr;
  STD_TORCH_CHECK(
      mask->is_cpu() && mask->scalar_type() == ScalarType::Byte &&
          mask->numel() == s.samples * m.rows_per_sample * m.mask_bytes,
      "se_fused_cpp: the mask has the wrong device, size or dtype");
  return static_cast<const uint8_t*>(mask->const_data_ptr());
}

Tensor nothing(const Tensor& x, ScalarType dtype) {
  const int64_t size = 0, stride = 1;
  return empty_beside(x, &size, &stride, 1, dtype);
}

std::tuple<Tensor, Tensor> moments(const Tensor& x) {
  return with_type(x, [&](auto type) {
    using T = decltype(type);
    using A = acc_t<T>;
    Tensor mean = per_sample<T>(x, x.size(1)), m2 = per_sample<T>(x, x.size(1));
    map_moments(shape_of(x), read<T>(x), write<A>(mean), write<A>(m2));
    return std::make_tuple(mean, m2);
  });
}

Tensor norm_squeeze(
    const Tensor& x, const OptionalTensor& center, const OptionalTensor& scale,
    const OptionalTensor& shift, int64_t act) {
  return with_type(x, [&](auto type) {
    using T = decltype(type);
    using A = acc_t<T>;
    const Shape s = shape_of(x);
    const Matrix m(s);
    const Norm<T> norm(center, scale, shift, s.channels);
    const NormKernels<T>& k = norm_kernels<T>();
    const auto kernel = s.channels_last ? k.column_squeeze : k.row_squeeze;
    const NormSums<T> whole{nullptr, read<T>(x), nullptr, norm.arrays};
    Tensor z = per_sample<T>(x, s.channels);
    A* out = write<A>(z);
    sum_terms_of_tiles<A>(
        s, m, 1, out, [&](const TileStart& start, int64_t rows, A* sums, int64_t stride) {
          kernel(whole.at(start), static_cast<Act>(act), rows, m.cols, sums, stride);
        });
    for (int64_t i = 0; i < s.samples * s.channels; ++i) out[i] /= static_cast<A>(s.positions);
    return z;
  });
}

std::tuple<Tensor, Tensor> norm_rescale(
    const Tensor& x, const OptionalTensor& residual, const OptionalTensor& center,
    const OptionalTensor& scale, const OptionalTensor& shift, const Tensor& g, int64_t act,
    bool relu) {
  return with_type(x, [&](auto type) {
    using T = decltype(type);
    using A = acc_t<T>;
    const Shape s = shape_of(x);
    const Matrix m(s);
    const Norm<T> norm(center, scale, shift, s.channels);
    const NormKernels<T>& k = norm_kernels<T>();
    const auto kernel = s.channels_last ? k.column_rescale : k.row_rescale;
    Tensor y = map_like<T>(x), mask = nothing(x, ScalarType::Byte);
    if (relu) {
      const int64_t sizes[] = {s.samples * m.rows_per_sample, m.mask_bytes};
      const int64_t strides[] = {m.mask_bytes, 1};
      mask = empty_beside(x, sizes, strides, 2, ScalarType::Byte);
    }
    NormRescale<T> whole{
        read<T>(x), read_optional<T>(residual, s.size()), norm.arrays,
        read<A>(g, s.samples * s.channels), write<T>(y), relu ? write<uint8_t>(mask) : nullptr};
    std::unique_ptr<A[]> gated_scale, gated_shift;
    if (static_cast<Act>(act) == Act::identity) {
      gated_scale = scaled<A>(s, whole.g, whole.norm.scale, nullptr);
      gated_shift = scaled<A>(s, whole.g, whole.norm.shift, nullptr);
      whole.norm = {whole.norm.center, gated_scale.get(), gated_shift.get()};
      whole.g = nullptr;
    }
    const bool past = past_caches((residual ? 3 : 2) * s.bytes<T>());
    for_tiles_backwards(s, m, [&](const TileStart& start, int64_t rows) {
      kernel(whole.at(start), static_cast<Act>(act), rows, m.cols, past);
    });
    return std::make_tuple(y, mask);
  });
}

Tensor norm_sums(
    const Tensor& dy, const Tensor& x, const OptionalTensor& mask, const OptionalTensor& center,
    const OptionalTensor& scale, const OptionalTensor& shift, int64_t code) {
  return with_type(x, [&](auto type) {
    using T = decltype(type);
    using A = acc_t<T>;
    const Act act = static_cast<Act>(code);
    const Shape s = shape_of(x);
    const Matrix m(s);
    const Norm<T> norm(center, scale, shift, s.channels);
    const NormKernels<T>& k = norm_kernels<T>();
    const auto kernel = s.channels_last ? k.column_sums : k.row_sums;
    const NormSums<T> whole{
        read<T>(dy, s.size()), read<T>(x), read_mask(mask, s, m), norm.arrays};
    const int64_t sizes[] = {sums_of(act), s.samples, s.channels};
    const int64_t strides[] = {std::max<int64_t>(s.samples, 1) * s.channels, s.channels, 1};
    Tensor sums = empty_beside(x, sizes, strides, 3, dtype_of<A>);
    sum_terms_of_tiles<A>(
        s, m, sums_of(act), write<A>(sums),
        [&](const TileStart& start, int64_t rows, A* out, int64_t stride) {
          kernel(whole.at(start), act, rows, m.cols, out, stride);
        });
    return sums;
  });
}

std::tuple<Tensor, Tensor> norm_rescale_backward(
    const Tensor& dy, const Tensor& x, const OptionalTensor& mask, const OptionalTensor& center,
    const OptionalTensor& scale, const OptionalTensor& shift, const Tensor& g, const Tensor& share,
    const OptionalTensor& slope, const OptionalTensor& offset, int64_t act, bool add) {
  return with_type(x, [&](auto type) {
    using T = decltype(type);
    using A = acc_t<T>;
    const Shape s = shape_of(x);
    const Matrix m(s);
    const Norm<T> norm(center, scale, shift, s.channels);
    const NormKernels<T>& k = norm_kernels<T>();
    const auto kernel = s.channels_last ? k.column_backward : k.row_backward;
    Tensor dx = map_like<T>(x), dr = add ? map_like<T>(x) : nothing(x, dtype_of<T>);
    const A *slopes = read_optional<A>(slope, s.channels);
    const A *offsets = read_optional<A>(offset, s.channels), *scales = norm.arrays.scale;
    const bool is_identity = static_cast<Act>(act) == Act::identity;
    const auto gates = scaled<A>(s, read<A>(g, s.samples * s.channels), scales, nullptr);
    const auto shares = scaled<A>(
        s, read<A>(share, s.samples * s.channels), scales, is_identity ? offsets : nullptr);
    const NormBackward<T> whole{
        read<T>(dy, s.size()), read<T>(x), read_mask(mask, s, m), norm.arrays, gates.get(),
        shares.get(), slopes, offsets, write<T>(dx), add ? write<T>(dr) : nullptr};
    const bool past = past_caches((add ? 4 : 3) * s.bytes<T>());
    for_tiles_backwards(s, m, [&](const TileStart& start, int64_t rows) {
      kernel(whole.at(start), static_cast<Act>(act), rows, m.cols, past);
    });
    return std::make_tuple(dx, dr);
  });
}

}  // namespace
}  // namespace se_fused::cpu

STABLE_TORCH_LIBRARY_IMPL(se_fused_cpp, CPU, m) {
  m.impl("moments", TORCH_BOX(&se_fused::cpu::moments));
  m.impl("norm_squeeze", TORCH_BOX(&se_fused::cpu::norm_squeeze));
  m.impl("norm_rescale", TORCH_BOX(&se_fused::cpu::norm_rescale));
  m.impl("norm_sums", TORCH_BOX(&se_fused::cpu::norm_sums));
  m.impl("norm_rescale_backward", TORCH_BOX(&se_fused::cpu::norm_rescale_backward));
}
