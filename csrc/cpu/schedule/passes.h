// The four passes over a whole map.
#pragma once

#include "feature_map.h"
#include "memory.h"

namespace se_fused::cpu {

// The maps that an apply pass touches decide on non-temporal stores.
template <class T>
bool stores_non_temporally(const Shape& s, const Pass<T>& p) {
  const bool maps[] = {p.x != nullptr, p.dy != nullptr, p.residual != nullptr, true, p.dr != nullptr};
  const int64_t count = std::count(std::begin(maps), std::end(maps), true);
  return leaves_caches(count * s.size() * static_cast<int64_t>(sizeof(T)));
}

template <class T>
void apply(const Shape& s, const Pass<T>& p, typename Kernels<T>::Apply const (&kernels)[2]) {
  const auto kernel = kernels[s.channels_last];
  const bool non_temporal = stores_non_temporally(s, p);
  for_tiles_backwards(s, [&](int64_t row, int64_t rows) {
    kernel(p.at(s.tile(row)), rows, s.cols(), non_temporal);
  });
}

template <class T>
void reduce(
    const Shape& s, const Pass<T>& p, typename Kernels<T>::Reduce const (&kernels)[2],
    int64_t terms, bool with_maximum, acc_t<T>* out) {
  const auto kernel = kernels[s.channels_last];
  reduce_tiles(
      s, terms, with_maximum, out, [&](int64_t row, int64_t rows, acc_t<T>* to, int64_t stride) {
        kernel(p.at(s.tile(row)), rows, s.cols(), to, stride);
      });
}

template <class T>
void sums_of_backward(const Shape& s, const Pass<T>& p, int64_t terms, acc_t<T>* sums) {
  reduce(s, p, kernels<T>().reduce_backward, terms, false, sums);
}

// The mean and Σ (x − mean)² of every plane, from sums of differences from a pivot near the mean.
template <class T>
void moments_of(const Shape& s, Pass<T> p, acc_t<T>* out) {
  using A = acc_t<T>;
  const Kernels<T>& k = kernels<T>();
  const int64_t planes = s.planes();
  auto pivots = scratch<A>(planes);
  if (s.channels_last) {
    const int64_t beginning = std::min(s.positions, pivot_values);
    parallel(s.samples, s.size(), [&](int64_t begin, int64_t end) {
      Pass<T> first = p;
      first.statistic = Statistic::mean;
      for (int64_t n = begin; n < end; ++n) {
        A* pivot = pivots.get() + n * s.channels;
        k.reduce_forward[1](first.at(s.tile(n * s.positions)), beginning, s.channels, pivot, 0);
        for (int64_t c = 0; c < s.channels; ++c) pivot[c] /= static_cast<A>(beginning);
      }
    });
  }
  p.pivot = pivots.get();
  reduce(s, p, k.reduce_forward, 2, false, out);
  for (int64_t i = 0; i < planes; ++i) {
    const A sum = out[i], delta = sum / static_cast<A>(s.positions);
    out[i] = pivots[i] + delta;
    out[planes + i] = std::max(out[planes + i] - sum * delta, A(0));
  }
}

template <class T>
void statistics_of(const Shape& s, const Pass<T>& p, acc_t<T>* out) {
  using A = acc_t<T>;
  const int64_t planes = s.planes();
  const bool has_maximum = p.statistic == Statistic::max;
  if (p.statistic == Statistic::moments && s.size() != 0) return moments_of(s, p, out);
  const int64_t terms = p.statistic == Statistic::mean ? 1 : 2;
  reduce(s, p, kernels<T>().reduce_forward, terms, has_maximum, out);
  for (int64_t i = 0; i < planes; ++i) out[i] /= static_cast<A>(s.positions);
}

}  // namespace se_fused::cpu
