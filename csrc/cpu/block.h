// The block on the CPU, forward and backward: sample by sample, so that the second phase finds the
// sample in cache; with few samples, phase by phase with threads inside the samples.
#pragma once

#include "map.h"

namespace se_fused::cpu {

// Bytes of feature map that a group of samples may fill and still be found in cache.
constexpr int64_t group_bytes = 700 << 10;

// Samples that one thread takes through both phases together: weights are read once a group.
inline int64_t group_size(const Shape& s, int64_t bytes_per_sample) {
  const int64_t fitting = group_bytes / std::max<int64_t>(1, bytes_per_sample);
  return std::clamp<int64_t>(fitting, 1, 8);
}

// Whether threads get whole samples. Otherwise some would idle: they share each sample.
inline bool by_sample(const Shape& s) {
  const int64_t threads = torch::stable::get_num_threads();
  return s.size() < serial_below || s.samples % threads == 0 || s.samples >= 8 * threads;
}

template <class T>
void mean(const Shape& s, const T* x, acc_t<T>* z) {
  using A = acc_t<T>;
  const Kernels<T>& k = kernels<T>();
  sum_tiles<A>(
      s, z, [&](int64_t at, int64_t rows, int64_t cols, A* out) { k.row_sums(x + at, rows, cols, out); },
      [&](int64_t at, int64_t rows, int64_t cols, A* out) { k.column_sums(x + at, rows, cols, out); });
  for (int64_t i = 0; i < s.samples * s.channels; ++i) z[i] /= static_cast<A>(s.positions);
}

template <class T>
void gate_gradient(const Shape& s, const T* dy, const T* x, acc_t<T>* dg) {
  using A = acc_t<T>;
  const Kernels<T>& k = kernels<T>();
  sum_tiles<A>(
      s, dg,
      [&](int64_t at, int64_t rows, int64_t cols, A* out) {
        k.row_dots(dy + at, x + at, rows, cols, out);
      },
      [&](int64_t at, int64_t rows, int64_t cols, A* out) {
        k.column_dots(dy + at, x + at, rows, cols, out);
      });
}

template <class T>
void scale_map(const Shape& s, const T* x, const acc_t<T>* g, T* y) {
  const Kernels<T>& k = kernels<T>();
  const auto kernel = s.channels_last ? k.column_scale : k.row_scale;
  for_tiles(s, [&](int64_t at, int64_t gate, int64_t rows, int64_t cols) {
    kernel(x + at, g + gate, y + at, rows, cols);
  });
}

template <class T>
void block_forward(
    const Shape& s, const Excitation<acc_t<T>>& e, const T* x, T* y, acc_t<T>* z, acc_t<T>* g) {
  using A = acc_t<T>;
  const Kernels<T>& k = kernels<T>();
  const int64_t size = s.sample_size();
  if (!by_sample(s)) {
    mean(s, x, z);
    auto h = scratch<A>(s.samples * e.hidden);
    k.excite(e, s.samples, z, h.get(), g);
    return scale_map(s, x, g, y);
  }
  const int64_t group = group_size(s, size * sizeof(T));
  parallel(s.samples, s.size(), [&](int64_t begin, int64_t end) {
    auto h = scratch<A>(group * e.hidden);
    for (int64_t first = begin; first < end; first += group) {
      const int64_t last = std::min(first + group, end);
      A *zs = z + first * s.channels, *gs = g + first * s.channels;
      for (int64_t n = first; n < last; ++n) sums(s, x + n * size, z + n * s.channels);
      for (int64_t i = 0; i < (last - first) * s.channels; ++i) zs[i] /= static_cast<A>(s.positions);
      k.excite(e, last - first, zs, h.get(), gs);
      for (int64_t n = first; n < last; ++n)
        scale(s, x + n * size, g + n * s.channels, y + n * size);
    }
  });
}

// What the backward pass of the block reads and writes besides the excitation's weights.
template <class T>
struct Backward {
  using A = acc_t<T>;
  const T *dy, *x;
  const A *z, *g;
  T* dx;
  A *dp1, *h, *dp2;
};

template <class T>
void block_backward(const Shape& s, const Excitation<acc_t<T>>& e, const Backward<T>& b) {
  using A = acc_t<T>;
  const Kernels<T>& k = kernels<T>();
  const int64_t size = s.sample_size(), channels = s.channels;
  // dp1, h, dp2 and dz / M of `count` samples from `first` on, whose dg is given.
  const auto excite_backward = [&](int64_t first, int64_t count, const A* dg, A* shift) {
    const int64_t at = first * channels, hidden_at = first * e.hidden;
    k.excite_backward(
        e, count, dg, b.z + at, b.g + at, b.dp1 + hidden_at, b.h + hidden_at, b.dp2 + at, shift);
    for (int64_t i = 0; i < count * channels; ++i) shift[i] /= static_cast<A>(s.positions);
  };
  if (!by_sample(s)) {
    auto dg = scratch<A>(s.samples * channels), shift = scratch<A>(s.samples * channels);
    gate_gradient(s, b.dy, b.x, dg.get());
    excite_backward(0, s.samples, dg.get(), shift.get());
    const auto kernel = s.channels_last ? k.column_scale_add : k.row_scale_add;
    for_tiles(s, [&](int64_t at, int64_t gate, int64_t rows, int64_t cols) {
      kernel(b.dy + at, b.g + gate, shift.get() + gate, b.dx + at, rows, cols);
    });
    return;
  }
  const int64_t group = group_size(s, 2 * size * sizeof(T));
  parallel(s.samples, s.size(), [&](int64_t begin, int64_t end) {
    auto dg = scratch<A>(group * channels), shift = scratch<A>(group * channels);
    for (int64_t first = begin; first < end; first += group) {
      const int64_t last = std::min(first + group, end);
      for (int64_t n = first; n < last; ++n)
        dots(s, b.dy + n * size, b.x + n * size, dg.get() + (n - first) * channels);
      excite_backward(first, last - first, dg.get(), shift.get());
      for (int64_t n = first; n < last; ++n)
        scale_add(
            s, b.dy + n * size, b.g + n * channels, shift.get() + (n - first) * channels,
            b.dx + n * size);
    }
  });
}

}  // namespace se_fused::cpu
