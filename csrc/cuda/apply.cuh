// The second launch of each direction: y = x · g, backward dx = dy · g + grad_mean.
#pragma once

#include "device.cuh"

namespace se_fused::cuda {

constexpr int vectors_per_thread = 4;
template <class T>
constexpr int chunk = threads * vectors_per_thread * lanes_of<T>;

// One block: `chunk` elements of a sample, taken in the reverse of the reduce launch's order, so that
// what was read last, and is still in cache, is read first; nothing of this pass is worth keeping.
// Budget: 64 registers.
template <class T, bool channels_last, bool has_mean_gradient>
__global__ void __launch_bounds__(threads, 1) rescale_kernel(
    Shape shape, int chunks, const T* x, const acc_t<T>* g, const acc_t<T>* grad_mean, T* y) {
  using A = acc_t<T>;
  const unsigned block = gridDim.x - 1 - blockIdx.x;
  const int64_t sample = block / chunks, begin = block % chunks * static_cast<int64_t>(chunk<T>);
  const int64_t left = shape.sample_size() - begin;
  const int count = static_cast<int>(left < chunk<T> ? left : chunk<T>);
  x += sample * shape.sample_size() + begin;
  y += sample * shape.sample_size() + begin;
  g += sample * shape.channels;
  if constexpr (has_mean_gradient) grad_mean += sample * shape.channels;
  // Runs of one channel (contiguous) or of all channels (channels_last): the chunk begins `start`
  // elements into a run, of the channel `base`.
  const auto run = static_cast<unsigned>(channels_last ? shape.channels : shape.positions);
  const auto start = static_cast<unsigned>(begin % run);
  const int base = channels_last ? 0 : static_cast<int>(begin / run);
  const auto scaled = [&](T value, int c) {
    const A product = widen(value) * g[c];
    if constexpr (has_mean_gradient) return narrow<T>(product + grad_mean[c]);
    return narrow<T>(product);
  };
  over_run(
      x, count, misaligned(x) == misaligned(y), threadIdx.x, threads,
      [&](int i) {
        const Vector<T> values = load<true>(x + i);
        Vector<T> out;
        unsigned at = (start + i) % run;  // in its run
        int c = channels_last ? static_cast<int>(at) : base + static_cast<int>((start + i) / run);
        for (int l = 0; l < lanes_of<T>; ++l) {
          out.lane[l] = scaled(values.lane[l], c);
          const bool ends = ++at == run;
          if (ends) at = 0;
          if constexpr (channels_last)
            c = ends ? 0 : c + 1;
          else if (ends && l + 1 < lanes_of<T>)
            ++c;
        }
        store_last(y + i, out);
      },
      [&](int i) {
        const unsigned at = (start + i) % run;
        y[i] = scaled(x[i], channels_last ? static_cast<int>(at)
                                          : base + static_cast<int>((start + i) / run));
      });
}

}  // namespace se_fused::cuda
