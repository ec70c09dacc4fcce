// The threads of a block, each a fiber, and what they wait for.
#pragma once

#include <vector_types.h>

#include <cstdint>
#include <ostream>
#include <vector>

#include "fiber.h"
#include "shared_memory.h"

namespace cuda_host {

// The line of a kernel that called.
struct Site {
  const char* file;
  int line;
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
};

// A call in which threads wait for one another: all of the block, or the lanes of a mask.
struct Call {
  const char* name;
  Site site;
  bool whole_block;
  unsigned mask;
  uint64_t value;   // the argument
  int source = -1;  // the lane whose argument comes back; -1: a count (block) or ballot (warp)
};

struct Block;

struct Thread {
  enum State { ready, waiting, exited };

  Fiber fiber;
  Block* block;
  uint3 index;
  unsigned rank;  // in the block
  State state = ready;
  bool fenced = false;  // since its last atomic
  Call call;            // while waiting
  uint64_t result;      // of the last call

  unsigned lane() const { return rank % 32; }
  bool awaits(unsigned lane) const {
    return state == waiting && !call.whole_block && (call.mask >> lane & 1);
  }
};

struct Block {
  uint3 index;
  Stacks stacks;
  SharedMemory shared;
  std::vector<Thread> threads;
  std::vector<Thread*> at_barrier, gone;

  Block(uint3 index, size_t count, size_t shared_bytes)
      : index(index), stacks(count), shared(shared_bytes), threads(count) {}
  ~Block() {
    for (Thread& thread : threads) thread.fiber.destroy(thread.state == Thread::exited);
  }

  // A lane of the same warp; null where the block has no such thread.
  Thread* lane_beside(const Thread& thread, unsigned lane) {
    const unsigned rank = thread.rank - thread.lane() + lane;
    return rank < threads.size() ? &threads[rank] : nullptr;
  }

  // One that waits in a call whose mask names the thread; null if none does.
  Thread* lane_that_awaits(const Thread& thread) {
    for (unsigned lane = 0; lane < 32; ++lane)
      if (Thread* other = lane_beside(thread, lane); other && other->awaits(thread.lane()))
        return other;
    return nullptr;
  }
};

inline std::ostream& operator<<(std::ostream& out, const uint3& at) {
  return out << '(' << at.x << ',' << at.y << ',' << at.z << ')';
}

inline std::ostream& operator<<(std::ostream& out, const Call& call) {
  out << call.name << '(';
  if (!call.whole_block) out << "0x" << std::hex << call.mask << std::dec;
  return out << ") at " << call.site.file << ':' << call.site.line;
}

inline std::ostream& operator<<(std::ostream& out, const Thread& thread) {
  out << "thread " << thread.index << " (lane " << thread.lane() << ") ";
  switch (thread.state) {
    case Thread::waiting: return out << "waits in " << thread.call;
    case Thread::exited: return out << "has exited";
    default: return out << "runs";
  }
}

}  // namespace cuda_host
