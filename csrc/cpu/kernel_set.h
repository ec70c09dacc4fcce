// The kernels of one instruction set. A file that includes this defines SE_FUSED_CAPABILITY (the
// namespace), SE_FUSED_VECTOR_BYTES and, before and after, the compiler's target region. Everything
// here is in an anonymous namespace: no function built for one set can be linked into another.

namespace se_fused::cpu::SE_FUSED_CAPABILITY {
namespace {

#include "vector.h"
#include "lanes.h"

template <int N>
struct Size {
  static constexpr int value = N;
};
template <class E, E V>
struct Constant {
  static constexpr E value = V;
};

#include "columns.h"
#include "excitation.h"
#include "rows.h"

template <class T>
void widen_all(const T* from, acc_t<T>* to, int64_t count) {
  write_row<false>(to, count, [=](auto read) { return read(from); });
}

}  // namespace

template <class T>
const Kernels<T>& table() {
  using A = acc_t<T>;
  static constexpr Kernels<T> kernels = {
      row_sums<T>,  column_sums<T>,  row_dots<T>,      column_dots<T>,
      row_scale<T>, column_scale<T>, row_scale_add<T>, column_scale_add<T>,
      widen_all<T>, first_layer<A>, activated<A>,     gates<A>,
      gate_inputs<A>, hidden_inputs<A>, squeezed<A>,
  };
  return kernels;
}

template const Kernels<double>& table();
template const Kernels<float>& table();
template const Kernels<bf16>& table();
template const Kernels<fp16>& table();

}  // namespace se_fused::cpu::SE_FUSED_CAPABILITY
