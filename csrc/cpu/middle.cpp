// The CPU bodies of the operators between the passes: on [C], [N, C], [N, R].
#include <vector>

#include "parameters.h"
#include "schedule/se_block.h"

namespace se_fused::cpu {
namespace {

// body(A{}) for tensors in the accumulator type.
template <class Body>
auto with_accumulator(const Tensor& t, const Body& body) {
  return t.scalar_type() == ScalarType::Double ? body(double{}) : body(float{});
}

// Sums over samples are in double.
std::tuple<Tensor, Tensor> merge_moments(const Tensor& moments, int64_t positions) {
  STD_TORCH_CHECK(moments.dim() == 3 && moments.size(0) == 2, "se_fused: moments must be [2, N, C]");
  return with_accumulator(moments, [&](auto type) {
    using A = decltype(type);
    const int64_t samples = moments.size(1), channels = moments.size(2), size = samples * channels;
    Tensor mean = vector_beside(moments, channels, dtype_of<A>);
    Tensor var = vector_beside(moments, channels, dtype_of<A>);
    const A *means = read<A>(moments, 2 * size), *squares = means + size;
    A *to_mean = write<A>(mean), *to_var = write<A>(var);
    parallel(channels, size, [&](int64_t begin, int64_t end) {
      const int64_t count = end - begin;
      std::vector<double> sum(2 * count);
      double *delta = sum.data(), *square = delta + count;
      for (int64_t n = 0; n < samples; ++n)
        for (int64_t c = 0; c < count; ++c)
          delta[c] += static_cast<double>(means[n * channels + begin + c]) - means[begin + c];
      for (int64_t c = 0; c < count; ++c) delta[c] = means[begin + c] + delta[c] / samples;
      for (int64_t n = 0; n < samples; ++n)
        for (int64_t c = 0; c < count; ++c) {
          const double d = means[n * channels + begin + c] - delta[c];
          square[c] += squares[n * channels + begin + c] + positions * d * d;
        }
      for (int64_t c = 0; c < count; ++c) {
        to_mean[begin + c] = static_cast<A>(delta[c]);
        to_var[begin + c] = static_cast<A>(square[c] / (samples * positions));
      }
    });
    return std::make_tuple(mean, var);
  });
}

std::tuple<Tensor, Tensor, Tensor> excite(
    const Tensor& mean, const OptionalTensor& center, const OptionalTensor& scale,
    const OptionalTensor& shift, const Tensor& w1, const OptionalTensor& b1, const Tensor& w2,
    const OptionalTensor& b2, const std::string& act, const std::string& gate) {
  return with_accumulator(mean, [&](auto type) {
    using A = decltype(type);
    const int64_t samples = mean.size(0), channels = mean.size(1);
    const Parameters<A> p(w1, b1, w2, b2, channels, act, gate);
    const int64_t hidden = p.excitation.hidden;
    Tensor z = center ? per_sample<A>(mean, channels) : nothing(mean, dtype_of<A>);
    Tensor p1 = per_sample<A>(mean, hidden), g = per_sample<A>(mean, channels);
    const A* from = read<A>(mean, samples * channels);
    if (center) {
      const A *centers = read<A>(center, channels), *scales = read<A>(scale, channels);
      const A* shifts = read<A>(shift, channels);
      A* to = write<A>(z);
      for (int64_t n = 0; n < samples; ++n)
        for (int64_t c = 0; c < channels; ++c)
          to[n * channels + c] = (from[n * channels + c] - centers[c]) * scales[c] + shifts[c];
      from = to;
    }
    auto h = scratch<A>(samples * hidden);
    gates_of(p.excitation, samples, from, write<A>(p1), h.get(), write<A>(g));
    return std::make_tuple(z, p1, g);
  });
}

// What the sums of reduce_backward give for the gate and for BatchNorm.
template <class A>
struct Sums {
  int64_t samples, channels, terms;  // 1 or 2 without center, 2 or 5 with it
  const A* sums;
  const A *plane_means, *center, *scale, *shift;  // plane_means for two sums with a center
  const A* g;

  const A* sum(int64_t k, int64_t n) const { return sums + (k * samples + n) * channels; }

  void gate_gradient(A* dg) const {
    for (int64_t n = 0; n < samples; ++n, dg += channels) {
      if (center == nullptr || terms == 5) {
        std::copy_n(sum(center ? 2 : 0, n), channels, dg);
      } else {
        const A *first = sum(0, n), *second = sum(1, n);
        for (int64_t c = 0; c < channels; ++c) dg[c] = first[c] * shift[c] + second[c] * scale[c];
      }
    }
  }

  // Channels [begin, end): Σ du and Σ du·(x − center), by way of the rescale and of the squeeze.
  void affine_gradients(
      const A* grad_mean, A positions, A* grad_shift, A* grad_scale, int64_t begin,
      int64_t end) const {
    std::vector<double> total(2 * (end - begin));
    double *by_shift = total.data(), *by_scale = by_shift + (end - begin);
    for (int64_t n = 0; n < samples; ++n, grad_mean += channels) {
      const A *first = sum(0, n), *second = sum(1, n), *gate = g + n * channels;
      if (terms == 5) {
        const A *slopes = sum(3, n), *slopes_by_x = sum(4, n);
        for (int64_t c = begin; c < end; ++c) {
          by_shift[c - begin] += gate[c] * first[c] + grad_mean[c] * slopes[c];
          by_scale[c - begin] += gate[c] * second[c] + grad_mean[c] * slopes_by_x[c];
        }
      } else {
        const A* mean = plane_means + n * channels;
        for (int64_t c = begin; c < end; ++c) {
          const A dz = grad_mean[c] * positions;
          by_shift[c - begin] += gate[c] * first[c] + dz;
          by_scale[c - begin] += gate[c] * second[c] + dz * (mean[c] - center[c]);
        }
      }
    }
    for (int64_t c = begin; c < end; ++c) {
      grad_shift[c] = static_cast<A>(by_shift[c - begin]);
      grad_scale[c] = static_cast<A>(by_scale[c - begin]);
    }
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> excite_backward(
    const Tensor& sums, const Tensor& mean, const OptionalTensor& center,
    const OptionalTensor& scale, const OptionalTensor& shift, const Tensor& p1, const Tensor& g,
    const Tensor& w1, const Tensor& w2, const std::string& act, const std::string& gate,
    int64_t positions) {
  return with_accumulator(sums, [&](auto type) {
    using A = decltype(type);
    const int64_t samples = g.size(0), channels = g.size(1), size = samples * channels;
    const Parameters<A> p(w1, std::nullopt, w2, std::nullopt, channels, act, gate);
    const int64_t hidden = p.excitation.hidden, terms = sums.size(0);
    STD_TORCH_CHECK(
        terms == 2 || terms == (center ? 5 : 1), "se_fused: sums has a wrong number of terms");
    const Sums<A> found{
        samples, channels, terms, read<A>(sums, terms * size),
        center && terms == 2 ? read<A>(mean, size) : nullptr, read<A>(center, channels),
        read<A>(scale, channels), read<A>(shift, channels), read<A>(g, size)};
    Tensor dp1 = per_sample<A>(g, hidden), h = per_sample<A>(g, hidden);
    Tensor dp2 = per_sample<A>(g, channels), grad_mean = per_sample<A>(g, channels);
    Tensor grad_shift = vector_beside(g, center ? channels : 0, dtype_of<A>);
    Tensor grad_scale = vector_beside(g, center ? channels : 0, dtype_of<A>);
    auto dg = scratch<A>(size);
    found.gate_gradient(dg.get());
    excitation_gradient<A>(
        p.excitation, samples, positions,
        {nullptr, read<A>(p1, samples * hidden), dg.get(), found.g, write<A>(dp1), write<A>(h),
         write<A>(dp2), write<A>(grad_mean)});
    if (center)
      parallel(channels, size, [&](int64_t begin, int64_t end) {
        found.affine_gradients(
            read<A>(grad_mean), static_cast<A>(positions), write<A>(grad_shift),
            write<A>(grad_scale), begin, end);
      });
    return std::make_tuple(dp1, h, dp2, grad_mean, grad_shift, grad_scale);
  });
}

}  // namespace
}  // namespace se_fused::cpu

STABLE_TORCH_LIBRARY_IMPL(se_fused, CPU, m) {
  m.impl("merge_moments.cpp", TORCH_BOX(&se_fused::cpu::merge_moments));
  m.impl("excite.cpp", TORCH_BOX(&se_fused::cpu::excite));
  m.impl("excite_backward.cpp", TORCH_BOX(&se_fused::cpu::excite_backward));
}
