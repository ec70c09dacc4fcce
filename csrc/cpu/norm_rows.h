// The passes of a block with BatchNorm in contiguous layout: a row is a channel's plane.
// Included by norm_kernel_set.h only, inside its target region and namespace.

inline int64_t mask_bytes(int64_t cols) { return (cols + 7) / 8; }

// body(place) for every vector of [begin, end).
template <class A, class Body>
inline void for_vectors(int64_t begin, int64_t end, Body body) {
  constexpr int64_t width = lanes<A>;
  int64_t i = begin;
  for (; i + width <= end; i += width) body(At{i});
  for_rest<A>(begin, i, end, body);
}

// The same over a row, whose bf16 come in pairs of vectors first.
template <class T, class Body>
inline void for_row(int64_t cols, Body body) {
  using A = acc_t<T>;
  constexpr int64_t width = lanes<A>;
  int64_t i = 0;
  if constexpr (std::is_same_v<T, bf16>)
    for (; i + 2 * width <= cols; i += 2 * width) body(EvenOddAt{i});
  for (; i + width <= cols; i += width) body(At{i});
  for_rest<A>(0, i, cols, body);
}

// sums[k] = per lane, the sum over a row of the term k; term(place, vectors) fills K of them.
template <int K, class T, class Term>
inline void sum_row(int64_t cols, Vec<acc_t<T>>* sums, Term term) {
  using A = acc_t<T>;
  constexpr int64_t width = lanes<A>, run = vectors_in_run * width;
  for (int k = 0; k < K; ++k) sums[k] = Vec<A>{};
  for (int64_t start = 0; start < cols; start += run) {
    Vec<A> even[K] = {}, odd[K] = {};  // two chains of additions, where registers suffice
    const auto add = [&](auto at, Vec<A>* sum) {
      Vec<A> values[K];
      term(at, values);
      for (int k = 0; k < K; ++k) sum[k] += only_new<A>(at, values[k]);
    };
    const int64_t end = cols - start < run ? cols : start + run;
    int64_t i = start;
    for (; i + 2 * width <= end; i += 2 * width) {
      Vec<A>* second = K <= 2 ? odd : even;
      if constexpr (std::is_same_v<T, bf16>) {
        add(EvenAt{i}, even);
        add(OddAt{i}, second);
      } else {
        add(At{i}, even);
        add(At{i + width}, second);
      }
    }
    for (; i + width <= end; i += width) add(At{i}, even);
    for_rest<A>(start, i, end, [&](auto at) { add(at, odd); });
    for (int k = 0; k < K; ++k) sums[k] += even[k] + odd[k];
  }
}

// out[k · stride + row] = Σ over the row of the terms k; term(row) is a row's, as sum_row takes it.
// The lanes of as many rows as there are lanes are added up together. With `together` 2 rows are read
// two at a time: memory answers more streams faster.
template <int K, int together, class T, class Terms>
inline void sum_row_terms(
    int64_t rows, int64_t cols, acc_t<T>* out, int64_t stride, Terms terms) {
  using A = acc_t<T>;
  constexpr int64_t width = lanes<A>;
  int64_t row = 0;
  for (; row + width <= rows; row += width) {
    Vec<A> sums[K][width];
    for (int64_t r = 0; r < width; r += together) {
      Vec<A> own[together * K];
      if constexpr (together == 2)
        sum_row<2 * K, T>(
            cols, own, [a = terms(row + r), b = terms(row + r + 1)](auto at, Vec<A>* values) {
              a(at, values);
              b(at, values + K);
            });
      else
        sum_row<K, T>(cols, own, terms(row + r));
      for (int i = 0; i < together * K; ++i) sums[i % K][r + i / K] = own[i];
    }
    for (int k = 0; k < K; ++k) store(out + k * stride + row, sum_lanes_of_each<A>(sums[k]));
  }
  for (; row < rows; ++row) {
    Vec<A> own[K];
    sum_row<K, T>(cols, own, terms(row));
    for (int k = 0; k < K; ++k) out[k * stride + row] = sum_lanes(own[k]);
  }
}

// The pivot of a row is the mean of its beginning, which is read again from cache.
template <class T>
void row_moments(
    const T* x, int64_t rows, int64_t cols, acc_t<T>* pivots, acc_t<T>* out, int64_t stride) {
  using A = acc_t<T>;
  constexpr int64_t width = lanes<A>;
  const int64_t beginning = cols < pivot_values ? cols : pivot_values;
  const auto begin = [&](int64_t row) {
    return sum_run<T>(0, beginning, [p = x + row * cols](auto at) { return at(p); });
  };
  for (int64_t first = 0; first < rows; first += width) {
    const int64_t count = rows - first < width ? rows - first : width;
    A* pivot = pivots + first;
    if (count == width) {
      Vec<A> sums[width];
      for (int64_t r = 0; r < width; ++r) sums[r] = begin(first + r);
      store(pivot, sum_lanes_of_each<A>(sums) / static_cast<A>(beginning));
    } else {
      for (int64_t r = 0; r < count; ++r)
        pivot[r] = sum_lanes(begin(first + r)) / static_cast<A>(beginning);
    }
    sum_row_terms<2, 2, T>(count, cols, out + first, stride, [&](int64_t row) {
      return [p = x + (first + row) * cols, center = broadcast(pivot[row])](auto at, Vec<A>* terms) {
        moment_terms(at(p), center, terms);
      };
    });
  }
}

template <class T>
void row_norm_squeeze(
    const NormSums<T>& p, Act act, int64_t rows, int64_t cols, acc_t<T>* out, int64_t stride) {
  using A = acc_t<T>;
  with_norm_act(act, [&](auto act) {
    sum_row_terms<1, 1, T>(rows, cols, out, stride, [&](int64_t row) {
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
    constexpr int terms = terms_of<known>;
    constexpr int together = terms == 2 && !std::is_same_v<T, bf16> ? 2 : 1;  // as registers suffice
    sum_row_terms<terms, together, T>(rows, cols, out, stride, [&](int64_t row) {
      const auto center = broadcast(p.norm.center[row]), scale = broadcast(p.norm.scale[row]);
      const auto shift = broadcast(p.norm.shift[row]);
      const uint8_t* bits = moved(p.mask, row * mask_bytes(cols));
      return [=, dy = p.dy + row * cols, x = p.x + row * cols](auto at, Vec<A>* terms) {
        Vec<A> q = at(dy);
        if (bits) q = masked(bits, at, q);
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
      for_row<T>(cols, [=](auto at) {
        auto v = each((at(x) - center) * scale + shift, activated<known, A>);
        if (known != Act::identity) v = v * g;
        if (residual) v = v + at(residual);
        if (mask) v = rectified(mask, at, v);
        place<decltype(past)::value>(y, at, v);
      });
    });
  });
}

template <class T>
void row_norm_backward(
    const NormBackward<T>& p, Act act, int64_t rows, int64_t cols, bool past_caches) {
  using A = acc_t<T>;
  const bool past = past_caches && (p.dr == nullptr || starts_line(p.dr));
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
      for_row<T>(cols, [=](auto at) {
        auto q = at(dy);
        if (mask) q = masked(mask, at, q);
        if (dr) place<decltype(past)::value>(dr, at, q);
        auto result = q * g + share;
        if (known != Act::identity || statistics) {
          const auto d = at(x) - center;
          if constexpr (known != Act::identity)
            result = result * each(d * scale + shift, slope_of<known, A>);
          result = result + (d * slope + offset);
        }
        place<decltype(past)::value>(dx, at, result);
      });
    });
  });
}
