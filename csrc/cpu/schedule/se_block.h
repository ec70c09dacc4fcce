// The block at once, forward and backward: sample by sample, so that the second phase finds the sample
// in cache; with few samples, phase by phase with threads inside the samples.
#pragma once

#include "passes.h"

namespace se_fused::cpu {

// Bytes of feature map that a group of samples may fill and still be found in cache.
constexpr int64_t group_bytes = 700 << 10;
// Bytes of feature map that are still in the last-level cache when the second phase comes to them.
constexpr int64_t phase_bytes = 16 << 20;

template <class A>
int64_t weight_bytes(const Excitation<A>& e) {
  return 2 * e.channels * e.hidden * static_cast<int64_t>(sizeof(A));
}

// Samples that one thread takes through both phases together: a group reads the weights once.
template <class A>
int64_t group_size(const Excitation<A>& e, int64_t sample_bytes) {
  if (weight_bytes(e) > sample_bytes) return 8;
  return std::clamp<int64_t>(group_bytes / std::max<int64_t>(1, sample_bytes), 1, 8);
}

// Whether each thread takes whole samples through both phases. Otherwise all go through one phase
// after the other: where samples are too few for the threads, and where the weights outweigh a
// sample of a map that stays in cache anyway, so that every weight is read once by one thread.
template <class A>
bool by_sample(const Shape& s, const Excitation<A>& e, int64_t sample_bytes) {
  if (s.size() < serial_below) return true;
  if (weight_bytes(e) > sample_bytes && s.samples * sample_bytes <= phase_bytes) return false;
  return by_whole_samples(s);
}

// body(begin, end) over the outputs of a product of the excitation, split among threads if the
// product has work for them; whole vectors to each.
template <class Body>
void for_outputs(int64_t outputs, int64_t multiplications, const Body& body) {
  constexpr int64_t unit = 16;
  parallel((outputs + unit - 1) / unit, multiplications, [&](int64_t begin, int64_t end) {
    body(begin * unit, std::min(end * unit, outputs));
  });
}

// z → p1 and g of all samples; h is scratch and may be p1.
template <class A>
void gates_of(const Excitation<A>& e, int64_t samples, const A* z, A* p1, A* h, A* g) {
  const Kernels<A>& k = kernels<A>();
  const int64_t work = samples * e.channels * e.hidden;
  for_outputs(e.hidden, work, [&](int64_t begin, int64_t end) {
    k.fc1(e, samples, z, p1, begin, end);
    k.hidden_act(e, samples, p1, h, begin, end);
  });
  for_outputs(e.channels, work, [&](int64_t begin, int64_t end) {
    k.fc2_gate(e, samples, h, g, begin, end);
  });
}

// What the excitation's backward pass reads and writes besides its weights.
template <class A>
struct ExcitationGradient {
  const A *z, *p1, *dg, *g;  // of z and p1 one, the other null
  A *dp1, *h, *dp2, *grad_mean;
};

template <class A>
void excitation_gradient(
    const Excitation<A>& e, int64_t samples, int64_t positions, const ExcitationGradient<A>& b) {
  const Kernels<A>& k = kernels<A>();
  const int64_t work = samples * e.channels * e.hidden;
  k.gate_backward(e, samples, b.dg, b.g, b.dp2, 0, e.channels);
  for_outputs(e.hidden, (b.z ? 2 : 1) * work, [&](int64_t begin, int64_t end) {
    if (b.z) k.fc1(e, samples, b.z, b.h, begin, end);
    k.fc2_act_backward(e, samples, b.z ? b.h : b.p1, b.dp2, b.h, b.dp1, begin, end);
  });
  for_outputs(e.channels, work, [&](int64_t begin, int64_t end) {
    k.fc1_backward(e, samples, b.dp1, b.grad_mean, begin, end);
    for (int64_t n = 0; n < samples; ++n)
      for (int64_t c = begin; c < end; ++c)
        b.grad_mean[n * e.channels + c] /= static_cast<A>(positions);
  });
}

// p is of the second phase, with g to be written to; z [N, C] is an output.
template <class T>
void block_forward(
    const Shape& s, const Excitation<acc_t<T>>& e, const Pass<T>& p, acc_t<T>* z, acc_t<T>* g) {
  using A = acc_t<T>;
  const Kernels<T>& k = kernels<T>();
  const int64_t sample_bytes = s.sample_size() * static_cast<int64_t>(sizeof(T));
  if (!by_sample(s, e, sample_bytes)) {
    auto h = scratch<A>(s.samples * e.hidden);
    statistics_of(s, p, z);
    gates_of(e, s.samples, z, h.get(), h.get(), g);
    return apply(s, p, k.apply_forward);
  }
  const auto sum = k.reduce_forward[s.channels_last];
  const auto rescale = k.apply_forward[s.channels_last];
  const bool non_temporal = stores_non_temporally(s, p);
  const int64_t group = group_size(e, sample_bytes);
  parallel(s.samples, s.size(), [&](int64_t begin, int64_t end) {
    auto h = scratch<A>(group * e.hidden);
    for (int64_t first = begin; first < end; first += group) {
      const int64_t stop = std::min(first + group, end), count = stop - first;
      A *zs = z + first * s.channels, *gs = g + first * s.channels;
      for (int64_t n = first; n < stop; ++n)
        sum(p.at(s.tile(n * s.rows())), s.rows(), s.cols(), z + n * s.channels, 0);
      for (int64_t i = 0; i < count * s.channels; ++i) zs[i] /= static_cast<A>(s.positions);
      k.fc1(e, count, zs, h.get(), 0, e.hidden);
      k.hidden_act(e, count, h.get(), h.get(), 0, e.hidden);
      k.fc2_gate(e, count, h.get(), gs, 0, e.channels);
      for (int64_t n = first; n < stop; ++n)
        rescale(p.at(s.tile(n * s.rows())), s.rows(), s.cols(), non_temporal);
    }
  });
}

// p is of the second phase but for grad_mean; dp1, h and dp2 are outputs.
template <class T>
void block_backward(
    const Shape& s, const Excitation<acc_t<T>>& e, Pass<T> p, const acc_t<T>* z, acc_t<T>* dp1,
    acc_t<T>* h, acc_t<T>* dp2) {
  using A = acc_t<T>;
  const Kernels<T>& k = kernels<T>();
  const int64_t channels = s.channels;
  const int64_t sample_bytes = 2 * s.sample_size() * static_cast<int64_t>(sizeof(T));
  if (!by_sample(s, e, sample_bytes)) {
    auto dg = scratch<A>(s.planes()), grad_mean = scratch<A>(s.planes());
    sums_of_backward(s, p, 1, dg.get());
    excitation_gradient<A>(
        e, s.samples, s.positions, {z, nullptr, dg.get(), p.g, dp1, h, dp2, grad_mean.get()});
    p.grad_mean = grad_mean.get();
    return apply(s, p, k.apply_backward);
  }
  const auto sum = k.reduce_backward[s.channels_last];
  const auto rescale = k.apply_backward[s.channels_last];
  const bool non_temporal = stores_non_temporally(s, p);
  const int64_t group = group_size(e, sample_bytes);
  parallel(s.samples, s.size(), [&](int64_t begin, int64_t end) {
    auto dg = scratch<A>(group * channels), grad_mean = scratch<A>(group * channels);
    for (int64_t first = begin; first < end; first += group) {
      const int64_t stop = std::min(first + group, end), count = stop - first;
      A *dp2s = dp2 + first * channels, *hs = h + first * e.hidden, *dp1s = dp1 + first * e.hidden;
      for (int64_t n = first; n < stop; ++n)
        sum(p.at(s.tile(n * s.rows())), s.rows(), s.cols(), dg.get() + (n - first) * channels, 0);
      k.gate_backward(e, count, dg.get(), p.g + first * channels, dp2s, 0, channels);
      k.fc1(e, count, z + first * channels, hs, 0, e.hidden);
      k.fc2_act_backward(e, count, hs, dp2s, hs, dp1s, 0, e.hidden);
      k.fc1_backward(e, count, dp1s, grad_mean.get(), 0, channels);
      for (int64_t i = 0; i < count * channels; ++i) grad_mean[i] /= static_cast<A>(s.positions);
      for (int64_t n = first; n < stop; ++n) {
        Pass<T> tile = p.at(s.tile(n * s.rows()));
        tile.grad_mean = grad_mean.get() + (n - first) * channels;
        rescale(tile, s.rows(), s.cols(), non_temporal);
      }
    }
  });
}

}  // namespace se_fused::cpu
