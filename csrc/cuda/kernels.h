// What the CUDA kernels offer to ops.cpp, which the C++ compiler builds: launches on raw pointers.
#pragma once

#include "../activations.h"
#include "plan.h"

namespace se_fused::cuda {

struct Weight {
  const void* data;  // null: no bias
  bool is_acc;       // of the accumulator's dtype, not the map's
};

// The arguments of an operator and what it computes. Pointers that it does not use are null.
struct Call {
  int64_t samples, positions;
  int channels;
  bool channels_last;
  const void *x, *dy;
  void *y, *dx;
  Weight w1, b1, w2, b2;
  int hidden;
  Act act;
  Gate gate;
  void *z, *g, *h, *dg, *dp2, *dp1, *grad_mean;
  void* stream;
};

enum class Summed { values, products, products_rescaled };

// Scratch of a reduce launch: `slots` accumulators and `counters` zeroed integers. Zero: none.
struct Scratch {
  int64_t slots, counters;
};

struct Launches {
  // Sums of x in z, or of dy·x in dg; with weights also the excitation, or its gradient. Several
  // launches where the weights outweigh the samples.
  Scratch (*scratch)(const Call&, Summed, bool excites);
  void (*reduce)(const Call&, Summed, bool excites, void* slots, void* counters);
  // y = x · g, or dx = dy · g + grad_mean.
  void (*rescale)(const Call&);
};

// The launches of one element type, on the current device. They throw std::runtime_error with
// CUDA's own words.
const Launches& launches(Type type);

}  // namespace se_fused::cuda
