#include "launch.cuh"

namespace se_fused::cuda {
const Launches& launches_bf16() { return Launcher<bf16>::table; }
}  // namespace se_fused::cuda
