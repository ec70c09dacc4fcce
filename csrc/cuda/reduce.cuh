// The first launch of each direction: per-channel sums of x, or of dy · x, then the excitation.
//
// A block sums `tile` channels over a part of a sample's positions into its own slot of
// [N, splits, C]; the last of a sample's blocks to finish adds the slots in a fixed order and goes on
// from there. No block waits for another.
#pragma once

#include "excitation.cuh"
#include "plan.h"

namespace se_fused::cuda {

// How a block walks the map.
enum class Walk {
  rows,    // contiguous: a warp a channel, along its plane
  planes,  // contiguous, short planes: several whole ones as one aligned run, through shared memory
  columns  // channels_last: a thread a vector of channels, down the positions
};

// What the summands are.
enum class Sum {
  values,            // x
  products,          // dy · x
  products_rescaled  // dy · x, and dx = dy · g on the way
};

template <class T>
struct Map {
  Shape shape;
  const T *x, *dy;
  const acc_t<T>* g;
  T* dx;
};

struct Split {
  int tile;           // channels of a block
  int splits;         // blocks that share the positions of a tile
  int64_t positions;  // of one of them
};

// Channels of a block, given the walk.
constexpr int rows_tile = warps;
constexpr int staged = 4096;       // elements of the planes of a block
constexpr int run_positions = 32;  // of a thread, channels_last
template <class T>
constexpr int columns_tile = warp_size * lanes_of<T>;
// Accumulators in shared memory.
template <class T>
constexpr int columns_shared = threads * lanes_of<T>;

// The summand of element i (from x + i, dy + i on) and, rescaled, its dx.
template <Sum sum, class T>
__device__ inline acc_t<T> summand(
    const T* x, const T* dy, T* dx, int64_t i, acc_t<T> gate) {
  if constexpr (sum == Sum::values) return widen(x[i]);
  const acc_t<T> gradient = widen(dy[i]);
  if constexpr (sum == Sum::products_rescaled) dx[i] = narrow<T>(gradient * gate);
  return gradient * widen(x[i]);
}

// The same for a vector: put(lane, summand), with gate(lane). x is not read again; dy is.
template <Sum sum, class T, class Gate, class Put>
__device__ inline void summands(
    const T* x, const T* dy, T* dx, int64_t i, Gate gate, Put put) {
  const Vector<T> values = load<sum != Sum::values>(x + i);
  if constexpr (sum == Sum::values) {
    for (int l = 0; l < lanes_of<T>; ++l) put(l, widen(values.lane[l]));
  } else {
    const Vector<T> gradients = load<false>(dy + i);
    Vector<T> rescaled;
    for (int l = 0; l < lanes_of<T>; ++l) {
      const acc_t<T> gradient = widen(gradients.lane[l]);
      if constexpr (sum == Sum::products_rescaled)
        rescaled.lane[l] = narrow<T>(gradient * gate(l));
      put(l, gradient * widen(values.lane[l]));
    }
    if constexpr (sum == Sum::products_rescaled) store_last(dx + i, rescaled);
  }
}

// Whether the pointers that a sum reads and writes from an offset on are aligned alike.
template <Sum sum, class T>
__device__ inline bool alike(const Map<T>& m) {
  if constexpr (sum == Sum::values) return true;
  const int at = misaligned(m.x);
  return misaligned(m.dy) == at && (sum != Sum::products_rescaled || misaligned(m.dx) == at);
}

template <Sum sum, class T>
__device__ inline void sum_rows(
    const Map<T>& m, int64_t sample, int first, const Split& split, int part, acc_t<T> scale,
    acc_t<T>* slot) {
  using A = acc_t<T>;
  const int lane = threadIdx.x % warp_size, c = first + threadIdx.x / warp_size;
  if (c >= m.shape.channels) return;  // a whole warp
  const int64_t begin = part * split.positions;
  const int64_t left = m.shape.positions - begin;
  const int64_t at = (sample * m.shape.channels + c) * m.shape.positions + begin;
  const T *x = m.x + at, *dy = m.dy + (m.dy ? at : 0);
  T* dx = m.dx + (m.dx ? at : 0);
  const A gate = sum == Sum::products_rescaled ? m.g[sample * m.shape.channels + c] : A(0);
  A sums[lanes_of<T>] = {};  // short ones, added up in pairs, round less
  over_run(
      x, static_cast<int>(left < split.positions ? left : split.positions), alike<sum>(m), lane,
      warp_size,
      [&](int i) {
        summands<sum>(x, dy, dx, i, [&](int) { return gate; },
                      [&](int l, A value) { sums[l] += value; });
      },
      [&](int i) { sums[0] += summand<sum>(x, dy, dx, i, gate); });
  for (int count = lanes_of<T> / 2; count > 0; count /= 2)
    for (int l = 0; l < count; ++l) sums[l] += sums[l + count];
  const A total = sum_lanes(sums[0]);
  if (lane == 0) slot[c] = total / scale;
}

template <Sum sum, class T>
__device__ inline void sum_planes(
    const Map<T>& m, int64_t sample, int first, const Split& split, acc_t<T> scale, acc_t<T>* slot) {
  using A = acc_t<T>;
  A* products = static_cast<A*>(dynamic_shared_memory());  // [staged]
  const int plane = static_cast<int>(m.shape.positions);
  const int count = min(split.tile, m.shape.channels - first);
  const int64_t at = (sample * m.shape.channels + first) * plane;
  const T *x = m.x + at, *dy = m.dy + (m.dy ? at : 0);
  T* dx = m.dx + (m.dx ? at : 0);
  const A* gates = m.g + (m.g ? sample * m.shape.channels + first : 0);
  const auto gate = [&](int i) {
    return sum == Sum::products_rescaled ? gates[i / plane] : A(0);
  };
  over_run(
      x, count * plane, alike<sum>(m), threadIdx.x, threads,
      [&](int i) {
        summands<sum>(x, dy, dx, i, [&](int l) { return gate(i + l); },
                      [&](int l, A value) { products[i + l] = value; });
      },
      [&](int i) { products[i] = summand<sum>(x, dy, dx, i, gate(i)); });
  __syncthreads();
  const int lane = threadIdx.x % warp_size;
  for (int c = threadIdx.x / warp_size; c < count; c += warps) {
    A total = 0;
    for (int i = lane; i < plane; i += warp_size) total += products[c * plane + i];
    total = sum_lanes(total);
    if (lane == 0) slot[first + c] = total / scale;
  }
}

template <Sum sum, class T>
__device__ inline void sum_columns(
    const Map<T>& m, int64_t sample, int first, const Split& split, int part, acc_t<T> scale,
    acc_t<T>* slot) {
  using A = acc_t<T>;
  constexpr int width = lanes_of<T>;
  A* partial = static_cast<A*>(dynamic_shared_memory());  // [rows at once, tile]
  const int channels = m.shape.channels;
  // A warp reads one position's channels, or several positions' where few lanes are enough for one.
  const int group = row_group((channels + width - 1) / width), tile = group * width;
  const int rows = threads / group, row = threadIdx.x / group, lane = threadIdx.x % group;
  const int64_t begin = part * split.positions;
  const int64_t end = min(begin + split.positions, m.shape.positions);
  // A lane has `width` neighbouring channels with vectors, every group-th without.
  const bool vectors = alike<sum>(m) && misaligned(m.x) == 0 && channels % width == 0;
  const int own = vectors ? first + lane * width : first + lane, step = vectors ? 1 : group;
  A total[width] = {}, gate[width] = {};
  if constexpr (sum == Sum::products_rescaled)
    for (int l = 0; l < width; ++l)
      if (own + l * step < channels) gate[l] = m.g[sample * channels + own + l * step];
  const int64_t sample_start = sample * m.shape.sample_size() + own;
  // Runs of positions are added up apart: short sums round less.
  for (int64_t position = begin + row; position < end;) {
    const int64_t stop = min(end, position + run_positions * rows);
    A run[width] = {};
    if (!vectors) {
#pragma unroll 1
      for (; position < stop; position += rows)
        for (int l = 0; l < width; ++l)
          if (own + l * step < channels)
            run[l] += summand<sum>(
                m.x, m.dy, m.dx, sample_start + position * channels + l * step, gate[l]);
    } else if (own < channels) {
#pragma unroll 2
      for (; position < stop; position += rows)
        summands<sum>(m.x, m.dy, m.dx, sample_start + position * channels,
                      [&](int l) { return gate[l]; }, [&](int l, A value) { run[l] += value; });
    } else {
      break;
    }
    for (int l = 0; l < width; ++l) total[l] += run[l];
  }
  for (int l = 0; l < width; ++l) partial[row * tile + own - first + l * step] = total[l];
  __syncthreads();
  const int in_warp = threadIdx.x % warp_size;
  for (int c = threadIdx.x / warp_size; c < tile && first + c < channels; c += warps) {
    A whole = 0;
    for (int r = in_warp; r < rows; r += warp_size) whole += partial[r * tile + c];
    whole = sum_lanes(whole);
    if (in_warp == 0) slot[first + c] = whole / scale;
  }
}

// Whether this block is the last of its sample's; if so, it sees what the others stored.
__device__ inline bool finishes(unsigned* counter, int blocks) {
  __threadfence();
  __syncthreads();
  const bool last = threadIdx.x == 0 && atomicAdd(counter, 1u) == static_cast<unsigned>(blocks - 1);
  const bool found = __syncthreads_or(last);
  __threadfence();
  return found;
}

// A channel's slots, always added in the same order; a round of them is on its way at once.
template <class A>
__device__ inline A sum_of_slots(const A* slots, int splits, int64_t stride) {
  A total = 0;
  for (int begin = 0; begin < splits; begin += slots_per_round) {
    A round[slots_per_round];
#pragma unroll
    for (int s = 0; s < slots_per_round; ++s)
      round[s] = begin + s < splits ? slots[(begin + s) * stride] : A(0);
#pragma unroll
    for (int s = 0; s < slots_per_round; ++s) total += round[s];
  }
  return total;
}

// After the sums: nothing, the excitation in this launch, or the slots' sum alone.
enum class Then { nothing, add, excite };

// Grid: samples × tiles of channels × splits, the splits fastest. `slots` [N, splits, C] hold parts of
// z = Σ / M or dg = Σ, which go to `at`; without anything to do then they are the result.
// `counters` [N] start at zero.
// Budget: 120 registers.
template <class T, Walk walk, Sum sum, Then then>
__global__ void __launch_bounds__(threads, 1) reduce_kernel(
    Map<T> m, Split split, acc_t<T>* slots, unsigned* counters, Excitation<T> e,
    States<acc_t<T>> at) {
  using A = acc_t<T>;
  const int channels = m.shape.channels, tiles = (channels + split.tile - 1) / split.tile;
  const int part = blockIdx.x % split.splits, tile = blockIdx.x / split.splits % tiles;
  const int64_t sample = blockIdx.x / split.splits / tiles;
  const int first = tile * split.tile;
  A* slot = slots + (sample * split.splits + part) * channels;
  const A scale = sum == Sum::values ? static_cast<A>(m.shape.positions) : A(1);
  if constexpr (walk == Walk::rows) sum_rows<sum>(m, sample, first, split, part, scale, slot);
  if constexpr (walk == Walk::planes) sum_planes<sum>(m, sample, first, split, scale, slot);
  if constexpr (walk == Walk::columns) sum_columns<sum>(m, sample, first, split, part, scale, slot);
  if constexpr (then != Then::nothing) {
    if (!finishes(counters + sample, tiles * split.splits)) return;
    A* out = sum == Sum::values ? at.z : at.dg;
    for (int c = threadIdx.x; c < channels; c += threads)
      out[sample * channels + c] = sum_of_slots(
          slots + sample * split.splits * channels + c, split.splits, channels);
    __syncthreads();
    if constexpr (then == Then::excite) {
      if constexpr (sum == Sum::values)
        excite(e, at, sample);
      else
        excite_backward(e, at, m.shape.positions, sample);
    }
  }
}

}  // namespace se_fused::cuda
