// Kernels with one gate per row: contiguous layout, a row is a channel's plane.
// Included by kernel_set.h only, inside its target region and namespace.

// Vectors added up in plain partial sums, in a few chains; longer rows are sums of such runs.
constexpr int64_t vectors_in_run = 128;

// Per lane, the sum over a run [begin, end) of a row; term(read) is the summand where `read` reads.
template <class T, class Term>
inline Vec<acc_t<T>> sum_run(int64_t begin, int64_t end, Term term) {
  using A = acc_t<T>;
  constexpr int64_t width = lanes<A>;
  int64_t i = begin;
  Vec<A> sum0{}, sum1{}, sum2{}, sum3{};
  for (; i + 4 * width <= end; i += 4 * width) {
    if constexpr (std::is_same_v<T, bf16>) {
      sum0 += term(EvenAt{i});
      sum1 += term(OddAt{i});
      sum2 += term(EvenAt{i + 2 * width});
      sum3 += term(OddAt{i + 2 * width});
    } else {
      sum0 += term(At{i});
      sum1 += term(At{i + width});
      sum2 += term(At{i + 2 * width});
      sum3 += term(At{i + 3 * width});
    }
  }
  for (; i + width <= end; i += width) sum0 += term(At{i});
  for_rest<A>(begin, i, end, [&](auto at) { sum1 += only_new<A>(at, term(at)); });
  return (sum0 + sum1) + (sum2 + sum3);
}

// out[row] = Σ over the row; term(row)(read) is the summand.
template <class T, class Term>
inline void sum_rows(int64_t rows, int64_t cols, acc_t<T>* out, Term term) {
  using A = acc_t<T>;
  constexpr int64_t width = lanes<A>, run = vectors_in_run * width;
  int64_t row = 0;
  if (cols <= 16 * width) {
    for (; row + width <= rows; row += width) {
      Vec<A> sums[width];
      for (int64_t k = 0; k < width; ++k) sums[k] = sum_run<T>(0, cols, term(row + k));
      store(out + row, sum_lanes_of_each<A>(sums));
    }
  }
  for (; row < rows; ++row) {
    Vec<A> total{};
    for (int64_t start = 0; start < cols; start += run)
      total += sum_run<T>(start, cols - start > run ? start + run : cols, term(row));
    out[row] = sum_lanes(total);
  }
}

// out = value(read) over a row.
template <bool past_caches, class T, class Value>
inline void write_row(T* out, int64_t cols, Value value) {
  constexpr int64_t width = lanes<acc_t<T>>;
  int64_t i = 0;
  if constexpr (std::is_same_v<T, bf16>) {
    for (; i + 2 * width <= cols; i += 2 * width)
      put_even_odd<past_caches>(out + i, value(EvenAt{i}), value(OddAt{i}));
  } else {
    for (; i + 4 * width <= cols; i += 4 * width)
      for (int64_t k = 0; k < 4; ++k)
        put<past_caches>(out + i + k * width, value(At{i + k * width}));
  }
  for (; i + width <= cols; i += width) store(out + i, value(At{i}));
  for_rest<acc_t<T>>(0, i, cols, [&](auto at) { place<false>(out, at, value(at)); });
}

template <class T>
inline bool starts_line(const T* p) {
  constexpr uintptr_t cache_line = 64;
  return reinterpret_cast<uintptr_t>(p) % cache_line == 0;
}

// write(row, past) for every row; past the caches if that is wanted and no row shares a cache line
// with the next: lines written in part by each kind of store are slower than either.
template <class T, class Write>
inline void write_rows(const T* out, int64_t rows, int64_t cols, bool past_caches, Write write) {
  if (past_caches && starts_line(out) && starts_line(out + cols)) {
    for (int64_t row = 0; row < rows; ++row) write(row, Constant<bool, true>{});
    finish_streaming();
  } else {
    for (int64_t row = 0; row < rows; ++row) write(row, Constant<bool, false>{});
  }
}

template <class T>
void row_sums(const T* x, int64_t rows, int64_t cols, acc_t<T>* out) {
  sum_rows<T>(rows, cols, out, [=](int64_t row) {
    return [p = x + row * cols](auto read) { return read(p); };
  });
}

template <class T>
void row_dots(const T* dy, const T* x, int64_t rows, int64_t cols, acc_t<T>* out) {
  sum_rows<T>(rows, cols, out, [=](int64_t row) {
    return [p = dy + row * cols, q = x + row * cols](auto read) { return read(p) * read(q); };
  });
}

template <class T>
void row_scale(
    const T* x, const acc_t<T>* g, T* y, int64_t rows, int64_t cols, bool past_caches) {
  write_rows(y, rows, cols, past_caches, [=](int64_t row, auto past) {
    const auto gate = broadcast(g[row]);
    write_row<decltype(past)::value>(
        y + row * cols, cols, [gate, p = x + row * cols](auto read) { return read(p) * gate; });
  });
}

template <class T>
void row_scale_add(
    const T* dy, const acc_t<T>* g, const acc_t<T>* shift, T* dx, int64_t rows, int64_t cols,
    bool past_caches) {
  write_rows(dx, rows, cols, past_caches, [=](int64_t row, auto past) {
    const auto gate = broadcast(g[row]), add = broadcast(shift[row]);
    write_row<decltype(past)::value>(
        dx + row * cols, cols,
        [gate, add, p = dy + row * cols](auto read) { return read(p) * gate + add; });
  });
}
