// Sums and maxima over the lanes of vectors, and choices among them.
// Included by kernel_set.h only, inside its target region and namespace.

template <class A>
struct IndexOf;
template <>
struct IndexOf<float> {
  using type __attribute__((vector_size(SE_FUSED_VECTOR_BYTES))) = int32_t;
};
template <>
struct IndexOf<double> {
  using type __attribute__((vector_size(SE_FUSED_VECTOR_BYTES))) = int64_t;
};

template <class A, int step = lanes<A> / 2>
inline A sum_halves(Vec<A> v) {
  if constexpr (step == 0) {
    return v[0];
  } else {
    typename IndexOf<A>::type crossed{};
    for (int l = 0; l < lanes<A>; ++l) crossed[l] = l ^ step;
    return sum_halves<A, step / 2>(v + __builtin_shuffle(v, crossed));
  }
}
inline float sum_lanes(Vec<float> v) { return sum_halves<float>(v); }
inline double sum_lanes(Vec<double> v) { return sum_halves<double>(v); }

// The larger of each lane, a NaN before any number.
template <class V>
inline V larger(V a, V b) {
  return ((a > b) | (a != a)) ? a : b;
}

template <class V>
inline auto largest_lane(V v) {
  auto most = v[0];
  for (unsigned i = 1; i < sizeof(V) / sizeof(v[0]); ++i)
    if (v[i] > most || v[i] != v[i]) most = v[i];
  return most;
}

// Two vectors become one: lanes without the bit `step` are combined from the first, with it from the
// second, each of a lane and its partner across that bit.
template <int step, class A, class Combine>
inline Vec<A> combine_across(Vec<A> a, Vec<A> b, Combine combine) {
  constexpr int width = lanes<A>;
  typename IndexOf<A>::type kept{}, crossed{};
#pragma GCC unroll 16
  for (int l = 0; l < width; ++l) {
    kept[l] = l & step ? width + l : l;
    crossed[l] = l & step ? width + (l ^ step) : l ^ step;
  }
  return combine(__builtin_shuffle(a, b, kept), __builtin_shuffle(a, b, crossed));
}

// One vector whose lane l combines the lanes of v[l], from a full set of `lanes` vectors.
template <class A, class Combine, int count = lanes<A>>
inline Vec<A> combine_lanes_of_each(const Vec<A>* v, Combine combine) {
  if constexpr (count == 1) {
    return v[0];
  } else {
    constexpr int step = lanes<A> / count;
    Vec<A> half[count / 2];
#pragma GCC unroll 16
    for (int k = 0; k < count / 2; ++k)
      half[k] = combine_across<step, A>(v[2 * k], v[2 * k + 1], combine);
    return combine_lanes_of_each<A, Combine, count / 2>(half, combine);
  }
}

// The same, with sums.
template <class A>
inline Vec<A> sum_lanes_of_each(const Vec<A>* v) {
  return combine_lanes_of_each<A>(v, [](Vec<A> a, Vec<A> b) { return a + b; });
}

// The lanes whose bit is set; zero, whatever it was, in the others.
template <class A>
inline Vec<A> keep(uint32_t bits, Vec<A> v) {
#if SE_FUSED_VECTOR_BYTES == 64
  if constexpr (lanes<A> == 16)
    return (Vec<A>)_mm512_maskz_mov_ps(static_cast<__mmask16>(bits), (__m512)v);
  else
    return (Vec<A>)_mm512_maskz_mov_pd(static_cast<__mmask8>(bits), (__m512d)v);
#else
  using Index = typename IndexOf<A>::type;
  Index bit{};
  for (int l = 0; l < lanes<A>; ++l) bit[l] = 1 << l;
  const Index chosen = (bit & (static_cast<int32_t>(bits) - Index{})) != 0;
  return (Vec<A>)((Index)v & chosen);
#endif
}

// v with `other` in the lanes of MaskedTail that were not read.
template <class A, class Place>
inline Vec<A> fill_tail(Place at, Vec<A> v, A other) {
  if constexpr (std::is_same_v<Place, MaskedTail>) {
    typename IndexOf<A>::type number{};
    for (int l = 0; l < lanes<A>; ++l) number[l] = l;
    return number < static_cast<decltype(number[0] + 0)>(at.count) ? v : broadcast(other);
  } else {
    return v;
  }
}

// v with 0 in the lanes that a sum must not take: those of OverlapTail that it took before, those of
// MaskedTail that were not read.
template <class A, class Place>
inline Vec<A> mask_tail(Place at, Vec<A> v) {
  if constexpr (std::is_same_v<Place, OverlapTail>) return keep<A>(~0u << at.done, v);
  else if constexpr (std::is_same_v<Place, MaskedTail>) return keep<A>((1u << at.count) - 1, v);
  else return v;
}
