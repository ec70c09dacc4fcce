// Blocks and launches from shapes and device: the decisions of backends/triton/plan.py for these
// kernels.
#pragma once

#include <algorithm>
#include <cstdint>

namespace se_fused::cuda {

enum class Type { fp64, fp32, bf16, fp16 };
inline int64_t item_size(Type type) { return type == Type::fp64 ? 8 : type == Type::fp32 ? 4 : 2; }

// Planes up to this many elements are summed several at a time, through shared memory.
constexpr int64_t short_plane = 512, staged_elements = 4096;
// Positions that a block sums at least before they are split among more blocks.
constexpr int64_t least_split = 64;
constexpr int64_t blocks_per_multiprocessor = 8;
// The last block of a sample loads so many of its slots at once. There is one such round, but for
// few samples: there as many splits, up to max_splits, as give each multiprocessor busy_blocks.
constexpr int slots_per_round = 8;
constexpr int64_t busy_blocks = 4, max_splits = 32;

struct Device {
  int multiprocessors;
  int64_t l2_bytes;
};

// Where the excitation runs; see excites_in_reduce in backends/triton/plan.py for the model and the
// units.
inline bool excites_in_reduce(
    int64_t samples, int64_t channels, int64_t hidden, int64_t weight_item_size, int64_t splits,
    int64_t acc_size, Device device) {
  constexpr double program_rate = 16, multiprocessor_rate = 32, launches_between = 2, launch = 2000;
  const double bytes = 2.0 * channels * hidden * weight_item_size;
  if (2 * bytes > device.l2_bytes) return false;
  const double slots = splits * channels * acc_size / program_rate;
  const double together = multiprocessor_rate * device.multiprocessors;
  return slots + bytes / program_rate + samples * bytes / together <=
      launches_between * launch + bytes / together + (splits > 1 ? slots : 0);
}

// How many blocks share the positions of a tile of channels, and the positions of each.
inline int64_t split_positions(
    int64_t positions, int64_t blocks_without, int64_t unit, Device device) {
  const int64_t blocks = std::max<int64_t>(1, blocks_without);
  const int64_t wanted = blocks_per_multiprocessor * device.multiprocessors / blocks;
  const int64_t busy = busy_blocks * device.multiprocessors / blocks;
  const int64_t most = std::clamp<int64_t>(busy, slots_per_round, max_splits);
  const int64_t splits =
      std::clamp<int64_t>(std::min(wanted, positions / least_split), 1, most);
  const int64_t each = (positions + splits - 1) / splits;
  return (each + unit - 1) / unit * unit;
}

}  // namespace se_fused::cuda
