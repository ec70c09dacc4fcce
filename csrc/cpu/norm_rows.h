// The passes of a block with BatchNorm in contiguous layout: a row is a channel's plane.
// Included by norm_kernel_set.h only, inside its target region and namespace.

// Vectors added up in one partial sum.
constexpr int64_t vectors_in_run = 64;

inline int64_t mask_bytes(int64_t cols) { return (cols + 7) / 8; }

// body(place) for every vector of [begin, end).
template <class A, class Body>
inline void for_vectors(int64_t begin, int64_t end, Body body) {
  constexpr int64_t width = lanes<A>;
  int64_t i = begin;
  for (; i + width <= end; i += width) body(At{i});
  if (i < end) body(PartAt{i, end - i});
}

template <bool past_caches, class T>
inline void place(T* out, At at, Vec<acc_t<T>> v) {
  put<past_caches>(out + at.i, v);
}
template <bool past_caches, class T>
inline void place(T* out, PartAt at, Vec<acc_t<T>> v) {
  store_part(out + at.i, v, at.count);
}

// out[k · stride + row] = Σ over the row of the terms k; terms(row)(place, vectors) fills K of them.
template <int K, class A, class Terms>
inline void sum_row_terms(int64_t rows, int64_t cols, A* out, int64_t stride, Terms terms) {
  constexpr int64_t run = vectors_in_run * lanes<A>;
  for (int64_t row = 0; row < rows; ++row) {
    const auto term = terms(row);
    Vec<A> total[K] = {};
    for (int64_t start = 0; start < cols; start += run) {
      Vec<A> sum[K] = {};
      for_vectors<A>(start, cols - start < run ? cols : start + run, [&](auto at) {
        Vec<A> values[K];
        term(at, values);
        for (int k = 0; k < K; ++k) sum[k] += only_read(at, values[k]);
      });
      for (int k = 0; k < K; ++k) total[k] += sum[k];
    }
    for (int k = 0; k < K; ++k) out[k * stride + row] = sum_lanes(total[k]);
  }
}

// The pivot of a row is the mean of its beginning, which is read again from cache.
template <class T>
void row_moments(
    const T* x, int64_t rows, int64_t cols, acc_t<T>* pivots, acc_t<T>* out, int64_t stride) {
  using A = acc_t<T>;
  const int64_t beginning = cols < pivot_values ? cols : pivot_values;
  sum_row_terms<2, A>(rows, cols, out, stride, [&](int64_t row) {
    const auto read = [p = x + row * cols](auto at) { return at(p); };
    pivots[row] = sum_lanes(sum_run<T>(0, beginning, read)) / static_cast<A>(beginning);
    return [read, pivot = broadcast(pivots[row])](auto at, Vec<A>* terms) {
      moment_terms(read(at), pivot, terms);
    };
  });
}

template <class T>
void row_norm_squeeze(
    const NormSums<T>& p, Act act, int64_t rows, int64_t cols, acc_t<T>* out, int64_t stride) {
  using A = acc_t<T>;
  with_norm_act(act, [&](auto act) {
    sum_row_terms<1, A>(rows, cols, out, stride, [&](int64_t row) {
      const auto center = broadcast(p.norm.center[row]), scale = broadcast(p.norm.scale[row]);
      const auto shift = broadcast(p.norm.shift[row]);
      return [=, x = p.x + row * cols](auto at, Vec<A>* terms) {
        terms[0] = activated<decltype(act)::value, A>((at(x) - center) * scale + shift);
      };
    });
  });
}

template <class T>
void row_norm_sums(
    const NormSums<T>& p, Act act, int64_t rows, int64_t cols, acc_t<T>* out, int64_t stride) {
  using A = acc_t<T>;
  with_norm_act(act, [&](auto act) {
    constexpr Act known = decltype(act)::value;
    sum_row_terms<terms_of<known>, A>(rows, cols, out, stride, [&](int64_t row) {
      const auto center = broadcast(p.norm.center[row]), scale = broadcast(p.norm.scale[row]);
      const auto shift = broadcast(p.norm.shift[row]);
      const uint8_t* bits = moved(p.mask, row * mask_bytes(cols));
      return [=, dy = p.dy + row * cols, x = p.x + row * cols](auto at, Vec<A>* terms) {
        Vec<A> q = at(dy);
        if (bits) q = keep(load_bits<A>(bits, at), q);
        sum_terms<known, A>(q, at(x), center, scale, shift, terms);
      };
    });
  });
}

template <class T>
void row_norm_rescale(
    const NormRescale<T>& p, Act act, int64_t rows, int64_t cols, bool past_caches) {
  using A = acc_t<T>;
  with_norm_act(act, [&](auto act) {
    constexpr Act known = decltype(act)::value;
    write_rows(p.y, rows, cols, past_caches, [&](int64_t row, auto past) {
      const auto center = broadcast(p.norm.center[row]), scale = broadcast(p.norm.scale[row]);
      const auto shift = broadcast(p.norm.shift[row]);
      const auto g = broadcast(known == Act::identity ? A(1) : p.g[row]);
      const T *x = p.x + row * cols, *residual = moved(p.residual, row * cols);
      T* y = p.y + row * cols;
      uint8_t* mask = moved(p.mask, row * mask_bytes(cols));
      for_vectors<A>(0, cols, [=](auto at) {
        Vec<A> v = activated<known, A>((at(x) - center) * scale + shift);
        if (known != Act::identity) v *= g;
        if (residual) v += at(residual);
        if (mask) {
          const uint32_t bits = passing(only_read(at, v));
          store_bits<A>(mask, at, bits);
          v = keep(bits, v);
        }
        place<decltype(past)::value>(y, at, v);
      });
    });
  });
}

template <class T>
void row_norm_backward(
    const NormBackward<T>& p, Act act, int64_t rows, int64_t cols, bool past_caches) {
  using A = acc_t<T>;
  const bool past = past_caches && (p.dr == nullptr || streamable(p.dr));
  with_norm_act(act, [&](auto act) {
    constexpr Act known = decltype(act)::value;
    write_rows(p.dx, rows, cols, past, [&](int64_t row, auto past) {
      const auto center = broadcast(p.norm.center[row]), scale = broadcast(p.norm.scale[row]);
      const auto shift = broadcast(p.norm.shift[row]);
      const auto g = broadcast(p.g[row]), share = broadcast(p.share[row]);
      const bool statistics = p.slope != nullptr;
      const auto slope = broadcast(statistics ? p.slope[row] : A(0));
      const auto offset =
          broadcast(statistics && known != Act::identity ? p.offset[row] : A(0));
      const T *dy = p.dy + row * cols, *x = p.x + row * cols;
      T *dx = p.dx + row * cols, *dr = moved(p.dr, row * cols);
      const uint8_t* mask = moved(p.mask, row * mask_bytes(cols));
      for_vectors<A>(0, cols, [=](auto at) {
        Vec<A> q = at(dy);
        if (mask) q = keep(load_bits<A>(mask, at), q);
        if (dr) place<decltype(past)::value>(dr, at, q);
        Vec<A> result = q * g + share;
        if (known != Act::identity || statistics) {
          const Vec<A> d = at(x) - center;
          if constexpr (known != Act::identity) {
            const Activated<A> v = activate<known, A>(d * scale + shift);
            result = result * v.slope;
          }
          result += d * slope + offset;
        }
        place<decltype(past)::value>(dx, at, result);
      });
    });
  });
}
