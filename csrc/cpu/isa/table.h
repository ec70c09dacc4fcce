// What is compiled once per instruction set: one table of kernels per element type.
//
// A tile is a dense [rows, cols] matrix. In contiguous layout rows are channels and columns are
// positions; in channels_last rows are positions and columns are channels.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <limits>
#include <type_traits>

#include "../../activations.h"

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

// Where a tile begins: the element of the map, the byte of its mask, its first channel, and the same
// counted over samples, n·C + c.
struct TileStart {
  int64_t element, mask_byte, channel, sample_channel;
};

template <class P>
P* moved(P* pointer, int64_t by) {
  return pointer == nullptr ? nullptr : pointer + by;
}

// What a pass over the map, or a tile of it, reads and writes; null where a part is absent. Formulas in
// se_fused/backends/README.md, but that the scale is in g and grad_mean of apply_backward, and for
// identity the offset in grad_mean; with gated_shift = shift · g it is in g of apply_forward too.
template <class T>
struct Pass {
  using A = acc_t<T>;
  const T *x = nullptr, *dy = nullptr, *residual = nullptr;
  const uint8_t* mask = nullptr;
  const A *center = nullptr, *scale = nullptr, *shift = nullptr, *slope = nullptr,
          *offset = nullptr;  // [C]
  const A *g = nullptr, *gated_shift = nullptr, *grad_mean = nullptr, *maximum = nullptr,
          *grad_max = nullptr;  // [N, C]
  A* pivot = nullptr;            // [N, C], of moments: given for columns, found for rows
  T *y = nullptr, *dr = nullptr; // y is dx of a backward pass
  uint8_t* new_mask = nullptr;
  Act act = Act::identity;
  Statistic statistic = Statistic::mean;

  Pass at(const TileStart& t) const {
    Pass tile = *this;
    for (auto pointer : {&Pass::x, &Pass::dy, &Pass::residual})
      tile.*pointer = moved(this->*pointer, t.element);
    for (auto pointer : {&Pass::y, &Pass::dr}) tile.*pointer = moved(this->*pointer, t.element);
    for (auto pointer : {&Pass::center, &Pass::scale, &Pass::shift, &Pass::slope, &Pass::offset})
      tile.*pointer = moved(this->*pointer, t.channel);
    for (auto pointer :
         {&Pass::g, &Pass::gated_shift, &Pass::grad_mean, &Pass::maximum, &Pass::grad_max})
      tile.*pointer = moved(this->*pointer, t.sample_channel);
    tile.pivot = moved(pivot, t.sample_channel);
    tile.mask = moved(mask, t.mask_byte);
    tile.new_mask = moved(new_mask, t.mask_byte);
    return tile;
  }
};

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
  // The term k of a channel into out[k · stride + channel]. Sums, but for the maximum; of moments
  // Σ (x − pivot) and Σ (x − pivot)².
  using Reduce = void (*)(const Pass<T>&, int64_t rows, int64_t cols, A* out, int64_t stride);
  using Apply = void (*)(const Pass<T>&, int64_t rows, int64_t cols, bool non_temporal);

  // [contiguous, channels_last]
  Reduce reduce_forward[2];
  Apply apply_forward[2];
  Reduce reduce_backward[2];
  Apply apply_backward[2];

  void (*widen)(const T* from, A* to, int64_t count);

  // The excitation of B samples, for the outputs [begin, end) of each product; z, g, dg, dp2 and dz
  // are [B, C], h and dp1 [B, R].
  using Layer = void (*)(
      const Excitation<A>&, int64_t samples, const A* in, A* out, int64_t begin, int64_t end);
  Layer fc1;         // z → p1 = z W1ᵀ + b1
  Layer hidden_act;  // p1 → h = act(p1), in place or not
  Layer fc2_gate;    // h → g = gate(h W2ᵀ + b2)

  // dg, g → dp2 = dg · gate'
  void (*gate_backward)(
      const Excitation<A>&, int64_t samples, const A* dg, const A* g, A* dp2, int64_t begin,
      int64_t end);
  // p1, dp2 → h, in place or not, and dp1 = (dp2 W2) · act'
  void (*fc2_act_backward)(
      const Excitation<A>&, int64_t samples, const A* p1, const A* dp2, A* h, A* dp1, int64_t begin,
      int64_t end);
  Layer fc1_backward;  // dp1 → dz = dp1 W1
};

// The kernels for this machine, or for the set that SE_FUSED_CPU_CAPABILITY names.
template <class T>
const Kernels<T>& kernels();

// "avx512", "avx2" or "baseline": what kernels() gives.
const char* capability();

// Values of a plane whose mean is its pivot: near the plane's own mean, so that little cancels.
constexpr int64_t pivot_values = 256;

}  // namespace se_fused::cpu
