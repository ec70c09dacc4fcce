// Kernels with one gate per row: contiguous layout, a row is a channel's plane.
// Included by kernel_set.h only, inside its target region and namespace.

// Longest run added up in plain partial sums; longer rows are sums of such runs.
constexpr int64_t run_length = 1 << 14;

// Σ over the row of term(start) for whole vectors and of part(start, count) for the last one.
template <class A, class Term, class Part>
inline A sum_row(int64_t cols, Term term, Part part) {
  constexpr int64_t width = lanes<A>;
  Vec<A> total{};
  for (int64_t start = 0; start < cols; start += run_length) {
    const int64_t end = cols - start > run_length ? start + run_length : cols;
    Vec<A> sum0{}, sum1{}, sum2{}, sum3{};
    int64_t i = start;
    for (; i + 4 * width <= end; i += 4 * width) {
      sum0 += term(i);
      sum1 += term(i + width);
      sum2 += term(i + 2 * width);
      sum3 += term(i + 3 * width);
    }
    for (; i + width <= end; i += width) sum0 += term(i);
    if (i < end) sum1 += part(i, end - i);
    total += (sum0 + sum1) + (sum2 + sum3);
  }
  return sum_lanes(total);
}

// whole(start) for every whole vector of the row, part(start, count) for what is left.
template <class A, class Whole, class Part>
inline void for_row(int64_t cols, Whole whole, Part part) {
  constexpr int64_t width = lanes<A>;
  int64_t i = 0;
  for (; i + 4 * width <= cols; i += 4 * width) {
    whole(i);
    whole(i + width);
    whole(i + 2 * width);
    whole(i + 3 * width);
  }
  for (; i + width <= cols; i += width) whole(i);
  if (i < cols) part(i, cols - i);
}

template <class T>
void row_sums(const T* x, int64_t rows, int64_t cols, acc_t<T>* out) {
  using A = acc_t<T>;
  for (int64_t row = 0; row < rows; ++row, x += cols)
    out[row] = sum_row<A>(
        cols, [=](int64_t i) { return load(x + i); },
        [=](int64_t i, int64_t count) { return load_part(x + i, count); });
}

template <class T>
void row_dots(const T* dy, const T* x, int64_t rows, int64_t cols, acc_t<T>* out) {
  using A = acc_t<T>;
  for (int64_t row = 0; row < rows; ++row, dy += cols, x += cols)
    out[row] = sum_row<A>(
        cols, [=](int64_t i) { return load(dy + i) * load(x + i); },
        [=](int64_t i, int64_t count) {
          return load_part(dy + i, count) * load_part(x + i, count);
        });
}

template <class T>
void row_scale(const T* x, const acc_t<T>* g, T* y, int64_t rows, int64_t cols) {
  using A = acc_t<T>;
  for (int64_t row = 0; row < rows; ++row, x += cols, y += cols) {
    const Vec<A> gate = broadcast(g[row]);
    for_row<A>(
        cols, [=](int64_t i) { store(y + i, load(x + i) * gate); },
        [=](int64_t i, int64_t count) {
          store_part(y + i, load_part(x + i, count) * gate, count);
        });
  }
}

template <class T>
void row_scale_add(
    const T* dy, const acc_t<T>* g, const acc_t<T>* shift, T* dx, int64_t rows, int64_t cols) {
  using A = acc_t<T>;
  for (int64_t row = 0; row < rows; ++row, dy += cols, dx += cols) {
    const Vec<A> gate = broadcast(g[row]), add = broadcast(shift[row]);
    for_row<A>(
        cols, [=](int64_t i) { store(dx + i, load(dy + i) * gate + add); },
        [=](int64_t i, int64_t count) {
          store_part(dx + i, load_part(dy + i, count) * gate + add, count);
        });
  }
}
