// The passes of a squeeze with the maximum for one instruction set; as norm_kernel_set.h, after which
// it is included.

namespace se_fused::cpu::SE_FUSED_CAPABILITY {
namespace {

#include "max_terms.h"
#include "max_rows.h"
#include "max_columns.h"

}  // namespace

template <class T>
const MaxKernels<T>& max_table() {
  static constexpr MaxKernels<T> kernels = {
      row_squeeze_max<T>,      column_squeeze_max<T>, row_gradient_sums<T>,
      column_gradient_sums<T>, row_max_backward<T>,   column_max_backward<T>,
  };
  return kernels;
}

template const MaxKernels<double>& max_table();
template const MaxKernels<float>& max_table();
template const MaxKernels<bf16>& max_table();
template const MaxKernels<fp16>& max_table();

}  // namespace se_fused::cpu::SE_FUSED_CAPABILITY
