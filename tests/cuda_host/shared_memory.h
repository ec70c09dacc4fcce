// The dynamic shared memory of one block: of exactly the bytes asked for, so that AddressSanitizer
// sees every overrun, and full of 0xFF at first, which is NaN in every floating-point format.
//
// A NaN can be lost again (fmax ignores it) and -1 is a good integer, so one build looks at every
// read: with -fsanitize=kernel-address and CUDA_HOST_INITIALISED, gcc calls the functions below
// before each load and store, and they know which bytes were written.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

namespace cuda_host {

class SharedMemory {
 public:
  explicit SharedMemory(size_t bytes)
      : bytes_(bytes), data_(allocate(bytes, 0xff)), written_(allocate(bytes, 0)) {}
  ~SharedMemory() { std::free(data_), std::free(written_); }
  SharedMemory(const SharedMemory&) = delete;

  char* data() const { return data_; }

  // Notes the bytes as written.
  void store(uintptr_t address, size_t count);
  // The first of these bytes that is shared memory and was never written, as an offset; or -1.
  ptrdiff_t unwritten(uintptr_t address, size_t count) const;

 private:
  static char* allocate(size_t bytes, int fill) {
    void* memory = std::malloc(bytes);
    if (memory == nullptr && bytes > 0) throw std::bad_alloc();
    return static_cast<char*>(bytes > 0 ? std::memset(memory, fill, bytes) : memory);
  }

  size_t bytes_;
  char *data_, *written_;
};

#if defined(CUDA_HOST_INITIALISED)

// What the hooks are made of must not call them.
#define CUDA_HOST_HOOK __attribute__((no_sanitize("kernel-address")))
// gcc calls them without a declaration, from every file of the program.
#define CUDA_HOST_ENTRY extern "C" __attribute__((weak, no_sanitize("kernel-address"))) void

CUDA_HOST_HOOK inline void SharedMemory::store(uintptr_t address, size_t count) {
  for (uintptr_t at = address - reinterpret_cast<uintptr_t>(data_); count > 0; ++at, --count)
    if (at < bytes_) written_[at] = 1;
}

CUDA_HOST_HOOK inline ptrdiff_t SharedMemory::unwritten(uintptr_t address, size_t count) const {
  for (uintptr_t at = address - reinterpret_cast<uintptr_t>(data_); count > 0; ++at, --count)
    if (at < bytes_ && !written_[at]) return static_cast<ptrdiff_t>(at);
  return -1;
}

// The shared memory of the block that runs; null outside kernels.
inline SharedMemory* watched = nullptr;
[[noreturn]] void fail_uninitialised(ptrdiff_t offset, size_t count);

CUDA_HOST_HOOK inline void loading(uintptr_t address, size_t count) {
  if (watched == nullptr) return;
  const ptrdiff_t offset = watched->unwritten(address, count);
  if (offset >= 0) fail_uninitialised(offset, count);
}

CUDA_HOST_HOOK inline void storing(uintptr_t address, size_t count) {
  if (watched != nullptr) watched->store(address, count);
}

#else
inline void loading(uintptr_t, size_t) {}
#endif

}  // namespace cuda_host

#if defined(CUDA_HOST_INITIALISED)

#define CUDA_HOST_ENTRIES(bytes)                                \
  CUDA_HOST_ENTRY __asan_load##bytes##_noabort(uintptr_t at) {  \
    cuda_host::loading(at, bytes);                              \
  }                                                             \
  CUDA_HOST_ENTRY __asan_store##bytes##_noabort(uintptr_t at) { \
    cuda_host::storing(at, bytes);                              \
  }
CUDA_HOST_ENTRIES(1)
CUDA_HOST_ENTRIES(2)
CUDA_HOST_ENTRIES(4)
CUDA_HOST_ENTRIES(8)
CUDA_HOST_ENTRIES(16)
#undef CUDA_HOST_ENTRIES
CUDA_HOST_ENTRY __asan_loadN_noabort(uintptr_t at, size_t count) { cuda_host::loading(at, count); }
CUDA_HOST_ENTRY __asan_storeN_noabort(uintptr_t at, size_t count) { cuda_host::storing(at, count); }
CUDA_HOST_ENTRY __asan_handle_no_return() {}
CUDA_HOST_ENTRY __asan_before_dynamic_init(const char*) {}
CUDA_HOST_ENTRY __asan_after_dynamic_init() {}

#endif
