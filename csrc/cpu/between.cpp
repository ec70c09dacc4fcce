// The CPU bodies of what lies between the passes of a block with BatchNorm: on [C], [N, C], [N, R].
#include "block.h"
#include "parameters.h"

namespace se_fused::cpu {
namespace {

// body(A{}) for tensors in the accumulator type.
template <class Body>
auto with_accumulator(const Tensor& t, const Body& body) {
  return t.scalar_type() == ScalarType::Double ? body(double{}) : body(float{});
}

template <class A>
const A* read_optional(const OptionalTensor& t, int64_t count) {
  return t ? read<A>(*t, count) : nullptr;
}

Tensor per_channel(const Tensor& like, int64_t size) {
  const int64_t stride = 1;
  return empty_beside(like, &size, &stride, 1, like.scalar_type());
}

// Sums over samples are in double.
std::tuple<Tensor, Tensor> merge_moments(
    const Tensor& planes, const Tensor& m2, int64_t positions) {
  return with_accumulator(planes, [&](auto type) {
    using A = decltype(type);
    const int64_t samples = planes.size(0), channels = planes.size(1), size = samples * channels;
    Tensor mean = per_channel(planes, channels), var = per_channel(planes, channels);
    const A *means = read<A>(planes, size), *squares = read<A>(m2, size);
    A *to_mean = write<A>(mean), *to_var = write<A>(var);
    parallel(channels, size, [&](int64_t begin, int64_t end) {
      const int64_t count = end - begin;
      std::vector<double> sum(2 * count);
      double *apart = sum.data(), *square = apart + count;
      for (int64_t n = 0; n < samples; ++n)
        for (int64_t c = 0; c < count; ++c)
          apart[c] += static_cast<double>(means[n * channels + begin + c]) - means[begin + c];
      for (int64_t c = 0; c < count; ++c) apart[c] = means[begin + c] + apart[c] / samples;
      for (int64_t n = 0; n < samples; ++n)
        for (int64_t c = 0; c < count; ++c) {
          const double d = means[n * channels + begin + c] - apart[c];
          square[c] += squares[n * channels + begin + c] + positions * d * d;
        }
      for (int64_t c = 0; c < count; ++c) {
        to_mean[begin + c] = static_cast<A>(apart[c]);
        to_var[begin + c] = static_cast<A>(square[c] / (samples * positions));
      }
    });
    return std::make_tuple(mean, var);
  });
}

std::tuple<Tensor, Tensor, Tensor> norm_excite(
    const Tensor& planes, const OptionalTensor& center, const OptionalTensor& scale,
    const OptionalTensor& shift, const Tensor& w1, const OptionalTensor& b1, const Tensor& w2,
    const OptionalTensor& b2, int64_t act, int64_t gate) {
  return with_accumulator(planes, [&](auto type) {
    using A = decltype(type);
    const int64_t samples = planes.size(0), channels = planes.size(1);
    const Parameters<A> p(w1, b1, w2, b2, channels, act, gate);
    const int64_t hidden = p.excitation.hidden, work = samples * channels * hidden;
    Tensor z = center ? empty_per_sample(planes, channels, dtype_of<A>) : per_channel(planes, 0);
    Tensor p1 = empty_per_sample(planes, hidden, dtype_of<A>);
    Tensor g = empty_per_sample(planes, channels, dtype_of<A>);
    const A* squeezed = read<A>(planes, samples * channels);
    if (center) {
      const A *mean = read<A>(*center, channels), *scales = read<A>(*scale, channels);
      const A* shifts = read<A>(*shift, channels);
      A* to = write<A>(z);
      for (int64_t n = 0; n < samples; ++n)
        for (int64_t c = 0; c < channels; ++c)
          to[n * channels + c] = (squeezed[n * channels + c] - mean[c]) * scales[c] + shifts[c];
      squeezed = to;
    }
    auto h = scratch<A>(samples * hidden);
    const Kernels<A>& k = kernels<A>();
    for_outputs(hidden, work, [&](int64_t begin, int64_t end) {
      k.first_layer(p.excitation, samples, squeezed, write<A>(p1), begin, end);
      k.activated(p.excitation, samples, read<A>(p1), h.get(), begin, end);
    });
    for_outputs(channels, work, [&](int64_t begin, int64_t end) {
      k.gates(p.excitation, samples, h.get(), write<A>(g), begin, end);
    });
    return std::make_tuple(z, p1, g);
  });
}

// What the sums of a pass over dy and x, [2 or 5, N, C], give for the gate and for BatchNorm.
template <class A>
struct Sums {
  int64_t samples, channels;
  bool five;
  const A* sums;
  const A *planes, *center, *scale, *shift;  // planes, for two sums; all may be null
  const A* g;

  const A* sum(int64_t k, int64_t n) const { return sums + (k * samples + n) * channels; }

  void gate_gradient(A* dg) const {
    for (int64_t n = 0; n < samples; ++n, dg += channels) {
      const A *first = sum(0, n), *second = sum(1, n);
      if (five || center == nullptr) {
        std::copy_n(five ? sum(2, n) : second, channels, dg);
      } else {
        for (int64_t c = 0; c < channels; ++c) dg[c] = first[c] * shift[c] + second[c] * scale[c];
      }
    }
  }

  // Channels [begin, end): Σ du and Σ du·(x − center), by way of the rescale and of the squeeze.
  void affine_gradients(const A* share, A positions, A* of_shift, A* of_scale, int64_t begin,
                        int64_t end) const {
    std::vector<double> total(2 * (end - begin));
    double *by_shift = total.data(), *by_scale = by_shift + (end - begin);
    for (int64_t n = 0; n < samples; ++n, share += channels) {
      const A *first = sum(0, n), *second = sum(1, n), *gate = g + n * channels;
      if (five) {
        const A *slopes = sum(3, n), *slopes_by_x = sum(4, n);
        for (int64_t c = begin; c < end; ++c) {
          by_shift[c - begin] += gate[c] * first[c] + share[c] * slopes[c];
          by_scale[c - begin] += gate[c] * second[c] + share[c] * slopes_by_x[c];
        }
      } else {
        const A* plane = planes + n * channels;
        for (int64_t c = begin; c < end; ++c) {
          const A dz = share[c] * positions;
          by_shift[c - begin] += gate[c] * first[c] + dz;
          by_scale[c - begin] += gate[c] * second[c] + dz * (plane[c] - center[c]);
        }
      }
    }
    for (int64_t c = begin; c < end; ++c) {
      of_shift[c] = static_cast<A>(by_shift[c - begin]);
      of_scale[c] = static_cast<A>(by_scale[c - begin]);
    }
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> norm_excite_backward(
    const Tensor& sums, const Tensor& planes, const OptionalTensor& center,
    const OptionalTensor& scale, const OptionalTensor& shift, const Tensor& p1, const Tensor& g,
    const Tensor& w1, const Tensor& w2, int64_t act, int64_t gate, int64_t positions) {
  return with_accumulator(sums, [&](auto type) {
    using A = decltype(type);
    const int64_t samples = g.size(0), channels = g.size(1), size = samples * channels;
    const Parameters<A> p(w1, std::nullopt, w2, std::nullopt, channels, act, gate);
    const int64_t hidden = p.excitation.hidden, work = samples * channels * hidden;
    const bool five = sums.size(0) == 5;
    const Sums<A> found{
        samples, channels, five, read<A>(sums, (five ? 5 : 2) * size), read<A>(planes, size),
        read_optional<A>(center, channels), read_optional<A>(scale, channels),
        read_optional<A>(shift, channels), read<A>(g, size)};
    Tensor dp1 = empty_per_sample(g, hidden, dtype_of<A>), h = empty_per_sample(g, hidden, dtype_of<A>);
    Tensor dp2 = empty_per_sample(g, channels, dtype_of<A>);
    Tensor share = empty_per_sample(g, channels, dtype_of<A>);
    Tensor of_shift = per_channel(g, center ? channels : 0);
    Tensor of_scale = per_channel(g, center ? channels : 0);
    const Kernels<A>& k = kernels<A>();
    auto dg = scratch<A>(size);
    found.gate_gradient(dg.get());
    k.gate_inputs(p.excitation, samples, dg.get(), found.g, write<A>(dp2), 0, channels);
    for_outputs(hidden, work, [&](int64_t begin, int64_t end) {
      k.hidden_inputs(
          p.excitation, samples, read<A>(p1, samples * hidden), read<A>(dp2), write<A>(h),
          write<A>(dp1), begin, end);
    });
    A* shares = write<A>(share);
    for_outputs(channels, work, [&](int64_t begin, int64_t end) {
      k.squeezed(p.excitation, samples, read<A>(dp1), shares, begin, end);
      for (int64_t n = 0; n < samples; ++n)
        for (int64_t c = begin; c < end; ++c)
          shares[n * channels + c] /= static_cast<A>(positions);
      if (center)
        found.affine_gradients(
            shares, static_cast<A>(positions), write<A>(of_shift), write<A>(of_scale), begin, end);
    });
    return std::make_tuple(dp1, h, dp2, share, of_shift, of_scale);
  });
}

}  // namespace
}  // namespace se_fused::cpu

STABLE_TORCH_LIBRARY_IMPL(se_fused_cpp, CPU, m) {
  m.impl("merge_moments", TORCH_BOX(&se_fused::cpu::merge_moments));
  m.impl("norm_excite", TORCH_BOX(&se_fused::cpu::norm_excite));
  m.impl("norm_excite_backward", TORCH_BOX(&se_fused::cpu::norm_excite_backward));
}
