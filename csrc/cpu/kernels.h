// What the CPU kernels offer: one table per element type, filled once per instruction set.
//
// A tile is a dense [rows, cols] matrix. In contiguous layout rows are channels and columns are
// positions; in channels_last rows are positions and columns are channels. "row" kernels have one
// gate per row, "column" kernels one per column.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../activations.h"

namespace se_fused::cpu {

struct bf16 {
  uint16_t bits;
};
struct fp16 {
  uint16_t bits;
};

template <class T>
struct accumulator {
  using type = float;
};
template <>
struct accumulator<double> {
  using type = double;
};
template <class T>
using acc_t = typename accumulator<T>::type;

template <class A>
struct Excitation {
  int64_t channels, hidden;
  const A *w1, *b1, *w2, *b2;  // [R, C], [R] or null, [C, R], [C] or null
  Act act;
  Gate gate;
};

template <class T>
struct Kernels {
  using A = acc_t<T>;
  using Sums = void (*)(const T* x, int64_t rows, int64_t cols, A* out);
  using Dots = void (*)(const T* dy, const T* x, int64_t rows, int64_t cols, A* out);
  using Scale =
      void (*)(const T* x, const A* g, T* y, int64_t rows, int64_t cols, bool past_caches);
  using ScaleAdd = void (*)(
      const T* dy, const A* g, const A* shift, T* dx, int64_t rows, int64_t cols, bool past_caches);

  Sums row_sums, column_sums;                // out = Σ x
  Dots row_dots, column_dots;                // out = Σ dy · x
  Scale row_scale, column_scale;             // y = x · g
  ScaleAdd row_scale_add, column_scale_add;  // dx = dy · g + shift

  void (*widen)(const T* from, A* to, int64_t count);

  // The excitation of B samples, for the outputs [begin, end) of each product; z, g, dg, dp2 and dz
  // are [B, C], h and dp1 [B, R].
  using Layer = void (*)(
      const Excitation<A>&, int64_t samples, const A* in, A* out, int64_t begin, int64_t end);
  Layer first_layer;  // z → p1 = z W1ᵀ + b1
  Layer activated;    // p1 → h = act(p1), in place or not
  Layer gates;        // h → g = gate(h W2ᵀ + b2)

  // dg, g → dp2 = dg · gate'
  void (*gate_inputs)(
      const Excitation<A>&, int64_t samples, const A* dg, const A* g, A* dp2, int64_t begin,
      int64_t end);
  // p1, dp2 → h, in place or not, and dp1 = (dp2 W2) · act'
  void (*hidden_inputs)(
      const Excitation<A>&, int64_t samples, const A* p1, const A* dp2, A* h, A* dp1, int64_t begin,
      int64_t end);
  Layer squeezed;  // dp1 → dz = dp1 W1
};

// The kernels for this machine, or for the set that SE_FUSED_CPU_CAPABILITY names.
template <class T>
const Kernels<T>& kernels();

// "avx512", "avx2" or "baseline": what kernels() gives.
const char* capability();

}  // namespace se_fused::cpu
