// Kernels with one gate per column: channels_last, a row is a position, a column a channel.
// Included by kernel_set.h only, inside its target region and namespace.

// Columns whose accumulators stay in the first-level cache; wider matrices are walked in strips.
constexpr int64_t strip = 2048;

// Rows added up in one partial sum.
constexpr int64_t run_rows = 64;

// Several short rows read as one: `fold` rows, so that their length is a multiple of the vector and
// some vectors long, where a strip can hold it.
inline int64_t rows_to_fold(int64_t cols, int64_t width) {
  int64_t fold = 1;
  while ((fold * cols < 8 * width || fold * cols % width != 0) && 2 * fold * cols <= strip)
    fold *= 2;
  return fold;
}

// run += one row's summands over `count` columns from `at` on.
template <class A, class Term>
inline void add_row(A* run, int64_t at, int64_t count, Term term) {
  constexpr int64_t width = lanes<A>;
  int64_t i = 0;
  for (; i + width <= count; i += width) store(run + i, load(run + i) + term(At{at + i}));
  if (i < count) store(run + i, load(run + i) + term(PartAt{at + i, count - i}));
}

// out[c] = Σ over rows; term(read) is the summand where `read` reads.
template <class A, class Term>
inline void sum_columns(int64_t rows, int64_t cols, A* out, Term term) {
  constexpr int64_t width = lanes<A>;
  const int64_t fold = rows_to_fold(cols, width), length = fold * cols, whole = rows / fold;
  for (int64_t first = 0; first < length; first += strip) {
    const int64_t count = length - first < strip ? length - first : strip;
    A total[strip + width] = {}, run[strip + width];
    const auto clear = [&] {
      for (int64_t i = 0; i < count + width; ++i) run[i] = 0;
    };
    const auto flush = [&] {
      for (int64_t i = 0; i < count; ++i) total[i] += run[i];
    };
    for (int64_t row = 0; row < whole;) {
      const int64_t stop = whole - row < run_rows ? whole : row + run_rows;
      clear();
      // One row at a time: reading two at once halves the speed of a map that is not in cache.
      for (; row < stop; ++row) add_row(run, row * length + first, count, term);
      flush();
    }
    const int64_t left = (rows - whole * fold) * cols;  // rows that did not fill a fold
    if (left > 0) {
      clear();
      add_row(run, whole * length, left, term);
      flush();
    }
    for (int64_t c = 0; c < (fold == 1 ? count : cols); ++c) {
      A sum = total[c];
      for (int64_t k = 1; k < fold; ++k) sum += total[k * cols + c];
      out[first + c] = sum;
    }
  }
}

// out = value(read, read_column) over the matrix: `read` reads the map, `read_column` the per-channel
// values, which were repeated to fill a folded row.
template <bool past_caches, class T, class Value>
inline void write_columns(T* out, int64_t rows, int64_t cols, int64_t fold, Value value) {
  constexpr int64_t width = lanes<acc_t<T>>;
  const int64_t length = fold * cols, elements = rows * cols;
  for (int64_t start = 0; start < elements; start += length) {
    const int64_t count = elements - start < length ? elements - start : length;
    int64_t i = 0;
    for (; i + width <= count; i += width)
      put<past_caches>(out + start + i, value(At{start + i}, At{i}));
    if (i < count)
      store_part(
          out + start + i, value(PartAt{start + i, count - i}, PartAt{i, count - i}), count - i);
  }
}

// The same, past the caches if that is wanted and every vector of the rows is aligned for it.
template <class T, class Value>
inline void write_columns(
    T* out, int64_t rows, int64_t cols, int64_t fold, bool past_caches, Value value) {
  if (past_caches && streamable(out) && fold * cols % lanes<acc_t<T>> == 0) {
    write_columns<true>(out, rows, cols, fold, value);
    finish_streaming();
  } else {
    write_columns<false>(out, rows, cols, fold, value);
  }
}

// `values` repeated for each row of a fold; the values themselves where there is nothing to fold.
template <class A>
inline const A* repeat(const A* values, int64_t cols, int64_t fold, A* buffer) {
  if (fold == 1) return values;
  for (int64_t k = 0; k < fold; ++k)
    for (int64_t c = 0; c < cols; ++c) buffer[k * cols + c] = values[c];
  return buffer;
}

template <class T>
void column_sums(const T* x, int64_t rows, int64_t cols, acc_t<T>* out) {
  sum_columns(rows, cols, out, [=](auto read) { return read(x); });
}

template <class T>
void column_dots(const T* dy, const T* x, int64_t rows, int64_t cols, acc_t<T>* out) {
  sum_columns(rows, cols, out, [=](auto read) { return read(dy) * read(x); });
}

template <class T>
void column_scale(
    const T* x, const acc_t<T>* g, T* y, int64_t rows, int64_t cols, bool past_caches) {
  using A = acc_t<T>;
  const int64_t fold = rows_to_fold(cols, lanes<A>);
  A buffer[strip];
  const A* gate = repeat(g, cols, fold, buffer);
  write_columns(y, rows, cols, fold, past_caches, [=](auto read, auto read_column) {
    return read(x) * read_column(gate);
  });
}

template <class T>
void column_scale_add(
    const T* dy, const acc_t<T>* g, const acc_t<T>* shift, T* dx, int64_t rows, int64_t cols,
    bool past_caches) {
  using A = acc_t<T>;
  const int64_t fold = rows_to_fold(cols, lanes<A>);
  A gates[strip], shifts[strip];
  const A* gate = repeat(g, cols, fold, gates);
  const A* add = repeat(shift, cols, fold, shifts);
  write_columns(dx, rows, cols, fold, past_caches, [=](auto read, auto read_column) {
    return read(dy) * read_column(gate) + read_column(add);
  });
}
