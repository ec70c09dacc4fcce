// Two results of each channel, of which the first is a sum and the second of a kind below.
// Included by max_kernel_set.h only, inside its target region and namespace.

// Of one vector; in lanes where nothing was read, what changes no result.
template <class A>
struct Pair {
  Vec<A> first, second;
};

template <class A>
struct Sum {
  static constexpr A start = 0;
  static Vec<A> combine(Vec<A> a, Vec<A> b) { return a + b; }
  static A of_lanes(Vec<A> v) { return sum_lanes(v); }
};
template <class A>
struct Maximum {
  static constexpr A start = -std::numeric_limits<A>::infinity();
  static Vec<A> combine(Vec<A> a, Vec<A> b) { return larger(a, b); }
  static A of_lanes(Vec<A> v) { return largest_lane(v); }
};

// v, and `other` in lanes where nothing was read.
template <class A, class Place>
inline Vec<A> read_or(Place, Vec<A> v, A) {
  return v;
}
template <class A>
inline Vec<A> read_or(PartAt at, Vec<A> v, A other) {
  typename IndexOf<A>::type number;
  for (int l = 0; l < lanes<A>; ++l) number[l] = l;
  return number < static_cast<decltype(number[0] + 0)>(at.count) ? v : broadcast(other);
}

// [x, x]; a maximum may take a lane twice.
template <class A, class Place>
inline Pair<A> squeeze_terms(Place at, Vec<A> x) {
  return {only_new<A>(at, x), read_or<A>(at, x, Maximum<A>::start)};
}

// One where x = m, else zero.
template <class V>
inline V is_peak(V x, V m) {
  return x == m ? V{} + 1 : V{};
}

// [dy · x, [x = m]]
template <class A, class Place>
inline Pair<A> gradient_terms(Place at, Vec<A> dy, Vec<A> x, Vec<A> m) {
  return {only_new<A>(at, dy * x), only_new<A>(at, is_peak(x, m))};
}

template <class V>
inline V map_gradient(V dy, V x, V g, V share, V m, V peak) {
  return dy * g + share + is_peak(x, m) * peak;
}
