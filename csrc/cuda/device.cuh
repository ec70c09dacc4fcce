// CUDA as the kernel bodies see it: nvcc's own, or the header that plays it on the host for the tests.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#ifdef __CUDACC__
namespace se_fused::cuda {
// All shared memory of the kernels; its size is given at the launch.
__device__ inline void* dynamic_shared_memory() {
  extern __shared__ uint4 memory[];
  return memory;
}
}  // namespace se_fused::cuda
#else
#include "cuda_host.h"
#endif

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "../activations.h"

namespace se_fused::cuda {

// Of every block. Kernels are bounded to one block a multiprocessor: left to itself, ptxas spills a
// few bytes to make room for one more.
constexpr int warp_size = 32, warps = 8, threads = warps * warp_size;
constexpr unsigned all_lanes = 0xffffffff;

using bf16 = __nv_bfloat16;
using fp16 = __half;

template <class T>
struct accumulator {
  using type = float;
};
template <>
struct accumulator<double> {
  using type = double;
};
template <class T>
using acc_t = typename accumulator<T>::type;

__device__ inline double widen(double x) { return x; }
__device__ inline float widen(float x) { return x; }
__device__ inline float widen(bf16 x) { return __bfloat162float(x); }
__device__ inline float widen(fp16 x) { return __half2float(x); }

template <class T>
__device__ inline T narrow(acc_t<T> x) {
  if constexpr (std::is_same_v<T, bf16>)
    return __float2bfloat16_rn(x);
  else if constexpr (std::is_same_v<T, fp16>)
    return __float2half_rn(x);
  else
    return x;
}

// The widest access: 16 bytes.
template <class T>
constexpr int lanes_of = 16 / static_cast<int>(sizeof(T));
template <class T>
struct alignas(16) Vector {
  T lane[lanes_of<T>];
};

// `last`: nobody reads it again soon, so that it should be the first to leave the caches.
template <bool last, class T>
__device__ inline Vector<T> load(const T* p) {
  const auto* at = reinterpret_cast<const uint4*>(p);
  const uint4 bits = last ? __ldcs(at) : *at;
  Vector<T> v;
  memcpy(&v, &bits, sizeof v);
  return v;
}
template <class T>
__device__ inline void store_last(T* p, const Vector<T>& v) {
  uint4 bits;
  memcpy(&bits, &v, sizeof bits);
  __stcs(reinterpret_cast<uint4*>(p), bits);
}

template <class T>
__device__ inline int misaligned(const T* p) {
  return static_cast<int>(reinterpret_cast<uintptr_t>(p) % 16 / sizeof(T));
}

// A run of `count` elements shared by `workers`: whole(i) at aligned vectors, single(i) before the
// first and after the last of them. `aligned`: false where vectors cannot be used at all.
template <class T, class Whole, class Single>
__device__ inline void over_run(
    const T* start, int count, bool aligned, int worker, int workers, Whole whole, Single single) {
  constexpr int width = lanes_of<T>;
  int head = aligned ? (width - misaligned(start)) % width : count;
  head = head < count ? head : count;
  const int tail = head + (count - head) / width * width;
#pragma unroll 1
  for (int i = worker; i < head; i += workers) single(i);
#pragma unroll 2
  for (int i = head + worker * width; i < tail; i += workers * width) whole(i);
#pragma unroll 1
  for (int i = tail + worker; i < count; i += workers) single(i);
}

// The sum over `width` neighbouring lanes, a power of two; every lane of the warp takes part.
template <class A>
__device__ inline A sum_lanes(A value, int width = warp_size) {
  for (int distance = width / 2; distance > 0; distance /= 2)
    value += __shfl_xor_sync(all_lanes, value, distance);
  return value;
}

struct Shape {
  int64_t samples, positions;
  int channels;

  __host__ __device__ int64_t sample_size() const { return channels * positions; }
};

}  // namespace se_fused::cuda
