// The excitation of a group of samples: two small matrix products each way, in tiles of registers.
// Included by kernel_set.h only, inside its target region and namespace.

// Outputs of a tile, or vectors of them, for each of its 4 samples: their sums stay in registers.
constexpr int tile_width = SE_FUSED_VECTOR_BYTES == 64 ? 4 : 2;

// out[b, j] = bias[j] + Σ_k a[b, k] · w[j, k] for S samples and J outputs from (b, j) on.
template <int S, int J, class A>
inline void dot_tile(
    const A* a, const A* w, const A* bias, int64_t depth, int64_t outputs, A* out) {
  constexpr int64_t width = lanes<A>;
  Vec<A> sum[S * J] = {};
  const auto multiply = [&](auto read) {
    Vec<A> weight[J];
    for (int j = 0; j < J; ++j) weight[j] = read(w + j * depth);
    for (int s = 0; s < S; ++s) {
      const Vec<A> value = read(a + s * depth);
      for (int j = 0; j < J; ++j) sum[s * J + j] += value * weight[j];
    }
  };
  int64_t k = 0;
  for (; k + width <= depth; k += width) multiply(Full{k});
  if (k < depth) multiply(MaskedTail{k, depth - k});
  A dots[S * J];
  if constexpr (S * J % width == 0) {
    for (int i = 0; i < S * J; i += width) store(dots + i, sum_lanes_of_each<A>(sum + i));
  } else {
    for (int i = 0; i < S * J; ++i) dots[i] = sum_lanes(sum[i]);
  }
  for (int s = 0; s < S; ++s)
    for (int j = 0; j < J; ++j) out[s * outputs + j] = dots[s * J + j] + (bias ? bias[j] : A(0));
}

// Outputs [begin, end) of out [B, J] = a [B, K] · w [J, K]ᵀ + bias
template <class A>
inline void multiply_transposed(
    const A* a, const A* w, const A* bias, int64_t samples, int64_t depth, int64_t outputs,
    A* out, int64_t begin, int64_t end) {
  const auto rows = [&](auto tile_samples, int64_t b) {
    constexpr int S = decltype(tile_samples)::value;
    const A* from = a + b * depth;
    A* to = out + b * outputs;
    int64_t j = begin;
    for (; j + tile_width <= end; j += tile_width)
      dot_tile<S, tile_width>(from, w + j * depth, bias ? bias + j : nullptr, depth, outputs, to + j);
    for (; j < end; ++j)
      dot_tile<S, 1>(from, w + j * depth, bias ? bias + j : nullptr, depth, outputs, to + j);
  };
  int64_t b = 0;
  for (; b + 4 <= samples; b += 4) rows(Size<4>{}, b);
  for (; b + 2 <= samples; b += 2) rows(Size<2>{}, b);
  for (; b < samples; ++b) rows(Size<1>{}, b);
}

// out[b, j] = Σ_k a[b, k] · w[k, j] for S samples and V vectors of outputs from (b, j) on; the last
// vector has `last` outputs.
template <int S, int V, class A>
inline void axpy_tile(
    const A* a, const A* w, int64_t depth, int64_t outputs, int64_t last, A* out) {
  constexpr int64_t width = lanes<A>;
  Vec<A> sum[S][V] = {};
  for (int64_t k = 0; k < depth; ++k) {
    const A* row = w + k * outputs;
    for (int v = 0; v < V; ++v) {
      const bool whole = v + 1 < V || last == width;
      const Vec<A> weight = whole ? load(row + v * width) : load_part(row + v * width, last);
      for (int s = 0; s < S; ++s) sum[s][v] += broadcast(a[s * depth + k]) * weight;
    }
  }
  for (int s = 0; s < S; ++s)
    for (int v = 0; v < V; ++v) {
      A* to = out + s * outputs + v * width;
      if (v + 1 < V || last == width)
        store(to, sum[s][v]);
      else
        store_part(to, sum[s][v], last);
    }
}

// Outputs [begin, end) of out [B, J] = a [B, K] · w [K, J]
template <class A>
inline void multiply(
    const A* a, const A* w, int64_t samples, int64_t depth, int64_t outputs, A* out, int64_t begin,
    int64_t end) {
  constexpr int64_t width = lanes<A>;
  const auto rows = [&](auto tile_samples, int64_t b) {
    constexpr int S = decltype(tile_samples)::value;
    const A* from = a + b * depth;
    A* to = out + b * outputs;
    int64_t j = begin;
    for (; j + tile_width * width <= end; j += tile_width * width)
      axpy_tile<S, tile_width>(from, w + j, depth, outputs, width, to + j);
    for (; j < end; j += width) {
      const int64_t last = end - j < width ? end - j : width;
      axpy_tile<S, 1>(from, w + j, depth, outputs, last, to + j);
    }
  };
  int64_t b = 0;
  for (; b + 4 <= samples; b += 4) rows(Size<4>{}, b);
  for (; b + 2 <= samples; b += 2) rows(Size<2>{}, b);
  for (; b < samples; ++b) rows(Size<1>{}, b);
}

// f as a compile-time constant, so that the loop over elements is vectorised.
template <class A, class Body>
inline void with_act(Act act, Body body) {
  switch (act) {
    case Act::identity: return body(Constant<Act, Act::identity>{});
    case Act::relu: return body(Constant<Act, Act::relu>{});
    case Act::silu: return body(Constant<Act, Act::silu>{});
    case Act::hardswish: return body(Constant<Act, Act::hardswish>{});
    case Act::leaky_relu: return body(Constant<Act, Act::leaky_relu>{});
    case Act::gelu: return body(Constant<Act, Act::gelu>{});
  }
}
template <class A, class Body>
inline void with_gate(Gate gate, Body body) {
  switch (gate) {
    case Gate::identity: return body(Constant<Gate, Gate::identity>{});
    case Gate::relu: return body(Constant<Gate, Gate::relu>{});
    case Gate::sigmoid: return body(Constant<Gate, Gate::sigmoid>{});
    case Gate::hardsigmoid: return body(Constant<Gate, Gate::hardsigmoid>{});
    case Gate::tanh: return body(Constant<Gate, Gate::tanh>{});
  }
}

template <class A>
void fc1(
    const Excitation<A>& e, int64_t samples, const A* z, A* p1, int64_t begin, int64_t end) {
  multiply_transposed(z, e.w1, e.b1, samples, e.channels, e.hidden, p1, begin, end);
}

template <class A>
void hidden_act(
    const Excitation<A>& e, int64_t samples, const A* p1, A* h, int64_t begin, int64_t end) {
  with_act<A>(e.act, [&](auto act) {
    for (int64_t b = 0; b < samples; ++b, p1 += e.hidden, h += e.hidden)
      for (int64_t r = begin; r < end; ++r) h[r] = apply(decltype(act)::value, p1[r]);
  });
}

template <class A>
void fc2_gate(
    const Excitation<A>& e, int64_t samples, const A* h, A* g, int64_t begin, int64_t end) {
  multiply_transposed(h, e.w2, e.b2, samples, e.hidden, e.channels, g, begin, end);
  with_gate<A>(e.gate, [&](auto gate) {
    for (int64_t b = 0; b < samples; ++b, g += e.channels)
      for (int64_t c = begin; c < end; ++c) g[c] = apply(decltype(gate)::value, g[c]);
  });
}

template <class A>
void gate_backward(
    const Excitation<A>& e, int64_t samples, const A* dg, const A* g, A* dp2, int64_t begin,
    int64_t end) {
  with_gate<A>(e.gate, [&](auto gate) {
    for (int64_t b = 0; b < samples; ++b, dg += e.channels, g += e.channels, dp2 += e.channels)
      for (int64_t c = begin; c < end; ++c)
        dp2[c] = dg[c] * derivative(decltype(gate)::value, g[c]);
  });
}

template <class A>
void fc2_act_backward(
    const Excitation<A>& e, int64_t samples, const A* p1, const A* dp2, A* h, A* dp1, int64_t begin,
    int64_t end) {
  multiply(dp2, e.w2, samples, e.channels, e.hidden, dp1, begin, end);
  with_act<A>(e.act, [&](auto act) {
    for (int64_t b = 0; b < samples; ++b, p1 += e.hidden, h += e.hidden, dp1 += e.hidden)
      for (int64_t r = begin; r < end; ++r) {
        const A p = p1[r];
        dp1[r] *= derivative(decltype(act)::value, p);
        h[r] = apply(decltype(act)::value, p);
      }
  });
}

template <class A>
void fc1_backward(
    const Excitation<A>& e, int64_t samples, const A* dp1, A* dz, int64_t begin, int64_t end) {
  multiply(dp1, e.w1, samples, e.hidden, e.channels, dz, begin, end);
}
