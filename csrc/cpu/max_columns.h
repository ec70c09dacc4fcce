// The passes of a squeeze with the maximum in channels_last: a row is a position, a column a channel.
// Included by max_kernel_set.h only, inside its target region and namespace.

// out[c] and out[stride + c] over rows; terms(column, first element of the row) is a pair.
template <class A, class Second, class Terms>
inline void reduce_columns(int64_t rows, int64_t cols, A* out, int64_t stride, Terms terms) {
  constexpr int64_t width = lanes<A>;
  const int64_t fold = rows_to_fold(cols, width), length = fold * cols;
  for (int64_t first = 0; first < length; first += strip) {
    const int64_t count = length - first < strip ? length - first : strip;
    A total[strip + width], run[strip + width] = {}, second[strip + width];
    for (int64_t i = 0; i < count + width; ++i) {
      total[i] = 0;
      second[i] = Second::start;
    }
    int64_t rows_in_run = 0;
    const auto flush = [&] {
      for (int64_t i = 0; i < count; ++i) {
        total[i] += run[i];
        run[i] = 0;
      }
      rows_in_run = 0;
    };
    for_folded_rows(rows, cols, fold, [&](int64_t start, int64_t, int64_t columns) {
      const int64_t end = columns < first + count ? columns : first + count;
      for_vectors<A>(first, end, [&](auto at) {
        const Pair<A> pair = terms(at, start);
        A *sum = run + (at.i - first), *most = second + (at.i - first);
        store(sum, load(sum) + pair.first);
        store(most, Second::combine(load(most), pair.second));
      });
      if (++rows_in_run == run_rows) flush();
    });
    flush();
    for (int64_t c = 0; c < (fold == 1 ? count : cols); ++c) {
      for (int64_t i = c + cols; i < (fold == 1 ? 0 : count); i += cols) {
        total[c] += total[i];
        second[c] = Second::combine(broadcast(second[c]), broadcast(second[i]))[0];
      }
      out[first + c] = total[c];
      out[stride + first + c] = second[c];
    }
  }
}

template <class T>
void column_squeeze_max(
    const T* x, int64_t rows, int64_t cols, acc_t<T>* out, int64_t stride) {
  using A = acc_t<T>;
  reduce_columns<A, Maximum<A>>(rows, cols, out, stride, [=](auto at, int64_t start) {
    return squeeze_terms<A>(at, at(x + start));
  });
}

template <class T>
void column_gradient_sums(
    const T* dy, const T* x, const acc_t<T>* m, int64_t rows, int64_t cols, acc_t<T>* out,
    int64_t stride) {
  using A = acc_t<T>;
  const Repeated<A> most(m, cols, rows_to_fold(cols, lanes<A>));
  reduce_columns<A, Sum<A>>(rows, cols, out, stride, [&](auto at, int64_t start) {
    return gradient_terms<A>(at, at(dy + start), at(x + start), most(at));
  });
}

template <class T>
void column_max_backward(const MaxBackward<T>& p, int64_t rows, int64_t cols, bool past_caches) {
  using A = acc_t<T>;
  const int64_t fold = rows_to_fold(cols, lanes<A>);
  const Repeated<A> g(p.g, cols, fold), share(p.share, cols, fold);
  const Repeated<A> m(p.m, cols, fold), peak(p.peak, cols, fold);
  write_columns(p.dx, rows, cols, fold, past_caches, [&](auto read, auto column) {
    return map_gradient(
        read(p.dy), read(p.x), g(column), share(column), m(column), peak(column));
  });
}
