// Blocks and launches from shapes and device: the decisions of se_fused/plan.py for these kernels.
#pragma once

#include <algorithm>
#include <cstdint>

namespace se_fused::cuda {

enum class Type { fp64, fp32, bf16, fp16 };
inline int64_t item_size(Type type) { return type == Type::fp64 ? 8 : type == Type::fp32 ? 4 : 2; }

// Planes up to this many elements are summed several at a time, through shared memory.
constexpr int64_t short_plane = 512, staged_elements = 4096;
// Positions that a block sums at least before they are split among more blocks.
constexpr int64_t least_split = 1024;
constexpr int64_t blocks_per_multiprocessor = 8;

struct Device {
  int multiprocessors;
  int64_t l2_bytes;
};

// Where the excitation runs; see excites_in_reduce in se_fused/plan.py for the model and the units.
inline bool excites_in_reduce(
    int64_t samples, int64_t channels, int64_t hidden, int64_t weight_item_size, Device device) {
  constexpr double program_rate = 16, multiprocessor_rate = 32, launches_between = 2, launch = 2000;
  const double bytes = 2.0 * channels * hidden * weight_item_size;
  if (2 * bytes > device.l2_bytes) return false;
  const double together = multiprocessor_rate * device.multiprocessors;
  return bytes / program_rate + samples * bytes / together <=
      launches_between * launch + bytes / together;
}

// How many blocks share the positions of a tile of channels, and the positions of each.
inline int64_t split_positions(
    int64_t positions, int64_t blocks_without, int64_t unit, Device device) {
  const int64_t wanted = blocks_per_multiprocessor * device.multiprocessors;
  const int64_t splits = std::clamp<int64_t>(
      wanted / std::max<int64_t>(1, blocks_without), 1, std::max<int64_t>(1, positions / least_split));
  const int64_t each = (positions + splits - 1) / splits;
  return (each + unit - 1) / unit * unit;
}

}  // namespace se_fused::cuda
