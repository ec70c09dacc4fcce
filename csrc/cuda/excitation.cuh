// The excitation: products of small matrices by one block, a tile of outputs for S samples at a time.
//
// In the reduce launch a sample's last block walks over all tiles (S = 1). Where the weights outweigh
// a sample, launches of their own take S = 8 samples with every read of a weight.
#pragma once

#include "device.cuh"

namespace se_fused::cuda {

// A parameter in the map's dtype or in the accumulator's; null: zero.
template <class T>
struct Parameter {
  const void* data;
  bool is_acc;

  __device__ acc_t<T> operator[](int64_t i) const {
    if (data == nullptr) return 0;
    return is_acc ? static_cast<const acc_t<T>*>(data)[i] : widen(static_cast<const T*>(data)[i]);
  }
};

template <class T>
struct Excitation {
  Parameter<T> w1, b1, w2, b2;  // [R, C], [R], [C, R], [C]
  int channels, hidden;
  Act act;
  Gate gate;
};

// [N, C] and [N, R] arrays of the excitation; dg, dp2 and what follows are of the backward pass.
template <class A>
struct States {
  A *z, *g, *h, *dg, *dp2, *dp1, *grad_mean;
};

// Σ_k a[s, k] · w[row, k] for the samples s < count; `group` neighbouring lanes share a row, each
// lane gets the sum.
template <int S, class T>
__device__ inline void dot_row(
    const Parameter<T>& w, int64_t row, const acc_t<T>* a, int depth, int count, int lane,
    int group, acc_t<T> (&sum)[S]) {
  for (int s = 0; s < S; ++s) sum[s] = 0;
  for (int k = lane % group; k < depth; k += group) {
    const acc_t<T> weight = w[row * depth + k];
    for (int s = 0; s < S; ++s)
      if (s < count) sum[s] += weight * a[static_cast<int64_t>(s) * depth + k];
  }
  for (int s = 0; s < S; ++s) sum[s] = sum_lanes(sum[s], group);
}

// The lanes that share a row of `depth` elements.
__device__ inline int row_group(int depth) {
  int group = 1;
  while (group < depth && group < warp_size) group *= 2;
  return group;
}

constexpr int hidden_rows = warps;  // rows of a tile: one a warp
__host__ __device__ inline int hidden_tiles(int hidden) {
  return (hidden + hidden_rows - 1) / hidden_rows;
}
constexpr int gate_rows = threads;  // at most: one a thread, where R = 1
__host__ __device__ inline int gate_tiles(int channels) {
  return (channels + gate_rows - 1) / gate_rows;
}

// h = act(W1 z + b1), `hidden_rows` units from the tile's first on.
template <int S, class T>
__device__ inline void hidden_tile(
    const Excitation<T>& e, const States<acc_t<T>>& at, int64_t first, int count, int tile) {
  const int lane = threadIdx.x % warp_size, r = tile * hidden_rows + threadIdx.x / warp_size;
  if (r >= e.hidden) return;  // a whole warp
  acc_t<T> sum[S];
  dot_row<S>(e.w1, r, at.z + first * e.channels, e.channels, count, lane, warp_size, sum);
  if (lane == 0)
    for (int s = 0; s < S; ++s)
      if (s < count) at.h[(first + s) * e.hidden + r] = apply(e.act, sum[s] + e.b1[r]);
}

// g = gate(W2 h + b2), `gate_rows` channels from the tile's first on.
template <int S, class T>
__device__ inline void gate_tile(
    const Excitation<T>& e, const States<acc_t<T>>& at, int64_t first, int count, int tile) {
  const int group = row_group(e.hidden), rows = threads / group;
  const int end = min((tile + 1) * gate_rows, e.channels);
  for (int begin = tile * gate_rows; begin < end; begin += rows) {
    const int c = begin + threadIdx.x / group;
    acc_t<T> sum[S];  // beyond the end a row again, so that every lane takes part in the sum
    dot_row<S>(e.w2, min(c, end - 1), at.h + first * e.hidden, e.hidden, count,
               threadIdx.x % warp_size, group, sum);
    if (c < end && threadIdx.x % group == 0)
      for (int s = 0; s < S; ++s)
        if (s < count) at.g[(first + s) * e.channels + c] = apply(e.gate, sum[s] + e.b2[c]);
  }
}

// dp2 = dg · gate'
template <class T>
__device__ inline void gate_input(const Excitation<T>& e, const States<acc_t<T>>& at, int64_t i) {
  at.dp2[i] = at.dg[i] * derivative(e.gate, at.g[i]);
}

// h = act(p1) again, dp1 = (dp2 W2) · act'(p1), `hidden_rows` units from the tile's first on. A warp
// adds up 4 channels at once for the 8 units, which are neighbours in a row of W2.
template <int S, class T>
__device__ inline void hidden_gradient_tile(
    const Excitation<T>& e, const States<acc_t<T>>& at, int64_t first, int count, int tile) {
  using A = acc_t<T>;
  A* partial = static_cast<A*>(dynamic_shared_memory());  // [threads / hidden_rows, hidden_rows]
  constexpr int parts = threads / hidden_rows;
  const int unit = threadIdx.x % hidden_rows, part = threadIdx.x / hidden_rows;
  const int lane = threadIdx.x % warp_size, warp = threadIdx.x / warp_size;
  const int r = tile * hidden_rows + unit, own = tile * hidden_rows + warp;
  A p1[S];
  dot_row<S>(e.w1, min(own, e.hidden - 1), at.z + first * e.channels, e.channels, count, lane,
             warp_size, p1);
  A dh[S] = {};
  if (r < e.hidden)
    for (int c = part; c < e.channels; c += parts) {
      const A weight = e.w2[static_cast<int64_t>(c) * e.hidden + r];
      for (int s = 0; s < S; ++s)
        if (s < count) dh[s] += weight * at.dp2[(first + s) * e.channels + c];
    }
  for (int s = 0; s < S; ++s) {
    if (s >= count) break;
    __syncthreads();
    partial[threadIdx.x] = dh[s];
    __syncthreads();
    const A sum = sum_lanes(partial[lane * hidden_rows + warp]);  // parts == warp_size
    if (lane == 0 && own < e.hidden) {
      const A p = p1[s] + e.b1[own];
      at.h[(first + s) * e.hidden + own] = apply(e.act, p);
      at.dp1[(first + s) * e.hidden + own] = sum * derivative(e.act, p);
    }
  }
}
static_assert(threads / hidden_rows == warp_size, "hidden_gradient_tile sums the parts in a warp");
constexpr int hidden_gradient_shared = threads;  // accumulators

// grad_mean = (dp1 W1) / M: every position's part of dz. `threads` channels from the tile's first on.
template <int S, class T>
__device__ inline void share_tile(
    const Excitation<T>& e, const States<acc_t<T>>& at, int64_t positions, int64_t first,
    int count, int tile) {
  using A = acc_t<T>;
  const int c = tile * threads + threadIdx.x;
  if (c >= e.channels) return;
  A sum[S] = {};
  for (int r = 0; r < e.hidden; ++r) {
    const A weight = e.w1[static_cast<int64_t>(r) * e.channels + c];
    for (int s = 0; s < S; ++s)
      if (s < count) sum[s] += weight * at.dp1[(first + s) * e.hidden + r];
  }
  for (int s = 0; s < S; ++s)
    if (s < count) at.grad_mean[(first + s) * e.channels + c] = sum[s] / static_cast<A>(positions);
}
__host__ __device__ inline int share_tiles(int channels) {
  return (channels + threads - 1) / threads;
}

// All of one sample, by one block.
template <class T>
__device__ inline void excite(
    const Excitation<T>& e, const States<acc_t<T>>& at, int64_t sample) {
  for (int tile = 0; tile < hidden_tiles(e.hidden); ++tile) hidden_tile<1>(e, at, sample, 1, tile);
  __syncthreads();
  for (int tile = 0; tile < gate_tiles(e.channels); ++tile) gate_tile<1>(e, at, sample, 1, tile);
}
template <class T>
__device__ inline void excite_backward(
    const Excitation<T>& e, const States<acc_t<T>>& at, int64_t positions, int64_t sample) {
  for (int c = threadIdx.x; c < e.channels; c += threads)
    gate_input(e, at, sample * e.channels + c);
  __syncthreads();
  for (int tile = 0; tile < hidden_tiles(e.hidden); ++tile)
    hidden_gradient_tile<1>(e, at, sample, 1, tile);
  __syncthreads();
  for (int tile = 0; tile < share_tiles(e.channels); ++tile)
    share_tile<1>(e, at, positions, sample, 1, tile);
}

// Launches of their own, between reduce and apply: one block a tile for S samples.
constexpr int group_samples = 8;

// Runs tile(first sample, samples, tile) for this block of a grid of tiles × groups of samples.
template <class Tile>
__device__ inline void for_group(int64_t samples, int tiles, Tile tile) {
  const int64_t first = blockIdx.x / tiles * static_cast<int64_t>(group_samples);
  const int64_t left = samples - first;
  tile(first, left < group_samples ? static_cast<int>(left) : group_samples, blockIdx.x % tiles);
}

// Budget: 80 registers.
template <class T>
__global__ void __launch_bounds__(threads, 1)
    hidden_kernel(Excitation<T> e, States<acc_t<T>> at, int64_t samples) {
  for_group(samples, hidden_tiles(e.hidden), [&](int64_t first, int count, int tile) {
    hidden_tile<group_samples>(e, at, first, count, tile);
  });
}
// Budget: 120 registers.
template <class T>
__global__ void __launch_bounds__(threads, 1)
    gate_kernel(Excitation<T> e, States<acc_t<T>> at, int64_t samples) {
  for_group(samples, gate_tiles(e.channels), [&](int64_t first, int count, int tile) {
    gate_tile<group_samples>(e, at, first, count, tile);
  });
}
// Budget: 24 registers.
template <class T>
__global__ void __launch_bounds__(threads, 1)
    gate_input_kernel(Excitation<T> e, States<acc_t<T>> at, int64_t samples) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x;
  if (i < samples * e.channels) gate_input(e, at, i);
}
// Budget: 104 registers.
template <class T>
__global__ void __launch_bounds__(threads, 1)
    hidden_gradient_kernel(Excitation<T> e, States<acc_t<T>> at, int64_t samples) {
  for_group(samples, hidden_tiles(e.hidden), [&](int64_t first, int count, int tile) {
    hidden_gradient_tile<group_samples>(e, at, first, count, tile);
  });
}
// Budget: 80 registers.
template <class T>
__global__ void __launch_bounds__(threads, 1)
    share_kernel(Excitation<T> e, States<acc_t<T>> at, int64_t samples, int64_t positions) {
  for_group(samples, share_tiles(e.channels), [&](int64_t first, int count, int tile) {
    share_tile<group_samples>(e, at, positions, first, count, tile);
  });
}

}  // namespace se_fused::cuda
