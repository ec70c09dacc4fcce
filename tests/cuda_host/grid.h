// A grid of blocks, whose threads run one at a time in an order drawn from a seed. Finds threads
// that wait for others in vain, and says so by name.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "block.h"

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace cuda_host {

// What a kernel did wrong, or a launch.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// In which order blocks run. Interleaved: a few at once, their threads switched at random.
enum class Order { ascending, shuffled, interleaved };

struct Options {
  uint64_t seed = 0;
  Order order = Order::ascending;
  uint64_t patience = 1 << 22;  // switches of threads without an exit that count as a deadlock
};

class Grid;
inline Grid* grid = nullptr;  // the one that runs

class Grid {
 public:
  Grid(const Options& options, size_t shared_bytes, std::function<void()> body)
      : options_(options), shared_bytes_(shared_bytes), body_(std::move(body)),
        random_(options.seed) {
    grid = this;
  }
  ~Grid() {
    const Untracked untracked;
    resident_.clear();
    Fiber::join_destroyed();
    grid = nullptr;
  }
  Grid(const Grid&) = delete;

  void run();  // every block to its end

  // The following are called by the thread that runs.
  Thread& current() { return *current_; }
  uint64_t meet(const Call& call);  // waits for the others of the call
  void yield();                     // lets others run in between
  template <class... Parts>
  [[noreturn]] void fail(const Parts&... parts);

 private:
  static void enter();
  void start(unsigned id);
  void resume(Thread& thread);
  void arrive_at_barrier(Thread& self);
  void arrive_in_warp(Thread& self);
  void let_go(const std::vector<Thread*>& group);
  void exit(Thread& self);
  std::string stuck() const;

  size_t draw(size_t bound) {  // splitmix64
    uint64_t z = random_ += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return (z ^ (z >> 31)) % bound;
  }

  const Options options_;
  const size_t shared_bytes_;
  const std::function<void()> body_;
  uint64_t random_;
  std::vector<std::unique_ptr<Block>> resident_;
  std::vector<Thread*> ready_;
  Thread* current_ = nullptr;
  std::string failure_;
};

inline void Grid::run() {
  const Untracked untracked;
  const size_t at_once = std::clamp(1024u / (blockDim.x * blockDim.y * blockDim.z), 2u, 4u);
  const size_t most_resident = options_.order == Order::interleaved ? at_once : 1;
  std::vector<unsigned> ids(size_t(gridDim.x) * gridDim.y * gridDim.z);
  std::iota(ids.rbegin(), ids.rend(), 0u);  // taken from the back
  if (options_.order != Order::ascending)
    for (size_t k = ids.size(); k > 1; --k) std::swap(ids[k - 1], ids[draw(k)]);

  uint64_t switches = 0;
  while (!ids.empty() || !resident_.empty()) {
    while (!ids.empty() && resident_.size() < most_resident) {
      start(ids.back());
      ids.pop_back();
    }
    if (ready_.empty() || ++switches > options_.patience) throw Error(stuck());
    std::swap(ready_[draw(ready_.size())], ready_.back());
    Thread& thread = *ready_.back();
    ready_.pop_back();
    resume(thread);
    if (!failure_.empty()) throw Error(failure_);
    if (thread.state != Thread::exited) continue;
    switches = 0;
    Block* const block = thread.block;
    if (block->gone.size() == block->threads.size())
      resident_.erase(std::find_if(resident_.begin(), resident_.end(),
                                   [=](const auto& one) { return one.get() == block; }));
  }
}

inline void Grid::start(unsigned id) {
  const uint3 index{id % gridDim.x, id / gridDim.x % gridDim.y, id / gridDim.x / gridDim.y};
  const unsigned count = blockDim.x * blockDim.y * blockDim.z;
  resident_.push_back(std::make_unique<Block>(index, count, shared_bytes_));
  Block& block = *resident_.back();
  for (unsigned rank = 0; rank < count; ++rank) {
    Thread& thread = block.threads[rank];
    thread.block = &block;
    thread.rank = rank;
    thread.index = {rank % blockDim.x, rank / blockDim.x % blockDim.y,
                    rank / blockDim.x / blockDim.y};
    thread.fiber.create(block.stacks[rank], &Grid::enter);
    ready_.push_back(&thread);
  }
}

inline void Grid::resume(Thread& thread) {
  current_ = &thread;
  threadIdx = thread.index;
  blockIdx = thread.block->index;
#if defined(CUDA_HOST_INITIALISED)
  watched = &thread.block->shared;
#endif
  thread.fiber.resume();
#if defined(CUDA_HOST_INITIALISED)
  watched = nullptr;
#endif
}

inline void Grid::enter() {
  Thread& self = grid->current();
  self.fiber.entered();
  grid->body_();
  {
    const Untracked untracked;
    grid->exit(self);
  }
  self.fiber.finish();
}

// Ends the launch with an Error. Nothing that owns memory may be alive in the calling fiber.
template <class... Parts>
[[noreturn]] void Grid::fail(const Parts&... parts) {
  {
    std::ostringstream message;
    (message << ... << parts) << ", in block " << current().block->index;
    failure_ = message.str();
  }
  current().state = Thread::waiting;  // for good
  current().fiber.finish();
}

inline uint64_t Grid::meet(const Call& call) {
  Thread& self = current();
  self.call = call;
  self.state = Thread::waiting;
  call.whole_block ? arrive_at_barrier(self) : arrive_in_warp(self);
  self.fiber.suspend();
  return self.result;
}

inline void Grid::yield() {
  ready_.push_back(&current());
  current().fiber.suspend();
}

inline void Grid::arrive_at_barrier(Thread& self) {
  Block& block = *self.block;
  if (!block.gone.empty()) fail("divergent barrier: ", self, ", ", *block.gone[0]);
  if (const Thread* other = block.lane_that_awaits(self)) fail("bad mask: ", *other, ", ", self);
  block.at_barrier.push_back(&self);
  const Thread& first = *block.at_barrier[0];
  if (first.call.site.line != self.call.site.line ||
      std::strcmp(first.call.site.file, self.call.site.file) != 0)
    fail("divergent barrier: ", first, ", ", self);
  if (block.at_barrier.size() < block.threads.size()) return;
  let_go(block.at_barrier);
  block.at_barrier.clear();
}

inline void Grid::arrive_in_warp(Thread& self) {
  Block& block = *self.block;
  const unsigned mask = self.call.mask;
  if (!self.awaits(self.lane())) fail("bad mask, the caller is not in it: ", self);
  bool complete = true;
  for (unsigned lane = 0; lane < 32; ++lane) {
    if (!(mask >> lane & 1)) continue;
    const Thread* other = block.lane_beside(self, lane);
    if (other == nullptr) fail("bad mask, there is no lane ", lane, ": ", self);
    const bool waits = other->state == Thread::waiting;
    const bool same = waits && other->call.mask == mask &&
                      std::strcmp(other->call.name, self.call.name) == 0;
    const bool never = other->state == Thread::exited || (waits && other->call.whole_block) ||
                       (other->awaits(self.lane()) && !same);
    if (never) fail("bad mask: ", self, ", ", *other);
    complete = complete && same;
  }
  if (!complete) return;
  std::vector<Thread*> group;
  for (unsigned lane = 0; lane < 32; ++lane)
    if (mask >> lane & 1) group.push_back(block.lane_beside(self, lane));
  let_go(group);
}

// All of the group are here: exchanges their values and lets them run on.
inline void Grid::let_go(const std::vector<Thread*>& group) {
  uint64_t votes = 0;
  for (Thread* thread : group)
    if (thread->call.value)
      votes += thread->call.whole_block ? 1 : uint64_t(1) << thread->lane();
  for (Thread* thread : group) {
    const int source = thread->call.source;
    thread->result = source < 0 ? votes : ~uint64_t(0);  // undefined where the mask leaves it out
    if (source >= 0 && (thread->call.mask >> source & 1))
      thread->result = thread->block->lane_beside(*thread, source)->call.value;
  }
  // Shuffles and ballots order no memory.
  const Call& call = group[0]->call;
  if (call.whole_block || std::strcmp(call.name, "__syncwarp") == 0) {
    for (Thread* thread : group) thread->fiber.release(group[0]);
    for (Thread* thread : group) thread->fiber.acquire(group[0]);
  }
  for (Thread* thread : group) {
    thread->state = Thread::ready;
    ready_.push_back(thread);
  }
}

inline void Grid::exit(Thread& self) {
  Block& block = *self.block;
  self.state = Thread::exited;
  if (!block.at_barrier.empty()) fail("divergent barrier: ", *block.at_barrier[0], ", ", self);
  if (const Thread* other = block.lane_that_awaits(self)) fail("bad mask: ", *other, ", ", self);
  block.gone.push_back(&self);
}

inline std::string Grid::stuck() const {
  std::ostringstream message;
  message << "deadlock, no thread exits any more: ";
  for (const auto& block : resident_)
    for (const Thread& thread : block->threads)
      if (thread.state != Thread::exited)
        return message << thread << ", in block " << block->index, message.str();
  return message.str();
}

#if defined(CUDA_HOST_INITIALISED)
[[noreturn]] inline void fail_uninitialised(ptrdiff_t offset, size_t count) {
  grid->fail("uninitialised shared memory: thread ", grid->current().index, " reads ", count,
             " bytes, and the byte at offset ", offset, " was never written");
}
#endif

}  // namespace cuda_host
