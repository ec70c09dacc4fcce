// The kernels of one instruction set. A file that includes this defines SE_FUSED_CAPABILITY (the
// namespace), SE_FUSED_VECTOR_BYTES and, before and after, the compiler's target region. Everything
// here is in an anonymous namespace: no function built for one set can be linked into another.

// The formulas of a pass must be inlined into its loops: what they do not read of a row is then never
// computed.
#ifndef SE_FUSED_INLINE
#define SE_FUSED_INLINE __attribute__((always_inline))
#endif

namespace se_fused::cpu::SE_FUSED_CAPABILITY {
namespace {

template <int N>
struct Size {
  static constexpr int value = N;
};
template <class E, E V>
struct Constant {
  static constexpr E value = V;
};
// body(flag as a compile-time constant)
template <class Body>
inline void with_flag(bool flag, Body body) {
  flag ? body(Constant<bool, true>{}) : body(Constant<bool, false>{});
}

#include "vec.h"
#include "lanes.h"
#include "bitmask.h"
#include "bf16_pairs.h"
#include "terms.h"
#include "rows.h"
#include "columns.h"
#include "excitation.h"

// The passes, with the parts that are there known at compile time.

template <class Layout, class T>
void reduce_forward(
    const Pass<T>& p, int64_t rows, int64_t cols, acc_t<T>* out, int64_t stride) {
  if (p.center)
    return with_norm_act(p.act, [&](auto act) {
      Layout::template reduce<NormValues<decltype(act)::value, acc_t<T>>>(
          p, rows, cols, out, stride);
    });
  switch (p.statistic) {
    case Statistic::mean: return Layout::template reduce<Values>(p, rows, cols, out, stride);
    case Statistic::max:
      return Layout::template reduce<ValuesAndMaximum>(p, rows, cols, out, stride);
    case Statistic::moments: return Layout::reduce_moments(p, rows, cols, out, stride);
  }
}

template <class Layout, class T>
void reduce_backward(
    const Pass<T>& p, int64_t rows, int64_t cols, acc_t<T>* out, int64_t stride) {
  using A = acc_t<T>;
  if (p.center)
    return with_norm_act(p.act, [&](auto act) {
      constexpr Act known = decltype(act)::value;
      using F = std::conditional_t<
          known == Act::identity, NormProducts<T>,
          ActivatedProducts<known == Act::identity ? Act::relu : known, A>>;
      Layout::template reduce<F>(p, rows, cols, out, stride);
    });
  if (p.maximum) return Layout::template reduce<ProductsAndTies<A>>(p, rows, cols, out, stride);
  with_flag(p.mask, [&](auto masks) {
    Layout::template reduce<Products<decltype(masks)::value>>(p, rows, cols, out, stride);
  });
}

template <class Layout, class T>
void apply_forward(const Pass<T>& p, int64_t rows, int64_t cols, bool non_temporal) {
  using A = acc_t<T>;
  if (p.gated_shift)
    return Layout::template apply<ApplyForward<Act::identity, A, true, true, true>>(
        p, rows, cols, non_temporal);
  if (p.center)
    return with_norm_act(p.act, [&](auto act) {
      Layout::template apply<ApplyForward<decltype(act)::value, A, true, true>>(
          p, rows, cols, non_temporal);
    });
  with_flag(p.residual || p.new_mask, [&](auto tail) {
    Layout::template apply<ApplyForward<Act::identity, A, false, decltype(tail)::value>>(
        p, rows, cols, non_temporal);
  });
}

template <class Layout, class T>
void apply_backward(const Pass<T>& p, int64_t rows, int64_t cols, bool non_temporal) {
  using A = acc_t<T>;
  if (p.center)
    return with_norm_act(p.act, [&](auto act) {
      with_flag(p.slope, [&](auto slope) {
        Layout::template apply<ApplyBackward<
            decltype(act)::value, A, true, decltype(slope)::value, false, true>>(
            p, rows, cols, non_temporal);
      });
    });
  const bool tail = p.mask || p.dr;
  if (!p.maximum && !tail && !p.grad_mean)
    return Layout::template apply<Rescale>(p, rows, cols, non_temporal);
  with_flag(p.maximum, [&](auto maximum) {
    with_flag(tail, [&](auto tail) {
      Layout::template apply<ApplyBackward<
          Act::identity, A, false, false, decltype(maximum)::value, decltype(tail)::value>>(
          p, rows, cols, non_temporal);
    });
  });
}

template <class T>
void widen_all(const T* from, acc_t<T>* to, int64_t count) {
  for_vectors<acc_t<T>>(0, count, [=](auto at) { store_at<false>(to, at, at(from)); });
}

}  // namespace

template <class T>
const Kernels<T>& table() {
  using A = acc_t<T>;
  static constexpr Kernels<T> kernels = {
      {reduce_forward<Rows, T>, reduce_forward<Columns, T>},
      {apply_forward<Rows, T>, apply_forward<Columns, T>},
      {reduce_backward<Rows, T>, reduce_backward<Columns, T>},
      {apply_backward<Rows, T>, apply_backward<Columns, T>},
      widen_all<T>,
      fc1<A>,
      hidden_act<A>,
      fc2_gate<A>,
      gate_backward<A>,
      fc2_act_backward<A>,
      fc1_backward<A>,
  };
  return kernels;
}

template const Kernels<double>& table();
template const Kernels<float>& table();
template const Kernels<bf16>& table();
template const Kernels<fp16>& table();

}  // namespace se_fused::cpu::SE_FUSED_CAPABILITY
