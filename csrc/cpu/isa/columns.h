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
  template <class Place>
  Vec<A> operator()(Place at) const {
    return at(values);
  }
};

// The channels' values once more for each row of a fold.
template <class A>
class FoldedChannels {
 public:
  template <class T>
  FoldedChannels(Pass<T>& p, int64_t cols, int64_t fold) {
    if (fold == 1) return;
    for (const A** values : {&p.center, &p.scale, &p.shift, &p.g, &p.gated_shift, &p.grad_mean,
                             &p.maximum, &p.grad_max, &p.slope, &p.offset})
      if (*values) *values = repeated(*values, cols, fold);
    if (p.pivot) p.pivot = repeated(p.pivot, cols, fold);
  }

 private:
  A* repeated(const A* values, int64_t cols, int64_t fold) {
    A* to = buffers_[used_++];
    for (int64_t k = 0; k < fold; ++k)
      for (int64_t c = 0; c < cols; ++c) to[k * cols + c] = values[c];
    return to;
  }

  int used_ = 0;
  alignas(64) A buffers_[sizeof(Channels<char>)][strip + 64 / sizeof(A)];
};

template <class T>
SE_FUSED_INLINE inline Row<T, ColumnValues<acc_t<T>>> row_at(
    const Pass<T>& p, int64_t element, int64_t byte) {
  using A = acc_t<T>;
  const auto value = [](const A* values) SE_FUSED_INLINE { return ColumnValues<A>{values}; };
  return {p, channels_of(p, value), element, byte};
}

struct Columns {
  // out[k · stride + c] = the term k over the rows.
  template <class F, class T>
  static void reduce(
      Pass<T> p, int64_t rows, int64_t cols, acc_t<T>* out, int64_t stride) {
    using A = acc_t<T>;
    const int64_t fold = rows_to_fold(cols, lanes<A>, p.mask), length = fold * cols;
    const FoldedChannels<A> channels(p, cols, fold);
    A results[F::count][strip + lanes<A>];
    for (int64_t first = 0; first < length; first += strip) {
      const int64_t size = length - first < strip ? length - first : strip;
      reduce_strip<F>(p, rows * cols, cols, length, first, size, results);
      for (int k = 0; k < F::count; ++k) {
        A *from = results[k], *to = out + k * stride + first;
        for (int64_t i = cols; i < size && fold > 1; ++i)
          from[i % cols] = combine<F>(k, broadcast(from[i % cols]), broadcast(from[i]))[0];
        __builtin_memcpy(to, from, (fold > 1 ? cols : size) * sizeof(A));
      }
    }
  }

  // The columns [first, first + size) of rows of `length` elements.
  template <class F, class T>
  static void reduce_strip(
      const Pass<T> p, int64_t elements, int64_t cols, int64_t length, int64_t first,
      int64_t size, acc_t<T> (*results)[strip + lanes<acc_t<T>>]) {
    using A = acc_t<T>;
    constexpr int64_t width = lanes<A>;
    constexpr int count = F::count;
    const int64_t bytes = length == cols ? mask_bytes(cols) : length / 8;
    A run[count][strip + width];
    for (int64_t start = 0, byte = 0; start < elements;) {
      const bool is_first = start == 0;
      const int64_t run_length = run_rows * length;
      const int64_t stop = elements - start < run_length ? elements : start + run_length;
      for (int k = 0; k < count; ++k)
        for (int64_t i = 0; i < size; i += width) store(run[k] + i, broadcast(start_of<F, A>(k)));
      // One row at a time: reading two at once halves the speed of a map that is not in cache.
      for (; start < stop; start += length, byte += bytes) {
        const int64_t columns = elements - start < length ? elements - start : length;
        const int64_t end = columns < first + size ? columns : first + size;
        for_vectors<A>(first, end, [&, row = row_at(p, start, byte)](auto at) SE_FUSED_INLINE {
          Vec<A> values[count];
          F::terms(row, at, values);
          for (int k = 0; k < count; ++k) {
            A* result = run[k] + (at.i - first);
            store(result, combine<F>(k, load(result), only_new<F, A>(k, at, values[k])));
          }
        });
      }
      for (int k = 0; k < count; ++k)
        for (int64_t i = 0; i < size; i += width) {
          const Vec<A> of_run = load(run[k] + i);
          store(results[k] + i, is_first ? of_run : combine<F>(k, load(results[k] + i), of_run));
        }
    }
  }

  template <class T>
  static void reduce_moments(
      const Pass<T> p, int64_t rows, int64_t cols, acc_t<T>* out, int64_t stride) {
    reduce<Moments>(p, rows, cols, out, stride);
  }

  template <class F, class T>
  static void apply(Pass<T> p, int64_t rows, int64_t cols, bool non_temporal) {
    using A = acc_t<T>;
    const int64_t fold = rows_to_fold(cols, lanes<A>, p.mask || p.new_mask);
    const FoldedChannels<A> channels(p, cols, fold);
    const bool aligned = streamable(p.y) && streamable(p.dr) && fold * cols % lanes<A> == 0;
    non_temporal && aligned ? write<F, true>(p, rows * cols, cols, fold * cols)
                            : write<F, false>(p, rows * cols, cols, fold * cols);
  }

  template <class F, bool non_temporal, class T>
  static void write(const Pass<T> p, int64_t elements, int64_t cols, int64_t length) {
    const int64_t bytes = length == cols ? mask_bytes(cols) : length / 8;
    for (int64_t start = 0, byte = 0; start < elements; start += length, byte += bytes) {
      const int64_t columns = elements - start < length ? elements - start : length;
      for_vectors<acc_t<T>>(
          0, columns, [row = row_at(p, start, byte)](auto at) SE_FUSED_INLINE {
            F::template write<non_temporal>(row, at);
          });
    }
    if (non_temporal) finish_streaming();
  }
};
