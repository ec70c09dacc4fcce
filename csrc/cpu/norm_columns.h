// The passes of a block with BatchNorm in channels_last: a row is a position, a column a channel.
// Included by norm_kernel_set.h only, inside its target region and namespace.

// Rows read as one. The rows of a mask must then follow each other bit by bit.
inline int64_t rows_to_fold(int64_t cols, int64_t width, bool has_mask) {
  return has_mask && cols % 8 != 0 ? 1 : rows_to_fold(cols, width);
}

// Per-channel values, repeated for each row of a fold.
template <class A>
class Repeated {
 public:
  Repeated(const A* values, int64_t cols, int64_t fold) : values_(values) {
    if (values && fold > 1) values_ = repeat(values, cols, fold, buffer_);
  }
  template <class Place>
  Vec<A> operator()(Place at) const {
    return at(values_);
  }

 private:
  const A* values_;
  A buffer_[strip];
};

// body(first element, its row's bytes of the mask, columns) for every row of a fold.
template <class Body>
inline void for_folded_rows(int64_t rows, int64_t cols, int64_t fold, Body body) {
  const int64_t length = fold * cols, elements = rows * cols;
  for (int64_t start = 0; start < elements; start += length) {
    const int64_t bytes = fold == 1 ? start / cols * mask_bytes(cols) : start / 8;
    body(start, bytes, elements - start < length ? elements - start : length);
  }
}

// out[k · stride + c] = Σ over rows of the terms k; terms(column, first element of the row, its bytes
// of the mask, vectors) fills K of them.
template <int K, class A, class Terms>
inline void sum_column_terms(
    int64_t rows, int64_t cols, bool has_mask, A* out, int64_t stride, Terms terms) {
  constexpr int64_t width = lanes<A>;
  const int64_t fold = rows_to_fold(cols, width, has_mask), length = fold * cols;
  for (int64_t first = 0; first < length; first += strip) {
    const int64_t count = length - first < strip ? length - first : strip;
    A total[K][strip + width] = {}, run[K][strip + width];
    int64_t rows_in_run = 0;
    const auto clear = [&] {
      for (int k = 0; k < K; ++k)
        for (int64_t i = 0; i < count + width; ++i) run[k][i] = 0;
      rows_in_run = 0;
    };
    const auto flush = [&] {
      for (int k = 0; k < K; ++k)
        for (int64_t i = 0; i < count; ++i) total[k][i] += run[k][i];
    };
    clear();
    for_folded_rows(rows, cols, fold, [&](int64_t start, int64_t bytes, int64_t columns) {
      const int64_t end = columns < first + count ? columns : first + count;
      for_vectors<A>(first, end, [&](auto at) {
        Vec<A> values[K];
        terms(at, start, bytes, values);
        for (int k = 0; k < K; ++k) {
          A* sum = run[k] + (at.i - first);
          store(sum, load(sum) + only_new<A>(at, values[k]));
        }
      });
      if (++rows_in_run == run_rows) {
        flush();
        clear();
      }
    });
    flush();
    for (int k = 0; k < K; ++k)
      for (int64_t c = 0; c < (fold == 1 ? count : cols); ++c) {
        A sum = total[k][c];
        for (int64_t i = c + cols; i < (fold == 1 ? 0 : count); i += cols) sum += total[k][i];
        out[k * stride + first + c] = sum;
      }
  }
}

template <class T>
void column_moments(
    const T* x, int64_t rows, int64_t cols, acc_t<T>* pivots, acc_t<T>* out, int64_t stride) {
  using A = acc_t<T>;
  const Repeated<A> pivot(pivots, cols, rows_to_fold(cols, lanes<A>, false));
  sum_column_terms<2, A>(
      rows, cols, false, out, stride, [&](auto at, int64_t start, int64_t, Vec<A>* terms) {
        moment_terms(at(x + start), pivot(at), terms);
      });
}

template <class T>
void column_norm_squeeze(
    const NormSums<T>& p, Act act, int64_t rows, int64_t cols, acc_t<T>* out, int64_t stride) {
  using A = acc_t<T>;
  const int64_t fold = rows_to_fold(cols, lanes<A>, false);
  const Repeated<A> center(p.norm.center, cols, fold), scale(p.norm.scale, cols, fold);
  const Repeated<A> shift(p.norm.shift, cols, fold);
  with_norm_act(act, [&](auto act) {
    sum_column_terms<1, A>(
        rows, cols, false, out, stride, [&](auto at, int64_t start, int64_t, Vec<A>* terms) {
          terms[0] = activated<decltype(act)::value, A>(
              (at(p.x + start) - center(at)) * scale(at) + shift(at));
        });
  });
}

template <class T>
void column_norm_sums(
    const NormSums<T>& p, Act act, int64_t rows, int64_t cols, acc_t<T>* out, int64_t stride) {
  using A = acc_t<T>;
  const bool has_mask = p.mask != nullptr;
  const int64_t fold = rows_to_fold(cols, lanes<A>, has_mask);
  const Repeated<A> center(p.norm.center, cols, fold), scale(p.norm.scale, cols, fold);
  const Repeated<A> shift(p.norm.shift, cols, fold);
  with_norm_act(act, [&](auto act) {
    constexpr Act known = decltype(act)::value;
    sum_column_terms<terms_of<known>, A>(
        rows, cols, has_mask, out, stride,
        [&](auto at, int64_t start, int64_t bytes, Vec<A>* terms) {
          Vec<A> q = at(p.dy + start);
          if (has_mask) q = masked(p.mask + bytes, at, q);
          sum_terms<known, A>(q, at(p.x + start), center(at), scale(at), shift(at), terms);
        });
  });
}

// body(first element, bytes of the mask, columns, past) for every row of a fold, past the caches if
// that is wanted and all outputs are aligned for it.
template <class T, class Body>
inline void write_folded_rows(
    const T* out, const T* other, int64_t rows, int64_t cols, int64_t fold, bool past_caches,
    Body body) {
  const bool aligned = streamable(out) && (other == nullptr || streamable(other)) &&
      fold * cols % lanes<acc_t<T>> == 0;
  if (past_caches && aligned) {
    for_folded_rows(rows, cols, fold, [&](int64_t start, int64_t bytes, int64_t columns) {
      body(start, bytes, columns, Constant<bool, true>{});
    });
    finish_streaming();
  } else {
    for_folded_rows(rows, cols, fold, [&](int64_t start, int64_t bytes, int64_t columns) {
      body(start, bytes, columns, Constant<bool, false>{});
    });
  }
}

template <class T>
void column_norm_rescale(
    const NormRescale<T>& p, Act act, int64_t rows, int64_t cols, bool past_caches) {
  using A = acc_t<T>;
  const int64_t fold = rows_to_fold(cols, lanes<A>, p.mask != nullptr);
  const Repeated<A> center(p.norm.center, cols, fold), scale(p.norm.scale, cols, fold);
  const Repeated<A> shift(p.norm.shift, cols, fold), g(p.g, cols, fold);
  with_norm_act(act, [&](auto act) {
    const auto row = [&](int64_t start, int64_t bytes, int64_t columns, auto past) {
      const T *x = p.x + start, *residual = moved(p.residual, start);
      T* y = p.y + start;
      uint8_t* mask = moved(p.mask, bytes);
      for_vectors<A>(0, columns, [&](auto at) {
        const Vec<A> u = (at(x) - center(at)) * scale(at) + shift(at);
        Vec<A> v = activated<decltype(act)::value, A>(u);
        if (decltype(act)::value != Act::identity) v *= g(at);
        if (residual) v += at(residual);
        if (mask) v = rectified(mask, at, v);
        place<decltype(past)::value>(y, at, v);
      });
    };
    write_folded_rows<T>(p.y, nullptr, rows, cols, fold, past_caches, row);
  });
}

template <class T>
void column_norm_backward(
    const NormBackward<T>& p, Act act, int64_t rows, int64_t cols, bool past_caches) {
  using A = acc_t<T>;
  const bool statistics = p.slope != nullptr;
  const int64_t fold = rows_to_fold(cols, lanes<A>, p.mask != nullptr);
  const Repeated<A> center(p.norm.center, cols, fold), scale(p.norm.scale, cols, fold);
  const Repeated<A> shift(p.norm.shift, cols, fold), g(p.g, cols, fold);
  const Repeated<A> share(p.share, cols, fold), slope(p.slope, cols, fold);
  const Repeated<A> offset(p.offset, cols, fold);
  with_norm_act(act, [&](auto act) {
    constexpr Act known = decltype(act)::value;
    const auto row = [&](int64_t start, int64_t bytes, int64_t columns, auto past) {
      const T *dy = p.dy + start, *x = p.x + start;
      T *dx = p.dx + start, *dr = moved(p.dr, start);
      const uint8_t* mask = moved(p.mask, bytes);
      for_vectors<A>(0, columns, [&](auto at) {
        Vec<A> q = at(dy);
        if (mask) q = masked(mask, at, q);
        if (dr) place<decltype(past)::value>(dr, at, q);
        Vec<A> result = q * g(at) + share(at);
        if (known != Act::identity || statistics) {
          const Vec<A> d = at(x) - center(at);
          if constexpr (known != Act::identity) {
            const Activated<A> v = activate<known, A>(d * scale(at) + shift(at));
            result = result * v.slope;
          }
          if (statistics) {
            result += d * slope(at);
            if (known != Act::identity) result += offset(at);
          }
        }
        place<decltype(past)::value>(dx, at, result);
      });
    };
    write_folded_rows<T>(p.dx, p.dr, rows, cols, fold, past_caches, row);
  });
}
