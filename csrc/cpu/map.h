// A feature map as the CPU kernels walk it, in either layout, and the loops that split it.
#pragma once

#include <algorithm>
#include <memory>

#include <torch/csrc/stable/ops.h>

#include "kernels.h"
#include "memory.h"

namespace se_fused::cpu {

struct Shape {
  int64_t samples, channels, positions;
  bool channels_last;

  int64_t sample_size() const { return channels * positions; }
  int64_t size() const { return samples * sample_size(); }
  template <class T>
  int64_t bytes() const {
    return size() * static_cast<int64_t>(sizeof(T));
  }
};

// Elements below which a second thread costs more than it brings.
constexpr int64_t serial_below = 1 << 15;

// body(begin, end) over [0, count), split among threads if the whole work is worth it.
template <class Body>
void parallel(int64_t count, int64_t elements, const Body& body) {
  if (count == 0) return;
  const int64_t threads = torch::stable::get_num_threads();
  if (threads == 1 || count == 1 || elements < serial_below) return body(0, count);
  torch::stable::parallel_for(0, count, (count + threads - 1) / threads, body);
}

template <class A>
std::unique_ptr<A[]> scratch(int64_t count) {
  return std::unique_ptr<A[]>(new A[count]);
}

// Per-channel sums of one whole sample.
template <class T>
void sums(const Shape& s, const T* x, acc_t<T>* out) {
  const Kernels<T>& k = kernels<T>();
  s.channels_last ? k.column_sums(x, s.positions, s.channels, out)
                  : k.row_sums(x, s.channels, s.positions, out);
}
template <class T>
void dots(const Shape& s, const T* dy, const T* x, acc_t<T>* out) {
  const Kernels<T>& k = kernels<T>();
  s.channels_last ? k.column_dots(dy, x, s.positions, s.channels, out)
                  : k.row_dots(dy, x, s.channels, s.positions, out);
}
template <class T>
void scale(const Shape& s, const T* x, const acc_t<T>* g, T* y) {
  const Kernels<T>& k = kernels<T>();
  const bool past = past_caches(2 * s.bytes<T>());
  s.channels_last ? k.column_scale(x, g, y, s.positions, s.channels, past)
                  : k.row_scale(x, g, y, s.channels, s.positions, past);
}
template <class T>
void scale_add(const Shape& s, const T* dy, const acc_t<T>* g, const acc_t<T>* shift, T* dx) {
  const Kernels<T>& k = kernels<T>();
  const bool past = past_caches(3 * s.bytes<T>());
  s.channels_last ? k.column_scale_add(dy, g, shift, dx, s.positions, s.channels, past)
                  : k.row_scale_add(dy, g, shift, dx, s.channels, s.positions, past);
}

// Work on the whole map with threads inside samples, for few samples.
//
// Contiguous: body(first element, channel row n·C + c, rows, cols) over ranges of rows.
// channels_last: body(first element, sample · C, rows, cols) over ranges of one sample's positions.
template <class Body>
void for_tiles(const Shape& s, const Body& body) {
  if (!s.channels_last) {
    parallel(s.samples * s.channels, s.size(), [&](int64_t begin, int64_t end) {
      body(begin * s.positions, begin, end - begin, s.positions);
    });
    return;
  }
  parallel(s.samples * s.positions, s.size(), [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t n = begin / s.positions;
      const int64_t stop = std::min(end, (n + 1) * s.positions);
      body(begin * s.channels, n * s.channels, stop - begin, s.channels);
      begin = stop;
    }
  });
}

// Per-channel sums of the whole map, [N, C], with threads inside samples. `rows(first element, rows,
// cols, out)` adds up a range of channels, `columns(…)` a range of one sample's positions.
template <class A, class Rows, class Columns>
void sum_tiles(const Shape& s, A* out, const Rows& rows, const Columns& columns) {
  if (!s.channels_last) {
    for_tiles(s, [&](int64_t at, int64_t channel, int64_t count, int64_t cols) {
      rows(at, count, cols, out + channel);
    });
    return;
  }
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t parts =
      s.size() < serial_below ? 1 : std::max<int64_t>(1, std::min(threads, s.positions));
  auto partial = scratch<A>(s.samples * parts * s.channels);
  parallel(s.samples * parts, s.size(), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i / parts, part = i % parts;
      const int64_t first = part * s.positions / parts, last = (part + 1) * s.positions / parts;
      columns(
          (n * s.positions + first) * s.channels, last - first, s.channels,
          partial.get() + i * s.channels);
    }
  });
  for (int64_t n = 0; n < s.samples; ++n)
    for (int64_t c = 0; c < s.channels; ++c) {
      A sum = 0;
      for (int64_t part = 0; part < parts; ++part)
        sum += partial[(n * parts + part) * s.channels + c];
      out[n * s.channels + c] = sum;
    }
}

}  // namespace se_fused::cpu
