// CUDA kernels on the CPU, for tests: what their bodies use, for g++, and a launcher.
//
//   #include "cuda_host.h"      // before the kernels
//   #include "kernels.cuh"
//   cuda_host::launch(kernel<float>, grid, block, shared_bytes, {seed, order}, arguments...);
//
// Every CUDA thread is a fiber. Throws cuda_host::Error, which names the fault and the lines:
//   divergent barrier            __syncthreads() that not all threads of the block call, or at
//                                different lines
//   bad mask                     a shuffle, ballot or __syncwarp whose caller is not in its mask,
//                                or whose named lanes do not all make the same call with it
//   deadlock                     threads that wait or spin for good
//   uninitialised shared memory  see shared_memory.h
//
// Sanitizers find the rest: overruns of global and shared memory, misaligned vectors, and races.
// What orders memory is what CUDA says: __syncthreads, __syncwarp, and an atomic after a
// __threadfence of the same thread with a later atomic on the same address. Shuffles and ballots
// do not. Fibers run one at a time and change only in these calls: values that weak memory would
// show are not simulated, and a loop that spins on plain memory hangs.
#pragma once

#include <vector_functions.h>
#include <vector_types.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "grid.h"

// The CUDA headers define the other words.
#define __launch_bounds__(...)
#undef __shared__
#define __shared__ static_assert(false, "shared memory comes from dynamic_shared_memory()");

namespace se_fused::cuda {
inline void* dynamic_shared_memory() {
  const cuda_host::Untracked untracked;
  return cuda_host::grid->current().block->shared.data();
}
}  // namespace se_fused::cuda

namespace cuda_host {

// Runs the kernel over the grid. Returns when all blocks have.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid_size, dim3 block_size, size_t shared_bytes,
            const Options& options, const Arguments&... arguments) {
  const uint64_t threads = uint64_t(block_size.x) * block_size.y * block_size.z;
  if (threads == 0 || threads > 1024 || block_size.z > 64)
    throw Error("invalid launch: a block has 1 to 1024 threads, at most 64 of them along z");
  if (grid_size.x == 0 || grid_size.y == 0 || grid_size.z == 0 || grid_size.y > 65535 ||
      grid_size.z > 65535)
    throw Error("invalid launch: a grid has 1 to 65535 blocks along y and z, and some along x");
  blockDim = block_size;
  gridDim = grid_size;
  Grid all(options, shared_bytes, [&] { kernel(arguments...); });
  all.run();
}

inline uint64_t meet(const Call& call) {
  const Untracked untracked;
  return grid->meet(call);
}

inline void yield() {
  const Untracked untracked;
  grid->yield();
}

inline unsigned lane() {
  const Untracked untracked;
  return grid->current().lane();
}

// A shuffle: the value of lane `source`.
template <class T>
T shuffle(const char* name, Site site, unsigned mask, T value, unsigned source) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  Call call{name, site, false, mask, 0, static_cast<int>(source)};
  std::memcpy(&call.value, &value, sizeof(T));
  const uint64_t result = meet(call);
  std::memcpy(&value, &result, sizeof(T));
  return value;
}

// An atomic update. Always sees what earlier atomics on the address published, publishes what the
// thread did where a fence came since its last atomic.
template <class T, class Update>
T atomic(T* address, Update update) {
  yield();
  loading(reinterpret_cast<uintptr_t>(address), sizeof(T));  // gcc reports a store only
  const T before = update(address);
  const Untracked untracked;
  Thread& self = grid->current();
  self.fiber.acquire(address);
  if (self.fenced) self.fiber.release(address);
  self.fenced = false;
  return before;
}

}  // namespace cuda_host

// Barriers of the block.

inline int __syncthreads_count(int predicate, cuda_host::Site site = cuda_host::Site::here()) {
  const uint64_t vote = predicate != 0;
  return static_cast<int>(cuda_host::meet({"__syncthreads", site, true, 0, vote}));
}
inline void __syncthreads(cuda_host::Site site = cuda_host::Site::here()) {
  __syncthreads_count(0, site);
}
inline int __syncthreads_or(int predicate, cuda_host::Site site = cuda_host::Site::here()) {
  return __syncthreads_count(predicate, site) != 0;
}
inline int __syncthreads_and(int predicate, cuda_host::Site site = cuda_host::Site::here()) {
  return __syncthreads_count(!predicate, site) == 0;
}

// Lanes of a warp.

constexpr int warpSize = 32;

inline void __syncwarp(unsigned mask = ~0u, cuda_host::Site site = cuda_host::Site::here()) {
  cuda_host::meet({"__syncwarp", site, false, mask, 0});
}

inline unsigned __ballot_sync(
    unsigned mask, int predicate, cuda_host::Site site = cuda_host::Site::here()) {
  const uint64_t vote = predicate != 0;
  return static_cast<unsigned>(cuda_host::meet({"__ballot_sync", site, false, mask, vote}));
}

// Only the caller: all that CUDA promises.
inline unsigned __activemask() { return 1u << cuda_host::lane(); }

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32,
              cuda_host::Site site = cuda_host::Site::here()) {
  const unsigned first = cuda_host::lane() & ~(width - 1u);
  return cuda_host::shuffle("__shfl_sync", site, mask, value, first + (source & (width - 1u)));
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   cuda_host::Site site = cuda_host::Site::here()) {
  const unsigned lane = cuda_host::lane(), last = lane | (width - 1u);
  const unsigned source = delta <= last - lane ? lane + delta : lane;
  return cuda_host::shuffle("__shfl_down_sync", site, mask, value, source);
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 cuda_host::Site site = cuda_host::Site::here()) {
  const unsigned lane = cuda_host::lane(), first = lane & ~(width - 1u);
  const unsigned source = delta <= lane - first ? lane - delta : lane;
  return cuda_host::shuffle("__shfl_up_sync", site, mask, value, source);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32,
                  cuda_host::Site site = cuda_host::Site::here()) {
  const unsigned lane = cuda_host::lane(), other = lane ^ lane_mask;
  const unsigned source = other <= (lane | (width - 1u)) ? other : lane;
  return cuda_host::shuffle("__shfl_xor_sync", site, mask, value, source);
}

// Global memory.

inline void __threadfence() {
  cuda_host::yield();
  const cuda_host::Untracked untracked;
  cuda_host::grid->current().fenced = true;
}

template <class T>
T atomicAdd(T* address, std::common_type_t<T> value) {
  static_assert(std::is_integral_v<T> && sizeof(T) >= 4);
  return cuda_host::atomic(
      address, [value](T* to) { return __atomic_fetch_add(to, value, __ATOMIC_RELAXED); });
}

template <class T>
T __ldg(const T* address) {
  return *address;
}
template <class T>
T __ldcg(const T* address) {
  return *address;
}
template <class T>
T __ldcs(const T* address) {
  return *address;
}
template <class T>
void __stcg(T* address, std::common_type_t<T> value) {
  *address = value;
}
template <class T>
void __stcs(T* address, std::common_type_t<T> value) {
  *address = value;
}

// CUDA's min and max: of mixed types too, and of a number and a NaN the number.

template <class A, class B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) return std::fmin(T(a), T(b));
  return T(b) < T(a) ? T(b) : T(a);
}
template <class A, class B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) return std::fmax(T(a), T(b));
  return T(a) < T(b) ? T(b) : T(a);
}
