#include "launch.cuh"

namespace se_fused::cuda {
const Launches& launches_fp32() { return Launcher<float>::table; }
}  // namespace se_fused::cuda
