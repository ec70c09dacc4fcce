// Chooses the instruction set once, at the first call.
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "table.h"

namespace se_fused::cpu {

namespace baseline {
template <class T>
const Kernels<T>& table();
}
#if defined(__x86_64__)
namespace avx2 {
template <class T>
const Kernels<T>& table();
}
namespace avx512 {
template <class T>
const Kernels<T>& table();
}
#endif

namespace {

enum Capability { baseline_set, avx2_set, avx512_set };
const char* const names[] = {"baseline", "avx2", "avx512"};

Capability best() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
    return avx512_set;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c"))
    return avx2_set;
#endif
  return baseline_set;
}

Capability chosen() {
  const char* asked = std::getenv("SE_FUSED_CPU_CAPABILITY");
  if (asked == nullptr || *asked == 0) return best();
  for (int set = baseline_set; set <= best(); ++set)
    if (std::strcmp(asked, names[set]) == 0) return static_cast<Capability>(set);
  throw std::runtime_error(
      std::string("SE_FUSED_CPU_CAPABILITY must be avx512, avx2 or baseline, and something this "
                  "processor has; got ") + asked);
}

Capability current() {
  static const Capability capability = chosen();
  return capability;
}

}  // namespace

const char* capability() { return names[current()]; }

template <class T>
const Kernels<T>& kernels() {
#if defined(__x86_64__)
  if (current() == avx512_set) return avx512::table<T>();
  if (current() == avx2_set) return avx2::table<T>();
#endif
  return baseline::table<T>();
}

template const Kernels<double>& kernels();
template const Kernels<float>& kernels();
template const Kernels<bf16>& kernels();
template const Kernels<fp16>& kernels();

}  // namespace se_fused::cpu
