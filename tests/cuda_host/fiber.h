// A fiber: a function on a stack of its own, which runs until it suspends itself or finishes.
// AddressSanitizer is told of every switch. ThreadSanitizer sees each fiber as a thread, ordered
// after what came before create() and otherwise only by release and acquire.
#pragma once

#include <sys/mman.h>
#include <ucontext.h>

#include <cstddef>
#include <deque>
#include <new>

#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
extern "C" void __tsan_ignore_thread_begin();
extern "C" void __tsan_ignore_thread_end();
#elif defined(__SANITIZE_ADDRESS__) && !defined(CUDA_HOST_INITIALISED)
#define CUDA_HOST_ADDRESS 1
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace cuda_host {

// Memory accesses inside this scope are the header's own: not part of any race.
struct Untracked {
#if defined(__SANITIZE_THREAD__)
  Untracked() { __tsan_ignore_thread_begin(); }
  ~Untracked() { __tsan_ignore_thread_end(); }
#else
  Untracked() {}  // not trivial: else an unused variable
#endif
  Untracked(const Untracked&) = delete;
};

// Room for the stacks of `count` fibers, each above a page that must not be touched. Fresh memory
// every time, so that no sanitizer remembers earlier fibers.
class Stacks {
 public:
  static constexpr size_t page = 4096, size = 128 << 10;

  explicit Stacks(size_t count) : bytes_(count * size) {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* memory = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    memory_ = static_cast<char*>(memory);
    for (size_t k = 0; k < count; ++k) mprotect(memory_ + k * size, page, PROT_NONE);
  }
  ~Stacks() {
#if defined(CUDA_HOST_ADDRESS)
    __asan_unpoison_memory_region(memory_, bytes_);
#endif
    munmap(memory_, bytes_);
  }
  Stacks(const Stacks&) = delete;

  char* operator[](size_t k) const { return memory_ + k * size + page; }

 private:
  char* memory_;
  size_t bytes_;
};

#if defined(__SANITIZE_THREAD__)
// ThreadSanitizer's threads. Each costs it half a millisecond and a megabyte, so after the first
// thousand they serve again, the one longest at rest first: what they did before no longer races.
class TsanThreads {
 public:
  char before, after;  // all fibers, as arguments of release and acquire

  void* take() {
    if (resting_.empty() || made_ < 1024) {
      ++made_;
      return __tsan_create_fiber(0);
    }
    void* const thread = resting_.front();
    resting_.pop_front();
    return thread;
  }
  void give_back(void* thread) { resting_.push_back(thread); }

 private:
  std::deque<void*> resting_;
  size_t made_ = 0;
};
inline TsanThreads tsan_threads;
#endif

class Fiber {
 public:
  Fiber() = default;
  Fiber(const Fiber&) = delete;

  // `entry` must end in finish().
  void create(char* stack, void (*entry)()) {
    stack_ = stack;
    getcontext(&inside_);
    inside_.uc_stack.ss_sp = stack;
    inside_.uc_stack.ss_size = stack_size;
    inside_.uc_link = nullptr;
    makecontext(&inside_, entry, 0);
#if defined(__SANITIZE_THREAD__)
    thread_ = tsan_threads.take();
    __tsan_release(&tsan_threads.before);
    acquire(&tsan_threads.before);
#endif
  }

  // A fiber that did not come to its end is never run again.
  void destroy(bool ended) {
#if defined(__SANITIZE_THREAD__)
    release(&tsan_threads.after);
    if (ended) tsan_threads.give_back(thread_);
#else
    (void)ended;
#endif
  }

  // What destroyed fibers did comes before what the caller does from now on.
  static void join_destroyed() {
#if defined(__SANITIZE_THREAD__)
    __tsan_acquire(&tsan_threads.after);
#endif
  }

  // Runs the fiber until it suspends or finishes.
  void resume() {
#if defined(__SANITIZE_THREAD__)
    outer_thread_ = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(thread_, __tsan_switch_to_fiber_no_sync);
#elif defined(CUDA_HOST_ADDRESS)
    void* fake_stack = nullptr;
    __sanitizer_start_switch_fiber(&fake_stack, stack_, stack_size);
#endif
    swapcontext(&outside_, &inside_);
#if defined(CUDA_HOST_ADDRESS)
    __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
  }

  // The following are called inside the fiber.
  void entered() {
#if defined(CUDA_HOST_ADDRESS)
    __sanitizer_finish_switch_fiber(nullptr, &outer_stack_, &outer_size_);
#endif
  }

  void suspend() {
#if defined(CUDA_HOST_ADDRESS)
    void* fake_stack = nullptr;
    __sanitizer_start_switch_fiber(&fake_stack, outer_stack_, outer_size_);
#endif
    leave();
#if defined(CUDA_HOST_ADDRESS)
    __sanitizer_finish_switch_fiber(fake_stack, &outer_stack_, &outer_size_);
#endif
  }

  [[noreturn]] void finish() {
#if defined(CUDA_HOST_ADDRESS)
    __sanitizer_start_switch_fiber(nullptr, outer_stack_, outer_size_);
#endif
    leave();
    __builtin_unreachable();
  }

  // What this fiber did so far comes before ... what it does from now on, for equal `order`.
  // Callable from anywhere.
  void release(void* order) { act(order, true); }
  void acquire(void* order) { act(order, false); }

 private:
  static constexpr size_t stack_size = Stacks::size - Stacks::page;

  void leave() {
#if defined(__SANITIZE_THREAD__)
    __tsan_switch_to_fiber(outer_thread_, __tsan_switch_to_fiber_no_sync);
#endif
    swapcontext(&inside_, &outside_);
  }

  void act(void* order, bool releases) {
#if defined(__SANITIZE_THREAD__)
    void* const self = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(thread_, __tsan_switch_to_fiber_no_sync);
    releases ? __tsan_release(order) : __tsan_acquire(order);
    __tsan_switch_to_fiber(self, __tsan_switch_to_fiber_no_sync);
#else
    (void)order, (void)releases;
#endif
  }

  ucontext_t inside_, outside_;
  char* stack_ = nullptr;
#if defined(__SANITIZE_THREAD__)
  void *thread_ = nullptr, *outer_thread_ = nullptr;
#elif defined(CUDA_HOST_ADDRESS)
  const void* outer_stack_ = nullptr;
  size_t outer_size_ = 0;
#endif
};

}  // namespace cuda_host
