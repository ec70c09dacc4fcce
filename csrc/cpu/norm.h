// The passes of a block with BatchNorm over the whole map: who takes which tile, in which order.
#pragma once

#include <limits>
#include <vector>

#include "map.h"
#include "norm_kernels.h"

namespace se_fused::cpu {

// A map as the matrix that its kernels walk: rows of cols elements.
struct Matrix {
  int64_t rows_per_sample, cols, mask_bytes;

  explicit Matrix(const Shape& s)
      : rows_per_sample(s.channels_last ? s.positions : s.channels),
        cols(s.channels_last ? s.channels : s.positions),
        mask_bytes((cols + 7) / 8) {}
};

// Whether each thread takes whole samples; else ranges of rows.
inline bool by_whole_samples(const Shape& s) {
  const int64_t threads = torch::stable::get_num_threads();
  return s.size() < serial_below || s.samples % threads == 0 || s.samples >= 8 * threads;
}

inline TileStart tile_start(const Shape& s, const Matrix& m, int64_t row) {
  const int64_t sample = row / m.rows_per_sample;
  const int64_t channel = s.channels_last ? 0 : row % m.rows_per_sample;
  return {row * m.cols, row * m.mask_bytes, channel, sample * s.channels + channel};
}

// body(tile's start, rows) over the map; a tile lies in one sample. Backwards: what the pass before
// came to last, and is still in cache, comes first.
template <class Body>
void for_tiles_backwards(const Shape& s, const Matrix& m, const Body& body) {
  if (s.size() == 0) return;
  const int64_t per = m.rows_per_sample, unit = by_whole_samples(s) ? per : 1;
  parallel(s.samples * per / unit, s.size(), [&](int64_t begin, int64_t end) {
    for (int64_t first = begin * unit, last = end * unit; first < last;) {
      const int64_t start = std::max(first, (last - 1) / per * per);
      body(tile_start(s, m, start), last - start);
      last = start;
    }
  });
}

struct Plus {
  template <class A>
  A operator()(int64_t, A a, A b) const {
    return a + b;
  }
};

// Sums over positions of K terms, out [K, N, C]; body(tile's start, rows, out, stride) adds up a
// tile's. In channels_last a sample's positions may be shared out among threads, whose sums are then
// added in order, or joined otherwise by combine(term, a, b).
template <class A, class Body, class Combine = Plus>
void sum_terms_of_tiles(
    const Shape& s, const Matrix& m, int64_t terms, A* out, const Body& body,
    const Combine& combine = {}) {
  const int64_t per = m.rows_per_sample, stride = s.samples * s.channels;
  if (s.size() == 0) return std::fill(out, out + terms * stride, A(0));
  if (!s.channels_last || by_whole_samples(s)) {
    const int64_t unit = by_whole_samples(s) ? per : 1;
    return parallel(s.samples * per / unit, s.size(), [&](int64_t begin, int64_t end) {
      for (int64_t first = begin * unit, last = end * unit; first < last;) {
        const int64_t stop = std::min(last, (first / per + 1) * per);
        const TileStart start = tile_start(s, m, first);
        body(start, stop - first, out + start.sample_channel, stride);
        first = stop;
      }
    });
  }
  const int64_t parts = std::min<int64_t>(torch::stable::get_num_threads(), per);
  auto partial = scratch<A>(s.samples * parts * terms * s.channels);
  parallel(s.samples * parts, s.size(), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i / parts, part = i % parts;
      const int64_t first = part * per / parts, last = (part + 1) * per / parts;
      body(
          tile_start(s, m, n * per + first), last - first,
          partial.get() + i * terms * s.channels, s.channels);
    }
  });
  for (int64_t k = 0; k < terms; ++k)
    for (int64_t n = 0; n < s.samples; ++n)
      for (int64_t c = 0; c < s.channels; ++c) {
        A all = partial[(n * parts * terms + k) * s.channels + c];
        for (int64_t part = 1; part < parts; ++part)
          all = combine(k, all, partial[((n * parts + part) * terms + k) * s.channels + c]);
        out[k * stride + n * s.channels + c] = all;
      }
}

// Mean and Σ (x − mean)² of every plane, from sums of differences from a pivot near the mean.
template <class T>
void map_moments(const Shape& s, const T* x, acc_t<T>* mean, acc_t<T>* m2) {
  using A = acc_t<T>;
  const NormKernels<T>& k = norm_kernels<T>();
  const Matrix m(s);
  const int64_t planes = s.samples * s.channels;
  auto pivots = scratch<A>(planes), sums = scratch<A>(2 * planes);
  if (s.size() == 0) {
    std::fill(mean, mean + planes, std::numeric_limits<A>::quiet_NaN());
    return std::fill(m2, m2 + planes, A(0));
  }
  if (s.channels_last) {
    const int64_t beginning = std::min(s.positions, pivot_values);
    parallel(s.samples, s.size(), [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        A* pivot = pivots.get() + n * s.channels;
        kernels<T>().column_sums(x + n * s.sample_size(), beginning, s.channels, pivot);
        for (int64_t c = 0; c < s.channels; ++c) pivot[c] /= static_cast<A>(beginning);
      }
    });
  }
  const auto kernel = s.channels_last ? k.column_moments : k.row_moments;
  sum_terms_of_tiles<A>(
      s, m, 2, sums.get(), [&](const TileStart& start, int64_t rows, A* out, int64_t stride) {
        kernel(
            x + start.element, rows, m.cols, pivots.get() + start.sample_channel, out, stride);
      });
  const A positions = static_cast<A>(s.positions);
  for (int64_t i = 0; i < planes; ++i) {
    const A sum = sums[i], apart = sum / positions;
    mean[i] = pivots[i] + apart;
    m2[i] = std::max(sums[planes + i] - sum * apart, A(0));
  }
}

}  // namespace se_fused::cpu
