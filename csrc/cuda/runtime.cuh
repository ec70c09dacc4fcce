// What the launchers need of the CUDA runtime: nvcc's own, or what the tests put in its place.
#pragma once

#include "device.cuh"
#include "plan.h"

#ifdef __CUDACC__
#include <stdexcept>
#include <string>

namespace se_fused::cuda {

inline void check(cudaError_t status) {
  if (status != cudaSuccess)
    throw std::runtime_error(std::string("se_fused: CUDA: ") + cudaGetErrorString(status));
}

inline Device current_device() {
  int index = 0, multiprocessors = 0, l2 = 0;
  check(cudaGetDevice(&index));
  check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, index));
  check(cudaDeviceGetAttribute(&l2, cudaDevAttrL2CacheSize, index));
  return {multiprocessors, l2};
}

template <class... Parameters, class... Arguments>
void launch(
    void (*kernel)(Parameters...), int64_t blocks, size_t shared, void* stream,
    Arguments... arguments) {
  if (blocks > INT32_MAX) throw std::runtime_error("se_fused: the map needs too many blocks");
  kernel<<<static_cast<unsigned>(blocks), threads, shared, static_cast<cudaStream_t>(stream)>>>(
      arguments...);
  check(cudaGetLastError());
}

}  // namespace se_fused::cuda
#else
#include "cuda_host_runtime.h"
#endif
