// Memory of large outputs: huge pages, so that a fresh one costs few page faults, and stores past
// the caches where it would not stay in them.
#pragma once

#include <cstdint>
#include <cstdlib>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace se_fused::cpu {

// Asks for huge pages under a fresh output of 4 MB and more. Only advice: results do not depend on
// it. SE_FUSED_HUGE_PAGES=0 switches it off.
inline void advise_huge_pages(void* data, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr int64_t least = int64_t(4) << 20;
  constexpr uintptr_t page = uintptr_t(4) << 10;
  static const bool wanted = [] {
    const char* asked = std::getenv("SE_FUSED_HUGE_PAGES");
    return asked == nullptr || asked[0] != '0';
  }();
  if (bytes < least || !wanted) return;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + page - 1) & ~(page - 1);
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) & ~(page - 1);
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data, (void)bytes;
#endif
}

// Whether a pass that touches so much memory leaves nothing of its output in a last-level cache as it
// usually is. No reader would find it there, and a store past the caches spares the read of the line
// that it overwrites. (What the system reports is no use: virtual machines name the cache of a whole
// socket.)
inline bool leaves_caches(int64_t touched) { return touched > int64_t(64) << 20; }

}  // namespace se_fused::cpu
