// What the passes compute of one vector, whatever the layout. Letters and formulas as in
// se_fused/backends/README.md.
// Included by kernel_set.h only, inside its target region and namespace.

// What is known of the channels of one row: `Channel` is a value for all of the row (contiguous), or an
// array along it (channels_last). At a place it gives a vector. Those that are absent are never read, but
// grad_mean, which then is g.
template <class Channel>
struct Channels {
  Channel center, scale, shift, g, gated_shift, grad_mean, maximum, grad_max, slope, offset, pivot;
};
template <class T, class Make>
SE_FUSED_INLINE inline auto channels_of(const Pass<T>& p, Make make) -> Channels<decltype(make(p.g))> {
  return {make(p.center), make(p.scale), make(p.shift), make(p.g), make(p.gated_shift),
          make(p.grad_mean ? p.grad_mean : p.g),
          make(p.maximum), make(p.grad_max), make(p.slope), make(p.offset), make(p.pivot)};
}

// One row of a tile: what the formulas read and write.
template <class T, class Channel>
struct Row : Channels<Channel> {
  const T *x, *dy, *residual;
  const uint8_t* mask;
  T *y, *dr;
  uint8_t* new_mask;
  bool has_mean_gradient;

  // From an element of the tile, and a byte of its mask, on.
  SE_FUSED_INLINE Row(const Pass<T>& p, const Channels<Channel>& channels, int64_t element, int64_t byte)
      : Channels<Channel>(channels),
        x(p.x + element),
        dy(p.dy + element),
        residual(moved(p.residual, element)),
        mask(moved(p.mask, byte)),
        y(p.y + element),
        dr(moved(p.dr, element)),
        new_mask(moved(p.new_mask, byte)),
        has_mean_gradient(p.grad_mean != nullptr) {}
};

// Activations as vectors, known at compile time

template <Act act, class A>
inline Vec<A> activated(Vec<A> u) {
  if constexpr (act == Act::relu) return u < 0 ? Vec<A>{} : u;
  else if constexpr (act == Act::silu) return u * sigmoid(u);
  else if constexpr (act == Act::hardswish) return hardswish(u);
  else return u;
}
template <Act act, class A>
inline Vec<A> slope_of(Vec<A> u) {
  static_assert(act != Act::identity);
  if constexpr (act == Act::relu) return u > 0 ? Vec<A>{} + 1 : Vec<A>{};
  else if constexpr (act == Act::silu) return silu_derivative(u);
  else return hardswish_derivative(u);
}

// body(act as a compile-time constant), for those that a block may have before its squeeze.
template <class Body>
inline void with_norm_act(Act act, Body body) {
  switch (act) {
    case Act::relu: return body(Constant<Act, Act::relu>{});
    case Act::silu: return body(Constant<Act, Act::silu>{});
    case Act::hardswish: return body(Constant<Act, Act::hardswish>{});
    default: return body(Constant<Act, Act::identity>{});
  }
}

// u
template <class Row, class V, class Place>
SE_FUSED_INLINE inline V normalized(const Row& row, V centered, Place at) {
  return centered * row.scale(at) + row.shift(at);
}

// q
template <bool masks, class Row, class Place>
SE_FUSED_INLINE inline auto masked_dy(const Row& row, Place at) {
  auto q = at(row.dy);
  if (masks && row.mask) q = masked(row.mask, at, q);
  return q;
}

// [x = maximum]
template <class A, class V>
SE_FUSED_INLINE inline V is_maximum(V x, Vec<A> maximum) {
  return each(x, [=](Vec<A> x) { return x == maximum ? Vec<A>{} + 1 : Vec<A>{}; });
}

// Reductions: `count` terms of a vector, all summed but for the last of one `with_maximum`. A row has
// `chains` partial results side by side, as registers suffice; with `together` 2 two rows are read at a
// time, since memory answers more streams faster.
template <int count_, int chains_, int together_ = 1, bool with_maximum_ = false>
struct Reduction {
  static constexpr int count = count_, chains = chains_, together = together_;
  static constexpr bool with_maximum = with_maximum_;
};

template <class F, class V>
SE_FUSED_INLINE inline V combine(int k, V a, V b) {
  return F::with_maximum && k % F::count == F::count - 1 ? larger(a, b) : a + b;
}
template <class F, class A>
constexpr A start_of(int k) {
  return F::with_maximum && k % F::count == F::count - 1 ? -std::numeric_limits<A>::infinity() : 0;
}
// A vector of the term k without what does not belong to the result.
template <class F, class A, class Place>
SE_FUSED_INLINE inline Vec<A> only_new(int k, Place at, Vec<A> v) {
  return F::with_maximum && k % F::count == F::count - 1
      ? fill_tail<A>(at, v, start_of<F, A>(k))
      : mask_tail<A>(at, v);
}

// [x]
struct Values : Reduction<1, 4> {
  template <class Row, class Place, class V>
  SE_FUSED_INLINE static void terms(const Row& row, Place at, V* term) {
    term[0] = at(row.x);
  }
};
// [x, x]
struct ValuesAndMaximum : Reduction<2, 4, 1, true> {
  template <class Row, class Place, class V>
  SE_FUSED_INLINE static void terms(const Row& row, Place at, V* term) {
    term[0] = term[1] = at(row.x);
  }
};
// [x − pivot, (x − pivot)²]
struct Moments : Reduction<2, 2, 2> {
  template <class Row, class Place, class V>
  SE_FUSED_INLINE static void terms(const Row& row, Place at, V* term) {
    term[0] = at(row.x) - row.pivot(at);
    term[1] = term[0] * term[0];
  }
};
// [v]
template <Act act, class A>
struct NormValues : Reduction<1, 2> {
  template <class Row, class Place, class V>
  SE_FUSED_INLINE static void terms(const Row& row, Place at, V* term) {
    term[0] = each(normalized(row, at(row.x) - row.center(at), at), activated<act, A>);
  }
};
// [q·x]
template <bool masks>
struct Products : Reduction<1, 4> {
  template <class Row, class Place, class V>
  SE_FUSED_INLINE static void terms(const Row& row, Place at, V* term) {
    term[0] = masked_dy<masks>(row, at) * at(row.x);
  }
};
// [q·x, [x = maximum]]
template <class A>
struct ProductsAndTies : Reduction<2, 2> {
  template <class Row, class Place, class V>
  SE_FUSED_INLINE static void terms(const Row& row, Place at, V* term) {
    const V x = at(row.x);
    term[0] = masked_dy<true>(row, at) * x;
    term[1] = is_maximum<A>(x, row.maximum(at));
  }
};
// [q, q·(x − center)]
template <class T>
struct NormProducts : Reduction<2, 2, std::is_same_v<T, bf16> ? 1 : 2> {
  template <class Row, class Place, class V>
  SE_FUSED_INLINE static void terms(const Row& row, Place at, V* term) {
    term[0] = masked_dy<true>(row, at);
    term[1] = term[0] * (at(row.x) - row.center(at));
  }
};
// [q·v', q·v'·(x − center), q·v, v', v'·(x − center)]
template <Act act, class A>
struct ActivatedProducts : Reduction<5, 1> {
  template <class Row, class Place, class V>
  SE_FUSED_INLINE static void terms(const Row& row, Place at, V* term) {
    const V q = masked_dy<true>(row, at), centered = at(row.x) - row.center(at);
    const V u = normalized(row, centered, at), slope = each(u, slope_of<act, A>);
    term[0] = q * slope;
    term[1] = term[0] * centered;
    term[2] = q * each(u, activated<act, A>);
    term[3] = slope;
    term[4] = slope * centered;
  }
};

// Writes: `unroll` vectors at a time.

// dx = dy · g
struct Rescale {
  static constexpr int unroll = 4;
  template <bool non_temporal, class Row, class Place>
  SE_FUSED_INLINE static void write(const Row& row, Place at) {
    store_at<non_temporal>(row.y, at, at(row.dy) * row.g(at));
  }
};

// y = v · g + residual, max(·, 0) with a new mask; `tail` allows for the last two. With `gated` identity
// has its gate in scale and shift: v · g = (x − center) · g + gated_shift.
template <Act act, class A, bool has_center, bool tail, bool gated = false>
struct ApplyForward {
  static constexpr int unroll = has_center || tail ? 1 : 4;
  template <bool non_temporal, class Row, class Place>
  SE_FUSED_INLINE static void write(const Row& row, Place at) {
    auto v = at(row.x);
    if constexpr (has_center && !gated)
      v = each(normalized(row, v - row.center(at), at), activated<act, A>);
    if constexpr (gated)
      v = (v - row.center(at)) * row.g(at) + row.gated_shift(at);
    else
      v = v * row.g(at);
    if constexpr (tail) {
      if (row.residual) v = v + at(row.residual);
      if (row.new_mask) v = rectified(row.new_mask, at, v);
    }
    store_at<non_temporal>(row.y, at, v);
  }
};

// dx = (q · g + grad_mean + [x = maximum] · grad_max) · v' + (x − center) · slope + offset, where g and
// grad_mean are multiplied by the scale already, and for identity the offset is in grad_mean; dr = q.
// `tail` allows for the mask and dr.
template <Act act, class A, bool has_center, bool has_slope, bool has_maximum, bool tail>
struct ApplyBackward {
  static constexpr int unroll = has_center || tail ? 1 : 4;
  template <bool non_temporal, class Row, class Place>
  SE_FUSED_INLINE static void write(const Row& row, Place at) {
    auto q = masked_dy<tail>(row, at);
    if (tail && row.dr) store_at<non_temporal>(row.dr, at, q);
    auto dx = q * row.g(at);
    constexpr bool is_plain = !has_center && !has_maximum && !tail;  // without a grad_mean Rescale
    if (is_plain || row.has_mean_gradient) dx = dx + row.grad_mean(at);
    if constexpr (has_maximum)
      dx = dx + is_maximum<A>(at(row.x), row.maximum(at)) * row.grad_max(at);
    if constexpr (has_slope || (has_center && act != Act::identity)) {
      const auto centered = at(row.x) - row.center(at);
      if constexpr (act != Act::identity)
        dx = dx * each(normalized(row, centered, at), slope_of<act, A>);
      if constexpr (has_slope && act != Act::identity)
        dx = dx + (centered * row.slope(at) + row.offset(at));
      else if constexpr (has_slope)
        dx = dx + centered * row.slope(at);
    }
    store_at<non_temporal>(row.y, at, dx);
  }
};
