// The passes in contiguous layout: a row is a channel's plane.
// Included by kernel_set.h only, inside its target region and namespace.

// Elements added up in plain partial sums, in a few chains; longer rows are sums of such runs.
template <class T>
constexpr int64_t run_length = 128 * lanes<acc_t<T>>;

// A channel's value, for all of its row.
template <class A>
struct RowValue {
  Vec<A> value;
  template <class Place>
  Vec<A> operator()(Place) const {
    return value;
  }
};

template <class T>
SE_FUSED_INLINE inline Row<T, RowValue<acc_t<T>>> row_of(const Pass<T>& p, int64_t row, int64_t cols) {
  using A = acc_t<T>;
  const auto value = [row](const A* values) SE_FUSED_INLINE {
    return RowValue<A>{broadcast(values[row])};
  };
  return {p, channels_of(p, value), row * cols, row * mask_bytes(cols)};
}

// out[k] = per lane, the term k over [begin, end) of a row, or of `together` rows one after the other;
// terms(place, vectors) fills them.
template <class F, int together, class T, class Terms>
SE_FUSED_INLINE inline void reduce_run(int64_t begin, int64_t end, Vec<acc_t<T>>* out, const Terms& terms) {
  using A = acc_t<T>;
  constexpr int64_t width = lanes<A>;
  constexpr int count = together * F::count, chains = together == 2 ? 1 : F::chains;
  constexpr int block = chains == 4 ? 4 : 2;
  Vec<A> result[chains][count];
  for (int c = 0; c < chains; ++c)
    for (int k = 0; k < count; ++k) result[c][k] = broadcast(start_of<F, A>(k));
  const auto add = [&](int chain, const Vec<A>* values) SE_FUSED_INLINE {
    for (int k = 0; k < count; ++k)
      result[chain % chains][k] = combine<F>(k, result[chain % chains][k], values[k]);
  };
  const auto add_at = [&](int chain, auto at) SE_FUSED_INLINE {
    Vec<A> values[count];
    terms(at, values);
    for (int k = 0; k < count; ++k) values[k] = only_new<F, A>(k, at, values[k]);
    add(chain, values);
  };
  int64_t i = begin;
  for (; i + block * width <= end; i += block * width) {
    if constexpr (std::is_same_v<T, bf16>) {
#pragma GCC unroll 2
      for (int c = 0; c < block; c += 2) {
        Pair values[count];
        terms(FullPair{i + c * width}, values);
        Vec<A> even[count], odd[count];
        for (int k = 0; k < count; ++k) even[k] = values[k].even, odd[k] = values[k].odd;
        add(c, even);
        add(c + 1, odd);
      }
    } else {
#pragma GCC unroll 4
      for (int c = 0; c < block; ++c) add_at(c, Full{i + c * width});
    }
  }
#pragma GCC unroll 4
  for (; i + width <= end; i += width) add_at(0, Full{i});
  for_rest<A>(begin, i, end, [&](auto at) SE_FUSED_INLINE { add_at(1, at); });
  for (int k = 0; k < count; ++k) {
    if constexpr (chains == 4)
      out[k] = combine<F>(
          k, combine<F>(k, result[0][k], result[1][k]), combine<F>(k, result[2][k], result[3][k]));
    else if constexpr (chains == 2)
      out[k] = combine<F>(k, result[0][k], result[1][k]);
    else
      out[k] = result[0][k];
  }
}

// The same over a whole row, which has several runs if it is long.
template <class F, int together, bool is_long, class T, class Terms>
SE_FUSED_INLINE inline void reduce_row(int64_t cols, Vec<acc_t<T>>* out, const Terms& terms) {
  if constexpr (!is_long) return reduce_run<F, together, T>(0, cols, out, terms);
  constexpr int count = together * F::count;
  for (int k = 0; k < count; ++k) out[k] = broadcast(start_of<F, acc_t<T>>(k));
  for (int64_t start = 0; start < cols; start += run_length<T>) {
    Vec<acc_t<T>> next[count];
    const int64_t end = cols - start < run_length<T> ? cols : start + run_length<T>;
    reduce_run<F, together, T>(start, end, next, terms);
    for (int k = 0; k < count; ++k) out[k] = combine<F>(k, out[k], next[k]);
  }
}

// out[k · stride + row] = the term k over `cols` elements of each row; row_at(row) is a Row. The lanes of
// as many rows as there are lanes are combined together.
template <class F, bool is_long, class T, class RowAt>
SE_FUSED_INLINE inline void reduce_rows(
    int64_t rows, int64_t cols, acc_t<T>* out, int64_t stride, const RowAt& row_at) {
  using A = acc_t<T>;
  constexpr int64_t width = lanes<A>;
  constexpr int count = F::count, together = F::together;
  const auto reduce_some = [&](int64_t row, int64_t some) SE_FUSED_INLINE {
    Vec<A> results[count][width];
    for (int64_t r = 0; r < some; r += together) {
      Vec<A> own[together * count];
      const auto a = row_at(row + r), b = row_at(row + (r + 1 < some ? r + 1 : r));
      reduce_row<F, together, is_long, T>(cols, own, [=](auto at, auto* values) SE_FUSED_INLINE {
        F::terms(a, at, values);
        if constexpr (together == 2) F::terms(b, at, values + count);
      });
      for (int i = 0; i < together * count; ++i) results[i % count][r + i / count] = own[i];
    }
    for (int k = 0; k < count; ++k) {
      const Vec<A> of_rows = combine_lanes_of_each<A>(
          results[k], [k](Vec<A> a, Vec<A> b) { return combine<F>(k, a, b); });
      if (some == width)
        store(out + k * stride + row, of_rows);
      else
        store_part(out + k * stride + row, of_rows, some);
    }
  };
  int64_t row = 0;
  for (; row + width <= rows; row += width) reduce_some(row, width);
  if (row < rows) reduce_some(row, rows - row);
}

// Lines written in part by ordinary and in part by non-temporal stores are slower than either.
template <class T>
inline bool starts_line(const T* p) {
  constexpr uintptr_t cache_line = 64;
  return reinterpret_cast<uintptr_t>(p) % cache_line == 0;
}

struct Rows {
  template <class F, class T>
  static void reduce(
      const Pass<T>& p, int64_t rows, int64_t cols, acc_t<T>* out, int64_t stride) {
    cols > run_length<T> ? reduce_known<F, true>(p, rows, cols, out, stride)
                         : reduce_known<F, false>(p, rows, cols, out, stride);
  }

  // Arguments are copies, which no store may change.
  template <class F, bool is_long, class T>
  static void reduce_known(
      const Pass<T> p, int64_t rows, int64_t cols, acc_t<T>* out, int64_t stride) {
    reduce_rows<F, is_long, T>(
        rows, cols, out, stride,
        [&](int64_t row) SE_FUSED_INLINE { return row_of(p, row, cols); });
  }

  // The pivot of a row is the mean of its beginning, which is read again from cache.
  template <class T>
  static void reduce_moments(
      const Pass<T> p, int64_t rows, int64_t cols, acc_t<T>* out, int64_t stride) {
    constexpr int64_t width = lanes<acc_t<T>>;
    const int64_t beginning = cols < pivot_values ? cols : pivot_values;
    for (int64_t first = 0; first < rows; first += width) {
      const int64_t count = rows - first < width ? rows - first : width;
      const auto row_at = [&](int64_t row) SE_FUSED_INLINE { return row_of(p, first + row, cols); };
      acc_t<T>* pivot = p.pivot + first;
      reduce_rows<Values, false, T>(count, beginning, pivot, 0, row_at);
      for (int64_t r = 0; r < count; ++r) pivot[r] /= static_cast<acc_t<T>>(beginning);
      reduce_rows<Moments, true, T>(count, cols, out + first, stride, row_at);
    }
  }

  template <class F, class T>
  static void apply(const Pass<T>& p, int64_t rows, int64_t cols, bool non_temporal) {
    const bool aligned = starts_line(p.y) && starts_line(p.y + cols) && starts_line(p.dr);
    non_temporal && aligned ? write<F, true>(p, rows, cols) : write<F, false>(p, rows, cols);
  }

  template <class F, bool non_temporal, class T>
  static void write(const Pass<T> p, int64_t rows, int64_t cols) {
    constexpr int64_t width = lanes<acc_t<T>>;
    for (int64_t r = 0; r < rows; ++r) {
      const auto write = [row = row_of(p, r, cols)](auto at) SE_FUSED_INLINE {
        F::template write<non_temporal>(row, at);
      };
      int64_t i = 0;
      if constexpr (std::is_same_v<T, bf16>)
        for (; i + 2 * width <= cols; i += 2 * width) write(FullPair{i});
      else if constexpr (F::unroll > 1)
        for (; i + F::unroll * width <= cols; i += F::unroll * width)
          for (int k = 0; k < F::unroll; ++k) write(Full{i + k * width});
      for (; i + width <= cols; i += width) write(Full{i});
      for_rest<acc_t<T>>(0, i, cols, write);
    }
    if (non_temporal) finish_streaming();
  }
};
