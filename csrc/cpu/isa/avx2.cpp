// The CPU kernels for x86 with AVX2.
#include "table.h"

#if defined(__x86_64__)
#include <immintrin.h>

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,bmi,bmi2")
#define SE_FUSED_CAPABILITY avx2
#define SE_FUSED_VECTOR_BYTES 32
#include "kernel_set.h"
#pragma GCC pop_options
#endif
