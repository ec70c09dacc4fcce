// The passes of a squeeze with the maximum in contiguous layout: a row is a channel's plane.
// Included by max_kernel_set.h only, inside its target region and namespace.

// Per lane, both results of a run [begin, end) of a row; terms(place) is a pair.
template <class T, class Second, class Terms>
inline Pair<acc_t<T>> reduce_run(int64_t begin, int64_t end, Terms terms) {
  using A = acc_t<T>;
  int64_t i = begin;
  constexpr int64_t width = lanes<A>;
  const auto add = [](Pair<A> a, Pair<A> b) {
    return Pair<A>{a.first + b.first, Second::combine(a.second, b.second)};
  };
  const Pair<A> start{Vec<A>{}, broadcast(Second::start)};
  Pair<A> run0 = start, run1 = start, run2 = start, run3 = start;
  for (; i + 4 * width <= end; i += 4 * width) {
    if constexpr (std::is_same_v<T, bf16>) {
      run0 = add(run0, terms(EvenAt{i}));
      run1 = add(run1, terms(OddAt{i}));
      run2 = add(run2, terms(EvenAt{i + 2 * width}));
      run3 = add(run3, terms(OddAt{i + 2 * width}));
    } else {
      run0 = add(run0, terms(At{i}));
      run1 = add(run1, terms(At{i + width}));
      run2 = add(run2, terms(At{i + 2 * width}));
      run3 = add(run3, terms(At{i + 3 * width}));
    }
  }
  for (; i + width <= end; i += width) run0 = add(run0, terms(At{i}));
  for_rest<A>(begin, i, end, [&](auto at) { run1 = add(run1, terms(at)); });
  return add(add(run0, run1), add(run2, run3));
}

// out[row] and out[stride + row] of every row; terms(row)(place) is a pair.
template <class T, class Second, class Terms>
inline void reduce_rows(
    int64_t rows, int64_t cols, acc_t<T>* out, int64_t stride, Terms terms) {
  using A = acc_t<T>;
  constexpr int64_t width = lanes<A>, run = vectors_in_run * width;
  int64_t row = 0;
  if (cols <= 16 * width) {
    for (; row + width <= rows; row += width) {
      Vec<A> first[width], second[width];
      for (int64_t k = 0; k < width; ++k) {
        const Pair<A> pair = reduce_run<T, Second>(0, cols, terms(row + k));
        first[k] = pair.first;
        second[k] = pair.second;
      }
      store(out + row, sum_lanes_of_each<A>(first));
      store(out + stride + row, combine_lanes_of_each<A>(second, Second::combine));
    }
  }
  for (; row < rows; ++row) {
    Vec<A> total{}, second = broadcast(Second::start);
    // Runs are short, for the gradient of a maximum is the gate's as it is, not an Mth of it.
    for (int64_t start = 0; start < cols; start += run) {
      const int64_t end = cols - start > run ? start + run : cols;
      const Pair<A> pair = reduce_run<T, Second>(start, end, terms(row));
      total += pair.first;
      second = Second::combine(second, pair.second);
    }
    out[row] = sum_lanes(total);
    out[stride + row] = Second::of_lanes(second);
  }
}

template <class T>
void row_squeeze_max(
    const T* x, int64_t rows, int64_t cols, acc_t<T>* out, int64_t stride) {
  using A = acc_t<T>;
  reduce_rows<T, Maximum<A>>(rows, cols, out, stride, [=](int64_t row) {
    return [p = x + row * cols](auto at) { return squeeze_terms<A>(at, at(p)); };
  });
}

template <class T>
void row_gradient_sums(
    const T* dy, const T* x, const acc_t<T>* m, int64_t rows, int64_t cols, acc_t<T>* out,
    int64_t stride) {
  using A = acc_t<T>;
  reduce_rows<T, Sum<A>>(rows, cols, out, stride, [=](int64_t row) {
    const auto most = broadcast(m[row]);
    return [most, p = dy + row * cols, q = x + row * cols](auto at) {
      return gradient_terms<A>(at, at(p), at(q), most);
    };
  });
}

template <class T>
void row_max_backward(const MaxBackward<T>& p, int64_t rows, int64_t cols, bool past_caches) {
  write_rows(p.dx, rows, cols, past_caches, [&](int64_t row, auto past) {
    const auto g = broadcast(p.g[row]), share = broadcast(p.share[row]);
    const auto m = broadcast(p.m[row]), peak = broadcast(p.peak[row]);
    write_row<decltype(past)::value>(
        p.dx + row * cols, cols,
        [=, dy = p.dy + row * cols, x = p.x + row * cols](auto read) {
          return map_gradient(read(dy), read(x), g, share, m, peak);
        });
  });
}
