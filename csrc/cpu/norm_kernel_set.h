// The passes of a block with BatchNorm for one instruction set; as kernel_set.h, after which it is
// included.

namespace se_fused::cpu::SE_FUSED_CAPABILITY {
namespace {

#include "bits.h"
#include "even_odd.h"
#include "norm_terms.h"
#include "norm_rows.h"
#include "norm_columns.h"

}  // namespace

template <class T>
const NormKernels<T>& norm_table() {
  static constexpr NormKernels<T> kernels = {
      row_moments<T>,      column_moments<T>,      row_norm_squeeze<T>, column_norm_squeeze<T>,
      row_norm_sums<T>,    column_norm_sums<T>,    row_norm_rescale<T>, column_norm_rescale<T>,
      row_norm_backward<T>, column_norm_backward<T>,
  };
  return kernels;
}

template const NormKernels<double>& norm_table();
template const NormKernels<float>& norm_table();
template const NormKernels<bf16>& norm_table();
template const NormKernels<fp16>& norm_table();

}  // namespace se_fused::cpu::SE_FUSED_CAPABILITY
