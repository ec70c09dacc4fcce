// The passes in channels_last: a row is a position, a column a channel.
// Included by kernel_set.h only, inside its target region and namespace.

// Columns whose accumulators stay in the first-level cache; wider matrices are walked in strips.
constexpr int64_t strip = 2048;

// Rows added up in one partial sum.
constexpr int64_t run_rows = 64;

// Several short rows read as one: `fold` rows, so that their length is a multiple of the vector and
// some vectors long, where a strip can hold it. The rows of a mask must then follow each other bit by
// bit.
inline int64_t rows_to_fold(int64_t cols, int64_t width, bool has_mask) {
  int64_t fold = 1;
  if (has_mask && cols % 8 != 0) return fold;
  while ((fold * cols < 8 * width || fold * cols % width != 0) && 2 * fold * cols <= strip)
    fold *= 2;
  return fold;
}

// The channels' values along a row.
template <class A>
struct ColumnValues {
  const A* values;
  explicit operator bool() const { return values != nullptr; }
  template <class Place>
  Vec<A> operator()(Place at) const {
    return at(values);
  }
};

// body(row, columns) for the rows of a tile, read `fold` at a time, with the channels' values once more
// for each row of a fold.
template <class T, class Body>
SE_FUSED_INLINE inline void for_folded_rows(
    const Pass<T>& p, int64_t rows, int64_t cols, int64_t fold, Body body) {
  using A = acc_t<T>;
  const int64_t length = fold * cols, elements = rows * cols;
  const int64_t bytes = fold == 1 ? mask_bytes(cols) : length / 8;
  A buffers[sizeof(Channels<char>)][strip];
  int used = 0;
  const auto channels = channels_of(p, [&](const A* values) SE_FUSED_INLINE {
    if (values == nullptr || fold == 1) return ColumnValues<A>{values};
    A* repeated = buffers[used++];
    for (int64_t i = 0; i < length; i += cols)
      for (int64_t c = 0; c < cols; ++c) repeated[i + c] = values[c];
    return ColumnValues<A>{repeated};
  });
  for (int64_t start = 0, byte = 0; start < elements; start += length, byte += bytes) {
    const Row<T, ColumnValues<A>> row(p, channels, start, byte);
    body(row, elements - start < length ? elements - start : length);
  }
}

struct Columns {
  // out[k · stride + c] = the term k over the rows.
  template <class F, class T>
  static void reduce(
      const Pass<T> p, int64_t rows, int64_t cols, acc_t<T>* out, int64_t stride) {
    using A = acc_t<T>;
    constexpr int64_t width = lanes<A>;
    constexpr int count = F::count;
    const int64_t fold = rows_to_fold(cols, width, p.mask), length = fold * cols;
    for (int64_t first = 0; first < length; first += strip) {
      const int64_t size = length - first < strip ? length - first : strip;
      A total[count][strip + width], run[count][strip + width];
      const auto clear = [&](auto& results) {
        for (int k = 0; k < count; ++k)
          for (int64_t i = 0; i < size + width; ++i) results[k][i] = start_of<F, A>(k);
      };
      const auto flush = [&] {
        for (int k = 0; k < count; ++k)
          for (int64_t i = 0; i < size; i += width)
            store(total[k] + i, combine<F>(k, load(total[k] + i), load(run[k] + i)));
      };
      clear(total);
      clear(run);
      int64_t rows_in_run = 0;
      // One row at a time: reading two at once halves the speed of a map that is not in cache.
      for_folded_rows(p, rows, cols, fold, [&](const auto& row, int64_t columns) SE_FUSED_INLINE {
        const int64_t end = columns < first + size ? columns : first + size;
        for_vectors<A>(first, end, [&, row](auto at) SE_FUSED_INLINE {
          Vec<A> values[count];
          F::terms(row, at, values);
          for (int k = 0; k < count; ++k) {
            A* result = run[k] + (at.i - first);
            store(result, combine<F>(k, load(result), only_new<F, A>(k, at, values[k])));
          }
        });
        if (++rows_in_run == run_rows) {
          flush();
          clear(run);
          rows_in_run = 0;
        }
      });
      flush();
      for (int k = 0; k < count; ++k)
        for (int64_t c = 0; c < (fold == 1 ? size : cols); ++c) {
          A result = total[k][c];
          for (int64_t i = c + cols; i < (fold == 1 ? 0 : size); i += cols)
            result = combine<F>(k, broadcast(result), broadcast(total[k][i]))[0];
          out[k * stride + first + c] = result;
        }
    }
  }

  template <class T>
  static void reduce_moments(
      const Pass<T> p, int64_t rows, int64_t cols, acc_t<T>* out, int64_t stride) {
    reduce<Moments>(p, rows, cols, out, stride);
  }

  template <class F, class T>
  static void apply(const Pass<T> p, int64_t rows, int64_t cols, bool non_temporal) {
    const int64_t fold = rows_to_fold(cols, lanes<acc_t<T>>, p.mask || p.new_mask);
    const bool aligned = streamable(p.y) && streamable(p.dr) &&
        fold * cols % lanes<acc_t<T>> == 0;
    with_flag(non_temporal && aligned, [&](auto flag) {
      constexpr bool streams = decltype(flag)::value;
      for_folded_rows(p, rows, cols, fold, [](const auto& row, int64_t columns) SE_FUSED_INLINE {
        for_vectors<acc_t<T>>(
            0, columns, [row](auto at) SE_FUSED_INLINE { F::template write<streams>(row, at); });
      });
      if (streams) finish_streaming();
    });
  }
};
