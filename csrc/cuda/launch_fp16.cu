#include "launch.cuh"

namespace se_fused::cuda {
const Launches& launches_fp16() { return Launcher<fp16>::table; }
}  // namespace se_fused::cuda
