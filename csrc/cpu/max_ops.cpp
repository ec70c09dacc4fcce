// The CPU bodies of the operators of a squeeze with the maximum.
#include "arguments.h"
#include "max_kernels.h"
#include "norm.h"

namespace se_fused::cpu {
namespace {

// Two results of each channel, [N, C] each; body(tile's start, rows, out, stride) finds a tile's, and
// combine(term, a, b) joins those of two.
template <class T, class Body, class Combine>
std::tuple<Tensor, Tensor> reduce(
    const Tensor& x, const Shape& s, const Matrix& m, const Body& body, const Combine& combine) {
  using A = acc_t<T>;
  const int64_t planes = s.samples * s.channels;
  auto found = scratch<A>(2 * planes);
  sum_terms_of_tiles<A>(s, m, 2, found.get(), body, combine);
  Tensor first = per_sample<T>(x, s.channels), second = per_sample<T>(x, s.channels);
  std::copy_n(found.get(), planes, write<A>(first));
  std::copy_n(found.get() + planes, planes, write<A>(second));
  return std::make_tuple(first, second);
}

std::tuple<Tensor, Tensor> squeeze_max(const Tensor& x) {
  return with_type(x, [&](auto type) {
    using T = decltype(type);
    using A = acc_t<T>;
    const Shape s = shape_of(x);
    const Matrix matrix(s);
    const MaxKernels<T>& k = max_kernels<T>();
    const auto kernel = s.channels_last ? k.column_squeeze : k.row_squeeze;
    const T* data = read<T>(x);
    auto result = reduce<T>(
        x, s, matrix,
        [&](const TileStart& start, int64_t rows, A* out, int64_t stride) {
          kernel(data + start.element, rows, matrix.cols, out, stride);
        },
        [](int64_t term, A a, A b) { return term == 0 ? a + b : a > b || a != a ? a : b; });
    A* mean = write<A>(std::get<0>(result));
    for (int64_t i = 0; i < s.samples * s.channels; ++i) mean[i] /= static_cast<A>(s.positions);
    return result;
  });
}

std::tuple<Tensor, Tensor> gate_gradient_max(
    const Tensor& dy, const Tensor& x, const Tensor& m) {
  return with_type(x, [&](auto type) {
    using T = decltype(type);
    using A = acc_t<T>;
    const Shape s = shape_of(x);
    const Matrix matrix(s);
    const MaxKernels<T>& k = max_kernels<T>();
    const auto kernel = s.channels_last ? k.column_sums : k.row_sums;
    const T *dys = read<T>(dy, s.size()), *xs = read<T>(x);
    const A* ms = read<A>(m, s.samples * s.channels);
    return reduce<T>(
        x, s, matrix,
        [&](const TileStart& start, int64_t rows, A* out, int64_t stride) {
          kernel(
              dys + start.element, xs + start.element, ms + start.sample_channel, rows,
              matrix.cols, out, stride);
        },
        [](int64_t, A a, A b) { return a + b; });
  });
}

Tensor rescale_backward_max(
    const Tensor& dy, const Tensor& x, const Tensor& g, const Tensor& share, const Tensor& m,
    const Tensor& peak) {
  return with_type(x, [&](auto type) {
    using T = decltype(type);
    using A = acc_t<T>;
    const Shape s = shape_of(x);
    const Matrix matrix(s);
    const MaxKernels<T>& k = max_kernels<T>();
    const auto kernel = s.channels_last ? k.column_backward : k.row_backward;
    const int64_t planes = s.samples * s.channels;
    Tensor dx = map_like<T>(x);
    const MaxBackward<T> whole{
        read<T>(dy, s.size()), read<T>(x),           read<A>(g, planes), read<A>(share, planes),
        read<A>(m, planes),    read<A>(peak, planes), write<T>(dx)};
    const bool past = past_caches(3 * s.bytes<T>());
    for_tiles_backwards(s, matrix, [&](const TileStart& start, int64_t rows) {
      kernel(whole.at(start), rows, matrix.cols, past);
    });
    return dx;
  });
}

}  // namespace
}  // namespace se_fused::cpu

STABLE_TORCH_LIBRARY_IMPL(se_fused_cpp, CPU, m) {
  m.impl("squeeze_max", TORCH_BOX(&se_fused::cpu::squeeze_max));
  m.impl("gate_gradient_max", TORCH_BOX(&se_fused::cpu::gate_gradient_max));
  m.impl("rescale_backward_max", TORCH_BOX(&se_fused::cpu::rescale_backward_max));
}
