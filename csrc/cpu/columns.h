// Kernels with one gate per column: channels_last, a row is a position, a column a channel.
// Included by kernel_set.h only, inside its target region and namespace.

// Columns that one pass works on: their accumulators stay in the first-level cache.
constexpr int64_t strip = 1024;

// Rows added up in one partial sum.
constexpr int64_t run_rows = 64;

// Several short rows read as one: `fold` rows, whose length is then a multiple of the vector.
inline int64_t rows_to_fold(int64_t cols, int64_t width) {
  int64_t fold = 1;
  while (fold * cols < 8 * width || (fold * cols % width != 0 && fold < width)) {
    if (2 * fold * cols > strip) break;
    fold *= 2;
  }
  return fold;
}

// out[c] = Σ over rows of term(offset of row and column), term and part as in sum_row.
template <class A, class Term, class Part>
inline void sum_columns(int64_t rows, int64_t cols, A* out, Term term, Part part) {
  constexpr int64_t width = lanes<A>;
  const int64_t fold = rows_to_fold(cols, width), length = fold * cols;
  for (int64_t first = 0; first < length; first += strip) {
    const int64_t count = length - first < strip ? length - first : strip;
    A total[strip + width] = {}, run[strip + width];
    const auto add = [&](int64_t start, int64_t limit) {  // one row's columns up to `limit`
      int64_t i = 0;
      for (; i + width <= limit; i += width) store(run + i, load(run + i) + term(start + i));
      if (i < limit) store(run + i, load(run + i) + part(start + i, limit - i));
    };
    const int64_t end = rows / fold;
    for (int64_t row = 0; row < end;) {
      const int64_t stop = end - row < run_rows ? end : row + run_rows;
      for (int64_t i = 0; i < count + width; ++i) run[i] = 0;
      for (; row + 4 <= stop; row += 4) {
        const int64_t start = row * length + first;
        int64_t i = 0;
        for (; i + width <= count; i += width) {
          const int64_t at = start + i;
          const Vec<A> sum = (term(at) + term(at + length)) +
              (term(at + 2 * length) + term(at + 3 * length));
          store(run + i, load(run + i) + sum);
        }
        if (i < count) {
          for (int64_t k = 0; k < 4; ++k)
            store(run + i, load(run + i) + part(start + i + k * length, count - i));
        }
      }
      for (; row < stop; ++row) add(row * length + first, count);
      for (int64_t i = 0; i < count; ++i) total[i] += run[i];
    }
    const int64_t left = (rows - end * fold) * cols - first;  // rows that did not fill a fold
    if (left > 0) {
      for (int64_t i = 0; i < count + width; ++i) run[i] = 0;
      add(end * length + first, left < count ? left : count);
      for (int64_t i = 0; i < count; ++i) total[i] += run[i];
    }
    if (fold == 1) {
      for (int64_t i = 0; i < count; ++i) out[first + i] = total[i];
    } else {  // length <= strip: the folded rows are all here
      for (int64_t c = 0; c < cols; ++c) {
        A sum = total[c];
        for (int64_t k = 1; k < fold; ++k) sum += total[k * cols + c];
        out[c] = sum;
      }
    }
  }
}

// whole(offset, column) and part(offset, column, count) over the matrix, a vector at a time; the
// columns are those of the folded row, which `values` were repeated to fill.
template <class A, class Whole, class Part>
inline void for_columns(int64_t rows, int64_t cols, int64_t fold, Whole whole, Part part) {
  constexpr int64_t width = lanes<A>;
  const int64_t length = fold * cols, elements = rows * cols;
  for (int64_t start = 0; start < elements; start += length) {
    const int64_t count = elements - start < length ? elements - start : length;
    int64_t i = 0;
    for (; i + width <= count; i += width) whole(start + i, i);
    if (i < count) part(start + i, i, count - i);
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
  sum_columns(
      rows, cols, out, [=](int64_t i) { return load(x + i); },
      [=](int64_t i, int64_t count) { return load_part(x + i, count); });
}

template <class T>
void column_dots(const T* dy, const T* x, int64_t rows, int64_t cols, acc_t<T>* out) {
  sum_columns(
      rows, cols, out, [=](int64_t i) { return load(dy + i) * load(x + i); },
      [=](int64_t i, int64_t count) { return load_part(dy + i, count) * load_part(x + i, count); });
}

template <class T>
void column_scale(const T* x, const acc_t<T>* g, T* y, int64_t rows, int64_t cols) {
  using A = acc_t<T>;
  const int64_t fold = rows_to_fold(cols, lanes<A>);
  A buffer[strip];
  const A* gate = repeat(g, cols, fold, buffer);
  for_columns<A>(
      rows, cols, fold,
      [=](int64_t i, int64_t c) { store(y + i, load(x + i) * load(gate + c)); },
      [=](int64_t i, int64_t c, int64_t count) {
        store_part(y + i, load_part(x + i, count) * load_part(gate + c, count), count);
      });
}

template <class T>
void column_scale_add(
    const T* dy, const acc_t<T>* g, const acc_t<T>* shift, T* dx, int64_t rows, int64_t cols) {
  using A = acc_t<T>;
  const int64_t fold = rows_to_fold(cols, lanes<A>);
  A gates[strip], shifts[strip];
  const A* gate = repeat(g, cols, fold, gates);
  const A* add = repeat(shift, cols, fold, shifts);
  for_columns<A>(
      rows, cols, fold,
      [=](int64_t i, int64_t c) {
        store(dx + i, load(dy + i) * load(gate + c) + load(add + c));
      },
      [=](int64_t i, int64_t c, int64_t count) {
        const Vec<A> value = load_part(dy + i, count) * load_part(gate + c, count);
        store_part(dx + i, value + load_part(add + c, count), count);
      });
}
