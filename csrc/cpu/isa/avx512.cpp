// The CPU kernels for x86 with AVX512.
#include "table.h"

#if defined(__x86_64__)
#include <immintrin.h>

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,bmi,bmi2")
#define SE_FUSED_CAPABILITY avx512
#define SE_FUSED_VECTOR_BYTES 64
#include "kernel_set.h"
#pragma GCC pop_options
#endif
