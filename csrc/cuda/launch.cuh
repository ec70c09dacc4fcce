// The launchers of one element type; included by one .cu file for each.
#pragma once

#include "apply.cuh"
#include "kernels.h"
#include "reduce.cuh"
#include "runtime.cuh"

namespace se_fused::cuda {
namespace {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class T>
struct Launcher {
  using A = acc_t<T>;

  struct Reduction {
    Walk walk;
    Split split;
    int64_t tiles;
    size_t shared;  // accumulators
    bool in_reduce;

    int64_t blocks(const Call& c) const { return c.samples * tiles * split.splits; }
    // Whether a last block has something to do.
    bool finishes(bool excites) const { return split.splits > 1 || (excites && in_reduce); }
  };

  static Reduction reduction(const Call& c) {
    const Device device = current_device();
    const int64_t size = c.w1.is_acc ? sizeof(A) : sizeof(T);
    Reduction r{};
    if (c.channels_last) {
      r.walk = Walk::columns;
      r.split.tile = columns_tile<T>;
      r.shared = columns_shared<T>;
    } else if (c.positions <= short_plane) {
      r.walk = Walk::planes;
      r.split.tile = static_cast<int>(
          std::min<int64_t>(c.channels, staged_elements / c.positions));
      r.shared = staged;
    } else {
      r.walk = Walk::rows;
      r.split.tile = rows_tile;
      r.shared = 0;
    }
    r.shared = std::max<size_t>(r.shared, hidden_gradient_shared);
    r.tiles = ceil_div(c.channels, r.split.tile);
    r.split.positions = r.walk == Walk::planes
        ? c.positions
        : split_positions(c.positions, c.samples * r.tiles, lanes_of<T>, device);
    r.split.splits = static_cast<int>(ceil_div(c.positions, r.split.positions));
    r.in_reduce = c.w1.data &&
        excites_in_reduce(
            c.samples, c.channels, c.hidden, size, r.split.splits, sizeof(A), device);
    return r;
  }

  static Excitation<T> excitation(const Call& c) {
    const auto parameter = [](const Weight& w) { return Parameter<T>{w.data, w.is_acc}; };
    return {parameter(c.w1), parameter(c.b1), parameter(c.w2), parameter(c.b2),
            c.channels, c.hidden, c.act, c.gate};
  }

  static States<A> states(const Call& c) {
    const auto array = [](void* p) { return static_cast<A*>(p); };
    return {array(c.z), array(c.g), array(c.h), array(c.dg), array(c.dp2), array(c.dp1),
            array(c.grad_mean)};
  }

  static Scratch scratch(const Call& c, Summed, bool excites) {
    const Reduction r = reduction(c);
    if (!r.finishes(excites)) return {0, 0};
    return {c.samples * r.split.splits * c.channels, c.samples};
  }

  static void reduce(
      const Call& c, Summed summed, bool excites, void* slots, void* counters) {
    const Reduction r = reduction(c);
    const Then then = excites && r.in_reduce ? Then::excite
        : r.finishes(excites)                ? Then::add
                                             : Then::nothing;
    void* sums = slots ? slots : summed == Summed::values ? c.z : c.dg;
    switch (summed) {
      case Summed::values: reduce_as<Sum::values>(c, r, then, sums, counters); break;
      case Summed::products: reduce_as<Sum::products>(c, r, then, sums, counters); break;
      case Summed::products_rescaled:
        reduce_as<Sum::products_rescaled>(c, r, then, sums, counters);
    }
    if (excites && !r.in_reduce) excite_between(c, summed == Summed::values);
  }

  template <Sum sum>
  static void reduce_as(
      const Call& c, const Reduction& r, Then then, void* slots, void* counters) {
    switch (r.walk) {
      case Walk::rows: return reduce_then<Walk::rows, sum>(c, r, then, slots, counters);
      case Walk::planes: return reduce_then<Walk::planes, sum>(c, r, then, slots, counters);
      case Walk::columns: return reduce_then<Walk::columns, sum>(c, r, then, slots, counters);
    }
  }

  template <Walk walk, Sum sum>
  static void reduce_then(
      const Call& c, const Reduction& r, Then then, void* slots, void* counters) {
    auto* kernel = reduce_kernel<T, walk, sum, Then::nothing>;
    if (then == Then::add) kernel = reduce_kernel<T, walk, sum, Then::add>;
    if constexpr (sum != Sum::products_rescaled)
      if (then == Then::excite) kernel = reduce_kernel<T, walk, sum, Then::excite>;
    const Map<T> map{
        {c.samples, c.positions, c.channels}, static_cast<const T*>(c.x),
        static_cast<const T*>(c.dy), static_cast<const A*>(c.g), static_cast<T*>(c.dx)};
    launch(kernel, r.blocks(c), r.shared * sizeof(A), c.stream, map, r.split,
           static_cast<A*>(slots), static_cast<unsigned*>(counters), excitation(c), states(c));
  }

  static void excite_between(const Call& c, bool forward) {
    const Excitation<T> e = excitation(c);
    const States<A> at = states(c);
    const int64_t groups = ceil_div(c.samples, group_samples);
    if (forward) {
      launch(hidden_kernel<T>, groups * hidden_tiles(c.hidden), 0, c.stream, e, at, c.samples);
      launch(gate_kernel<T>, groups * gate_tiles(c.channels), 0, c.stream, e, at, c.samples);
    } else {
      launch(gate_input_kernel<T>, ceil_div(c.samples * c.channels, threads), 0, c.stream, e, at,
             c.samples);
      launch(hidden_gradient_kernel<T>, groups * hidden_tiles(c.hidden),
             hidden_gradient_shared * sizeof(A), c.stream, e, at, c.samples);
      launch(share_kernel<T>, groups * share_tiles(c.channels), 0, c.stream, e, at, c.samples,
             c.positions);
    }
  }

  static void rescale(const Call& c) {
    const Shape shape{c.samples, c.positions, c.channels};
    const int64_t chunks = ceil_div(shape.sample_size(), chunk<T>);
    const bool has_mean_gradient = c.grad_mean != nullptr;
    auto* kernel = c.channels_last
        ? (has_mean_gradient ? rescale_kernel<T, true, true> : rescale_kernel<T, true, false>)
        : (has_mean_gradient ? rescale_kernel<T, false, true> : rescale_kernel<T, false, false>);
    const void* from = c.dy ? c.dy : c.x;
    void* to = c.dy ? c.dx : c.y;
    launch(kernel, c.samples * chunks, 0, c.stream, shape, static_cast<int>(chunks),
           static_cast<const T*>(from), static_cast<const A*>(c.g),
           static_cast<const A*>(c.grad_mean), static_cast<T*>(to));
  }

  static constexpr Launches table = {scratch, reduce, rescale};
};

}  // namespace
}  // namespace se_fused::cuda
