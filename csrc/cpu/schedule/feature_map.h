// A feature map as the CPU kernels walk it, in either layout, and who takes which tile of it.
#pragma once

#include <algorithm>
#include <memory>

#include <torch/csrc/stable/ops.h>

#include "../isa/table.h"

namespace se_fused::cpu {

// [N, C, M], as a matrix of rows · cols per sample.
struct Shape {
  int64_t samples, channels, positions;
  bool channels_last;

  int64_t rows() const { return channels_last ? positions : channels; }
  int64_t cols() const { return channels_last ? channels : positions; }
  int64_t mask_bytes() const { return (cols() + 7) / 8; }  // of a row
  int64_t sample_size() const { return channels * positions; }
  int64_t planes() const { return samples * channels; }
  int64_t size() const { return samples * sample_size(); }

  TileStart tile(int64_t row) const {
    const int64_t sample = row / rows(), channel = channels_last ? 0 : row % rows();
    return {row * cols(), row * mask_bytes(), channel, sample * channels + channel};
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

// Whether each thread takes whole samples; else ranges of rows.
inline bool by_whole_samples(const Shape& s) {
  const int64_t threads = torch::stable::get_num_threads();
  return s.size() < serial_below || s.samples % threads == 0 || s.samples >= 8 * threads;
}

// body(first row, rows) over the map; a tile lies in one sample. Backwards: what the pass before came to
// last, and is still in cache, comes first.
template <class Body>
void for_tiles_backwards(const Shape& s, const Body& body) {
  if (s.size() == 0) return;
  const int64_t per = s.rows(), unit = by_whole_samples(s) ? per : 1;
  parallel(s.samples * per / unit, s.size(), [&](int64_t begin, int64_t end) {
    for (int64_t first = begin * unit, last = end * unit; first < last;) {
      const int64_t start = std::max(first, (last - 1) / per * per);
      body(start, last - start);
      last = start;
    }
  });
}

// `terms` results of each channel, out [K, N, C]; body(first row, rows, out, stride) finds those of a
// tile. In channels_last a sample's positions may be shared out among threads, whose results are then
// joined in order: added, but for the last of a reduction with a maximum.
template <class A, class Body>
void reduce_tiles(
    const Shape& s, int64_t terms, bool with_maximum, A* out, const Body& body) {
  const int64_t per = s.rows(), stride = s.planes();
  if (s.size() == 0) return std::fill(out, out + terms * stride, A(0));
  if (!s.channels_last || by_whole_samples(s)) {
    const int64_t unit = by_whole_samples(s) ? per : 1;
    return parallel(s.samples * per / unit, s.size(), [&](int64_t begin, int64_t end) {
      for (int64_t first = begin * unit, last = end * unit; first < last;) {
        const int64_t stop = std::min(last, (first / per + 1) * per);
        body(first, stop - first, out + s.tile(first).sample_channel, stride);
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
      body(n * per + first, last - first, partial.get() + i * terms * s.channels, s.channels);
    }
  });
  for (int64_t k = 0; k < terms; ++k)
    for (int64_t n = 0; n < s.samples; ++n)
      for (int64_t c = 0; c < s.channels; ++c) {
        A all = partial[(n * parts * terms + k) * s.channels + c];
        for (int64_t part = 1; part < parts; ++part) {
          const A next = partial[((n * parts + part) * terms + k) * s.channels + c];
          if (with_maximum && k == terms - 1)
            all = all > next || all != all ? all : next;
          else
            all += next;
        }
        out[k * stride + n * s.channels + c] = all;
      }
}

}  // namespace se_fused::cpu
