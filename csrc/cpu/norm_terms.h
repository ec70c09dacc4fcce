// What the passes of a block with BatchNorm compute of one vector, whatever the layout.
// Included by norm_kernel_set.h only, inside its target region and namespace.

template <class A>
struct Activated {
  Vec<A> value, slope;
};

template <Act act, class A>
inline Activated<A> activate(Vec<A> u) {
  if constexpr (act == Act::identity) {
    return {u, Vec<A>{} + 1};
  } else if constexpr (act == Act::relu) {
    return {u < 0 ? Vec<A>{} : u, u > 0 ? Vec<A>{} + 1 : Vec<A>{}};
  } else if constexpr (act == Act::silu) {
    return {u * sigmoid(u), silu_derivative(u)};
  } else {
    static_assert(act == Act::hardswish);
    return {hardswish(u), hardswish_derivative(u)};
  }
}

template <Act act, class A>
inline Vec<A> activated(Vec<A> u) {
  return activate<act, A>(u).value;
}
template <Act act, class A>
inline Vec<A> slope_of(Vec<A> u) {
  return activate<act, A>(u).slope;
}

// Body(act as a compile-time constant), for the four that a block may have before its squeeze.
template <class Body>
inline void with_norm_act(Act act, Body body) {
  switch (act) {
    case Act::relu: return body(Constant<Act, Act::relu>{});
    case Act::silu: return body(Constant<Act, Act::silu>{});
    case Act::hardswish: return body(Constant<Act, Act::hardswish>{});
    default: return body(Constant<Act, Act::identity>{});
  }
}

// The terms of the sums, of one vector: [q, q·d] for identity, else [q·v', q·v'·d, q·v, v', v'·d]
// with d = x − center.
template <Act act, class A>
inline void sum_terms(Vec<A> q, Vec<A> x, Vec<A> center, Vec<A> scale, Vec<A> shift, Vec<A>* terms) {
  const Vec<A> d = x - center;
  if constexpr (act == Act::identity) {
    terms[0] = q;
    terms[1] = q * d;
  } else {
    const Activated<A> v = activate<act, A>(d * scale + shift);
    terms[0] = q * v.slope;
    terms[1] = terms[0] * d;
    terms[2] = q * v.value;
    terms[3] = v.slope;
    terms[4] = v.slope * d;
  }
}
template <Act act>
constexpr int terms_of = act == Act::identity ? 2 : 5;

// [d, d²] with d = x − pivot
template <class V>
inline void moment_terms(V x, V pivot, V* terms) {
  terms[0] = x - pivot;
  terms[1] = terms[0] * terms[0];
}
