#include "launch.cuh"

namespace se_fused::cuda {
const Launches& launches_fp64() { return Launcher<double>::table; }
}  // namespace se_fused::cuda
