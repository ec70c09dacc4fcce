// Launches on the host, for csrc/cuda/runtime.cuh.
#pragma once

#include "cuda_host.h"

namespace se_fused::cuda {

// Set by the test before it calls a launcher.
inline Device host_device{2, 1 << 20};
inline cuda_host::Options host_options;

inline Device current_device() { return host_device; }

template <class... Parameters, class... Arguments>
void launch(
    void (*kernel)(Parameters...), int64_t blocks, size_t shared, void*, Arguments... arguments) {
  cuda_host::launch(
      kernel, dim3(static_cast<unsigned>(blocks)), dim3(threads), shared, host_options,
      arguments...);
}

}  // namespace se_fused::cuda
