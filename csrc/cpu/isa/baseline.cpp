// The CPU kernels for any processor, in the 16-byte vectors that every 64-bit one has.
#include "table.h"

#define SE_FUSED_CAPABILITY baseline
#define SE_FUSED_VECTOR_BYTES 16
#include "kernel_set.h"
