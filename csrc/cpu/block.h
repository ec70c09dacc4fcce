// The block on the CPU, forward and backward: sample by sample, so that the second phase finds the
// sample in cache; with few samples, phase by phase with threads inside the samples.
#pragma once

#include "map.h"

namespace se_fused::cpu {

// Bytes of feature map that a group of samples may fill and still be found in cache.
constexpr int64_t group_bytes = 700 << 10;
// Bytes of feature map that are still in the last-level cache when the second phase comes to them.
constexpr int64_t phase_bytes = 16 << 20;

template <class A>
int64_t weight_bytes(const Excitation<A>& e) {
  return 2 * e.channels * e.hidden * static_cast<int64_t>(sizeof(A));
}

// Samples that one thread takes through both phases together: a group reads the weights once.
template <class A>
int64_t group_size(const Excitation<A>& e, int64_t sample_bytes) {
  if (weight_bytes(e) > sample_bytes) return 8;
  return std::clamp<int64_t>(group_bytes / std::max<int64_t>(1, sample_bytes), 1, 8);
}

// Whether each thread takes whole samples through both phases. Otherwise all go through one phase
// after the other: where samples are too few for the threads, and where the weights outweigh a
// sample of a map that stays in cache anyway, so that every weight is read once by one thread.
template <class A>
bool by_sample(const Shape& s, const Excitation<A>& e, int64_t sample_bytes) {
  if (s.size() < serial_below) return true;
  if (weight_bytes(e) > sample_bytes && s.samples * sample_bytes <= phase_bytes) return false;
  const int64_t threads = torch::stable::get_num_threads();
  return s.samples % threads == 0 || s.samples >= 8 * threads;
}

// body(begin, end) over the outputs of a product of the excitation, split among threads if the
// product has work for them; whole vectors to each.
template <class Body>
void for_outputs(int64_t outputs, int64_t multiplications, const Body& body) {
  constexpr int64_t unit = 16;
  parallel((outputs + unit - 1) / unit, multiplications, [&](int64_t begin, int64_t end) {
    body(begin * unit, std::min(end * unit, outputs));
  });
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
void sum_of_products(const Shape& s, const T* dy, const T* x, acc_t<T>* dg) {
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
  const bool past = past_caches(2 * s.bytes<T>());
  for_tiles(s, [&](int64_t at, int64_t gate, int64_t rows, int64_t cols) {
    kernel(x + at, g + gate, y + at, rows, cols, past);
  });
}

template <class T>
void block_forward(
    const Shape& s, const Excitation<acc_t<T>>& e, const T* x, T* y, acc_t<T>* z, acc_t<T>* g) {
  using A = acc_t<T>;
  const Kernels<T>& k = kernels<T>();
  const int64_t size = s.sample_size(), sample_bytes = size * static_cast<int64_t>(sizeof(T));
  if (!by_sample(s, e, sample_bytes)) {
    auto h = scratch<A>(s.samples * e.hidden);
    const int64_t work = s.samples * e.channels * e.hidden;
    mean(s, x, z);
    for_outputs(e.hidden, work, [&](int64_t begin, int64_t end) {
      k.first_layer(e, s.samples, z, h.get(), begin, end);
      k.activated(e, s.samples, h.get(), h.get(), begin, end);
    });
    for_outputs(e.channels, work, [&](int64_t begin, int64_t end) {
      k.gates(e, s.samples, h.get(), g, begin, end);
    });
    return scale_map(s, x, g, y);
  }
  const int64_t group = group_size(e, sample_bytes);
  parallel(s.samples, s.size(), [&](int64_t begin, int64_t end) {
    auto h = scratch<A>(group * e.hidden);
    for (int64_t first = begin; first < end; first += group) {
      const int64_t count = std::min(group, end - first);
      A *zs = z + first * s.channels, *gs = g + first * s.channels;
      for (int64_t n = 0; n < count; ++n) sums(s, x + (first + n) * size, zs + n * s.channels);
      for (int64_t i = 0; i < count * s.channels; ++i) zs[i] /= static_cast<A>(s.positions);
      k.first_layer(e, count, zs, h.get(), 0, e.hidden);
      k.activated(e, count, h.get(), h.get(), 0, e.hidden);
      k.gates(e, count, h.get(), gs, 0, e.channels);
      for (int64_t n = 0; n < count; ++n)
        scale(s, x + (first + n) * size, gs + n * s.channels, y + (first + n) * size);
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
  const int64_t sample_bytes = 2 * size * static_cast<int64_t>(sizeof(T));
  const A positions = static_cast<A>(s.positions);
  if (!by_sample(s, e, sample_bytes)) {
    auto dg = scratch<A>(s.samples * channels), share = scratch<A>(s.samples * channels);
    const int64_t work = s.samples * channels * e.hidden;
    sum_of_products(s, b.dy, b.x, dg.get());
    k.gate_inputs(e, s.samples, dg.get(), b.g, b.dp2, 0, channels);
    for_outputs(e.hidden, 2 * work, [&](int64_t begin, int64_t end) {
      k.first_layer(e, s.samples, b.z, b.h, begin, end);
      k.hidden_inputs(e, s.samples, b.h, b.dp2, b.h, b.dp1, begin, end);
    });
    for_outputs(channels, work, [&](int64_t begin, int64_t end) {
      k.squeezed(e, s.samples, b.dp1, share.get(), begin, end);
    });
    for (int64_t i = 0; i < s.samples * channels; ++i) share[i] /= positions;
    const auto kernel = s.channels_last ? k.column_scale_add : k.row_scale_add;
    const bool past = past_caches(3 * s.bytes<T>());
    return for_tiles(s, [&](int64_t at, int64_t gate, int64_t rows, int64_t cols) {
      kernel(b.dy + at, b.g + gate, share.get() + gate, b.dx + at, rows, cols, past);
    });
  }
  const int64_t group = group_size(e, sample_bytes);
  parallel(s.samples, s.size(), [&](int64_t begin, int64_t end) {
    auto dg = scratch<A>(group * channels), share = scratch<A>(group * channels);
    for (int64_t first = begin; first < end; first += group) {
      const int64_t count = std::min(group, end - first);
      const T *dys = b.dy + first * size, *xs = b.x + first * size;
      const A *zs = b.z + first * channels, *gs = b.g + first * channels;
      A *dp2s = b.dp2 + first * channels, *hs = b.h + first * e.hidden;
      A* dp1s = b.dp1 + first * e.hidden;
      for (int64_t n = 0; n < count; ++n)
        dots(s, dys + n * size, xs + n * size, dg.get() + n * channels);
      k.gate_inputs(e, count, dg.get(), gs, dp2s, 0, channels);
      k.first_layer(e, count, zs, hs, 0, e.hidden);
      k.hidden_inputs(e, count, hs, dp2s, hs, dp1s, 0, e.hidden);
      k.squeezed(e, count, dp1s, share.get(), 0, channels);
      for (int64_t i = 0; i < count * channels; ++i) share[i] /= positions;
      for (int64_t n = 0; n < count; ++n)
        scale_add(
            s, dys + n * size, gs + n * channels, share.get() + n * channels,
            b.dx + (first + n) * size);
    }
  });
}

}  // namespace se_fused::cpu
