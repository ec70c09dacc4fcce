// Kernels that are right in every order of blocks and threads, and kernels with one fault each.
//   selftest            runs the right ones; returns 0 if their values are right
//   selftest "fault"... runs these, one after another; returns how many the header reported
#include "cuda_host.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdio>
#include <map>
#include <vector>

namespace {

using cuda_host::Order;
using se_fused::cuda::dynamic_shared_memory;

constexpr unsigned all = 0xffffffff;

template <class T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (unsigned delta = 16; delta > 0; delta /= 2) value += __shfl_down_sync(all, value, delta);
  return value;
}

enum class Fault { none, barrier, fence, shared_size, uninitialised, counter };

// The sum of n numbers: each block adds up its part, the last block adds up the parts.
template <class T, Fault fault = Fault::none>
__global__ void __launch_bounds__(256)
    sum(const T* __restrict__ x, int64_t n, float* __restrict__ parts, unsigned* counter,
        float* __restrict__ out) {
  float* warps = static_cast<float*>(dynamic_shared_memory());
  float mine = 0;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n;
       i += int64_t(gridDim.x) * blockDim.x)
    mine += static_cast<float>(__ldg(x + i));
  mine = warp_sum(mine);
  const unsigned warp = threadIdx.x / 32, count = blockDim.x / 32;
  if (threadIdx.x % 32 == 0 && (fault != Fault::uninitialised || warp != 1)) warps[warp] = mine;
  if (fault != Fault::barrier) __syncthreads();
  bool last = false;
  if (threadIdx.x == 0) {
    float part = 0;
    for (unsigned k = 0; k < count + (fault == Fault::shared_size); ++k) part += warps[k];
    parts[blockIdx.x] = part;
    if (fault != Fault::fence) __threadfence();
    last = fault == Fault::counter ? (*counter += 1) == gridDim.x
                                   : atomicAdd(counter, 1u) == gridDim.x - 1;
  }
  if (!__syncthreads_or(last)) return;
  float total = 0;
  for (unsigned k = threadIdx.x; k < gridDim.x; k += blockDim.x) total += __ldcg(parts + k);
  total = warp_sum(total);
  if (threadIdx.x % 32 == 0) warps[warp] = total;
  __syncthreads();
  if (threadIdx.x > 0) return;
  total = 0;
  for (unsigned k = 0; k < count; ++k) total += warps[k];
  *out = total;
  *counter = 0;  // for the next launch
}

template <class T, Fault fault = Fault::none>
bool sum_is_right(const cuda_host::Options& options) {
  constexpr int n = 1500, blocks = 6, threads = 96;  // the sum is exact in float
  std::vector<T> x;
  for (int i = 0; i < n; ++i) x.push_back(T(float(i % 7)));
  float expected = 0, out = NAN;
  for (const T& value : x) expected += static_cast<float>(value);
  std::vector<float> parts(blocks, NAN);
  unsigned counter = 0;
  cuda_host::launch(sum<T, fault>, blocks, threads, threads / 32 * sizeof(float), options,
                    x.data(), n, parts.data(), &counter, &out);
  return out == expected && counter == 0;
}

// Every way for threads to exchange values, in blocks of 8, 4 and 2 threads along x, y and z.
__global__ void exchange(int* wrong) {
  int* shared = static_cast<int*>(dynamic_shared_memory());
  const int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  const int lane = thread % warpSize, other = thread ^ 1;
  bool right = __ballot_sync(all, lane % 3 == 0) == 0x49249249;
  right &= __shfl_sync(all, thread, 5) == thread - lane + 5;
  right &= __shfl_sync(all, 1.5 * lane, 3, 8) == 1.5 * (lane / 8 * 8 + 3);
  right &= __shfl_xor_sync(all, unsigned(lane), 9) == unsigned(lane ^ 9);
  right &= __shfl_xor_sync(all, lane, 16, 16) == (lane < 16 ? lane : lane ^ 16);
  right &= __shfl_down_sync(all, lane, 2, 4) == (lane % 4 < 2 ? lane + 2 : lane);
  right &= __shfl_up_sync(all, float(lane), 3) == (lane < 3 ? lane : lane - 3);
  right &= (__activemask() >> lane & 1) == 1;
  // Half warps on their own, at different lines.
  if (lane < 16)
    right &= __ballot_sync(0x0000ffff, lane % 2) == 0x0000aaaa;
  else
    right &= __ballot_sync(0xffff0000, lane % 2) == 0xaaaa0000;
  shared[thread] = thread;
  __syncwarp();
  right &= shared[other] == other;
  right &= __syncthreads_count(thread < 3) == 3 && __syncthreads_and(thread >= 0) == 1 &&
           __syncthreads_and(thread) == 0 && __syncthreads_or(thread == 9) == 1;
  right &= min(thread, int64_t(4)) == (thread < 4 ? thread : 4) && max(NAN, 1.0f) == 1.0f;
  if (!right) atomicAdd(wrong, 1);
}

// y = x, 16 bytes at a time and a tail: rows of `columns` floats, one per block.
template <bool tail_by_itself>
__global__ void copy(const float* x, float* y, unsigned columns) {
  const uint64_t start = (uint64_t(blockIdx.y) * gridDim.x + blockIdx.x) * columns;
  const unsigned vectors = tail_by_itself ? columns / 4 : (columns + 3) / 4;
  for (unsigned k = threadIdx.x; k < vectors; k += blockDim.x)
    __stcs(reinterpret_cast<float4*>(y + start) + k,
           __ldcs(reinterpret_cast<const float4*>(x + start) + k));
  for (unsigned i = 4 * vectors + threadIdx.x; i < columns; i += blockDim.x)
    y[start + i] = x[start + i];
}

template <bool tail_by_itself = true>
bool copy_is_right(dim3 grid, unsigned columns, unsigned offset = 0) {
  std::vector<float> x(offset + grid.x * grid.y * columns), y(x.size(), 0.0f);
  for (size_t i = offset; i < x.size(); ++i) x[i] = float(i);
  cuda_host::launch(copy<tail_by_itself>, grid, 32, 0, {}, x.data() + offset, y.data() + offset,
                    columns);
  return x == y;
}

bool everything_is_right() {
  bool right = copy_is_right(dim3(2, 3), 68) && copy_is_right(1, 71);
  for (const Order order : {Order::ascending, Order::shuffled, Order::interleaved}) {
    for (uint64_t seed = 0; seed < 4; ++seed) {
      const cuda_host::Options options{seed, order};
      int wrong = 0;
      cuda_host::launch(exchange, dim3(2, 1, 2), dim3(8, 4, 2), 64 * sizeof(int), options, &wrong);
      right &= wrong == 0 && sum_is_right<float>(options);
      right &= sum_is_right<__half>(options) && sum_is_right<__nv_bfloat16>(options);
    }
  }
  return right;
}

template <class Kernel, class... Arguments>
void run(Kernel kernel, Arguments... arguments) {
  cuda_host::launch(kernel, 2, 64, 256, {1, Order::interleaved, 20000}, arguments...);
}

void neighbours(float* out) {  // a shuffle in place of __syncwarp
  float* shared = static_cast<float*>(dynamic_shared_memory());
  shared[threadIdx.x] = threadIdx.x;
  __shfl_sync(all, 0, 0);
  out[blockIdx.x * blockDim.x + threadIdx.x] = shared[threadIdx.x ^ 1];
}

const std::map<std::string, void (*)()> faults = {
    {"missing barrier", [] { sum_is_right<float, Fault::barrier>({1, Order::interleaved}); }},
    {"missing fence", [] { sum_is_right<float, Fault::fence>({1, Order::ascending}); }},
    {"counter without atomic", [] { sum_is_right<float, Fault::counter>({1, Order::shuffled}); }},
    {"shuffle for a barrier", [] { run(neighbours, std::vector<float>(128).data()); }},
    {"blocks write the same element",
     [] { run(+[](int* out) { *out = blockIdx.x; }, std::vector<int>(1).data()); }},
    {"overrun of global memory", [] { copy_is_right<false>(1, 71); }},
    {"overrun of shared memory", [] { sum_is_right<float, Fault::shared_size>({}); }},
    {"misaligned vector", [] { copy_is_right(1, 68, 1); }},
    {"uninitialised shared memory", [] {
       if (!sum_is_right<float, Fault::uninitialised>({})) throw cuda_host::Error("wrong sum");
     }},
    {"uninitialised counter", [] {
       run(+[] { atomicAdd(static_cast<int*>(dynamic_shared_memory()), 1); });
     }},
    {"thread leaves before the barrier", [] {
       run(+[] {
         if (threadIdx.x == 7) return;
         __syncthreads();
       });
     }},
    {"barriers in two branches", [] {
       run(+[] {
         if (threadIdx.x < 32)
           __syncthreads();
         else
           __syncthreads();
       });
     }},
    {"lane waits at a barrier", [] {
       run(+[] {
         if (threadIdx.x % 32 == 3) __syncthreads();
         __shfl_xor_sync(all, 1.0f, 1);
       });
     }},
    {"lane has left", [] {
       run(+[] {
         if (threadIdx.x != 9) __shfl_down_sync(all, threadIdx.x, 1);
       });
     }},
    {"caller is not in the mask", [] { run(+[] { __ballot_sync(0x7fffffff, 1); }); }},
    {"masks differ", [] {
       run(+[] { __shfl_sync(threadIdx.x % 32 < 9 ? all : 0xffffff00, 1, 0); });
     }},
    {"calls differ", [] {
       run(+[] { threadIdx.x % 32 < 9 ? __syncwarp() : (void)__ballot_sync(all, 1); });
     }},
    {"warp is not full", [] { cuda_host::launch(+[] { __syncwarp(); }, 1, 40, 0, {}); }},
    {"masks in a circle", [] {
       run(+[] { __syncwarp((1u << threadIdx.x % 32) | (1u << (threadIdx.x + 1) % 32)); });
     }},
    {"spin for good", [] {
       run(+[](int* counter) { while (atomicAdd(counter, 0) == 0) {} }, std::vector<int>(1).data());
     }},
    {"too many threads", [] { cuda_host::launch(+[] {}, 1, 1025, 0, {}); }},
};

}  // namespace

int main(int count, char** arguments) {
  if (count == 1) return everything_is_right() ? 0 : 1;
  int reported = 0;
  for (int k = 1; k < count; ++k) {
    try {
      faults.at(arguments[k])();
    } catch (const cuda_host::Error& error) {
      std::fprintf(stderr, "%s: cuda_host::Error: %s\n", arguments[k], error.what());
      ++reported;
    }
  }
  return reported;
}
