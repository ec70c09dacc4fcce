// What the passes of a block with BatchNorm take: a tile of the map, or the map itself, and what is
// known of its channels. Letters as in se_fused/backends/__init__.py.
#pragma once

#include "kernels.h"

namespace se_fused::cpu {

// Where a tile begins: the element of the map, its row of the mask, its first channel, and the same
// counted over samples, n·C + c.
struct TileStart {
  int64_t element, mask_byte, channel, sample_channel;
};

template <class P>
P* moved(P* pointer, int64_t by) {
  return pointer == nullptr ? nullptr : pointer + by;
}

// u = (x − center) · scale + shift
template <class A>
struct Normalization {
  const A *center, *scale, *shift;  // [C]

  Normalization at(const TileStart& t) const {
    return {center + t.channel, scale + t.channel, shift + t.channel};
  }
  // With scale and shift [N, C].
  Normalization at_sample(const TileStart& t) const {
    return {center + t.channel, scale + t.sample_channel, shift + t.sample_channel};
  }
};

// y = v · g + residual. Without g (identity) it is in scale and shift, which then are [N, C].
template <class T>
struct NormRescale {
  using A = acc_t<T>;
  const T *x, *residual;  // residual may be null
  Normalization<A> norm;
  const A* g;
  T* y;
  uint8_t* mask;  // null: no ReLU

  NormRescale at(const TileStart& t) const {
    return {x + t.element,
            moved(residual, t.element),
            g == nullptr ? norm.at_sample(t) : norm.at(t),
            moved(g, t.sample_channel),
            y + t.element,
            moved(mask, t.mask_byte)};
  }
};

// Sums into out[k · stride + channel], k = 0, 1, …
template <class T>
struct NormSums {
  using A = acc_t<T>;
  const T *dy, *x;
  const uint8_t* mask;  // null: no ReLU
  Normalization<A> norm;

  NormSums at(const TileStart& t) const {
    return {moved(dy, t.element), x + t.element, moved(mask, t.mask_byte), norm.at(t)};
  }
};

// dx = (q · g + share) · v' + (x − center) · slope + offset, where the scale is in g and share, and
// for identity the offset in share.
template <class T>
struct NormBackward {
  using A = acc_t<T>;
  const T *dy, *x;
  const uint8_t* mask;  // null: no ReLU
  Normalization<A> norm;
  const A *g, *share, *slope, *offset;  // slope and offset may be null
  T *dx, *dr;                           // dr may be null

  NormBackward at(const TileStart& t) const {
    return {dy + t.element,
            x + t.element,
            moved(mask, t.mask_byte),
            norm.at(t),
            g + t.sample_channel,
            share + t.sample_channel,
            moved(slope, t.channel),
            moved(offset, t.channel),
            dx + t.element,
            moved(dr, t.element)};
  }
};

// As Kernels, for a tile of [rows, cols].
template <class T>
struct NormKernels {
  using A = acc_t<T>;
  using Moments = void (*)(
      const T* x, int64_t rows, int64_t cols, A* pivots, A* out, int64_t stride);
  using Sums = void (*)(
      const NormSums<T>&, Act, int64_t rows, int64_t cols, A* out, int64_t stride);
  using Rescale =
      void (*)(const NormRescale<T>&, Act, int64_t rows, int64_t cols, bool past_caches);
  using Backward =
      void (*)(const NormBackward<T>&, Act, int64_t rows, int64_t cols, bool past_caches);

  // out = Σ (x − pivot), Σ (x − pivot)²; the row kernel chooses its rows' pivots, the column kernel
  // is given its columns'.
  Moments row_moments, column_moments;
  Sums row_squeeze, column_squeeze;  // out = Σ act(u); dy is null
  Sums row_sums, column_sums;        // 2 sums for identity, else 5
  Rescale row_rescale, column_rescale;
  Backward row_backward, column_backward;
};

template <class T>
const NormKernels<T>& norm_kernels();

// Values of a plane whose mean is its pivot: near the plane's own mean, so that little cancels.
constexpr int64_t pivot_values = 256;

inline int64_t sums_of(Act act) { return act == Act::identity ? 2 : 5; }

}  // namespace se_fused::cpu
