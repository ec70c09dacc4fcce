// The passes of a squeeze with the maximum in it: as norm_kernels.h, letters as in
// se_fused/backends/__init__.py.
#pragma once

#include <limits>

#include "norm_kernels.h"

namespace se_fused::cpu {

// dx = dy · g + share + [x = m] · peak
template <class T>
struct MaxBackward {
  using A = acc_t<T>;
  const T *dy, *x;
  const A *g, *share, *m, *peak;  // [N, C]
  T* dx;

  MaxBackward at(const TileStart& t) const {
    return {dy + t.element,           x + t.element,        g + t.sample_channel,
            share + t.sample_channel, m + t.sample_channel, peak + t.sample_channel,
            dx + t.element};
  }
};

// For a tile of [rows, cols]; two results of a channel, at out[channel] and out[stride + channel].
template <class T>
struct MaxKernels {
  using A = acc_t<T>;
  using Squeeze = void (*)(const T* x, int64_t rows, int64_t cols, A* out, int64_t stride);
  using Sums = void (*)(
      const T* dy, const T* x, const A* m, int64_t rows, int64_t cols, A* out, int64_t stride);
  using Backward =
      void (*)(const MaxBackward<T>&, int64_t rows, int64_t cols, bool past_caches);

  Squeeze row_squeeze, column_squeeze;  // Σ x and max x
  Sums row_sums, column_sums;           // Σ dy · x and Σ [x = m]
  Backward row_backward, column_backward;
};

template <class T>
const MaxKernels<T>& max_kernels();

}  // namespace se_fused::cpu
