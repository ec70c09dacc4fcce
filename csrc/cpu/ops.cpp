// The CPU bodies of the operators of a block without BatchNorm.
#include <string>

#include "block.h"
#include "parameters.h"

namespace se_fused::cpu {
namespace {

Tensor squeeze(const Tensor& x) {
  return with_type(x, [&](auto type) {
    using T = decltype(type);
    Tensor z = per_sample<T>(x, x.size(1));
    mean(shape_of(x), read<T>(x), write<acc_t<T>>(z));
    return z;
  });
}

Tensor rescale(const Tensor& x, const Tensor& g) {
  return with_type(x, [&](auto type) {
    using T = decltype(type);
    const Shape s = shape_of(x);
    Tensor y = map_like<T>(x);
    scale_map(s, read<T>(x), read<acc_t<T>>(g, s.samples * s.channels), write<T>(y));
    return y;
  });
}

Tensor gate_gradient(const Tensor& dy, const Tensor& x) {
  return with_type(x, [&](auto type) {
    using T = decltype(type);
    const Shape s = shape_of(x);
    Tensor dg = per_sample<T>(x, s.channels);
    sum_of_products(s, read<T>(dy, s.size()), read<T>(x), write<acc_t<T>>(dg));
    return dg;
  });
}

std::tuple<Tensor, Tensor> rescale_backward(const Tensor& dy, const Tensor& x, const Tensor& g) {
  return with_type(x, [&](auto type) {
    using T = decltype(type);
    const Shape s = shape_of(x);
    Tensor dg = gate_gradient(dy, x), dx = map_like<T>(x);
    scale_map(s, read<T>(dy), read<acc_t<T>>(g, s.samples * s.channels), write<T>(dx));
    return std::make_tuple(dx, dg);
  });
}

std::tuple<Tensor, Tensor, Tensor> squeeze_excite(
    const Tensor& x, const Tensor& w1, const OptionalTensor& b1, const Tensor& w2,
    const OptionalTensor& b2, int64_t act, int64_t gate) {
  return with_type(x, [&](auto type) {
    using T = decltype(type);
    using A = acc_t<T>;
    const Shape s = shape_of(x);
    const Parameters<A> p(w1, b1, w2, b2, s.channels, act, gate);
    Tensor y = map_like<T>(x), z = per_sample<T>(x, s.channels), g = per_sample<T>(x, s.channels);
    block_forward(s, p.excitation, read<T>(x), write<T>(y), write<A>(z), write<A>(g));
    return std::make_tuple(y, z, g);
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> squeeze_excite_backward(
    const Tensor& dy, const Tensor& x, const Tensor& z, const Tensor& g, const Tensor& w1,
    const OptionalTensor& b1, const Tensor& w2, const OptionalTensor& b2, int64_t act,
    int64_t gate) {
  return with_type(x, [&](auto type) {
    using T = decltype(type);
    using A = acc_t<T>;
    const Shape s = shape_of(x);
    const Parameters<A> p(w1, b1, w2, b2, s.channels, act, gate);
    const int64_t hidden = p.excitation.hidden;
    Tensor dx = map_like<T>(x), dp2 = per_sample<T>(x, s.channels);
    Tensor dp1 = per_sample<T>(x, hidden), h = per_sample<T>(x, hidden);
    block_backward<T>(
        s, p.excitation,
        {read<T>(dy, s.size()), read<T>(x), read<A>(z, s.samples * s.channels),
         read<A>(g, s.samples * s.channels), write<T>(dx), write<A>(dp1), write<A>(h),
         write<A>(dp2)});
    return std::make_tuple(dx, dp1, h, dp2);
  });
}

std::string cpu_capability() { return capability(); }

}  // namespace
}  // namespace se_fused::cpu

STABLE_TORCH_LIBRARY_IMPL(se_fused_cpp, CPU, m) {
  m.impl("squeeze", TORCH_BOX(&se_fused::cpu::squeeze));
  m.impl("rescale", TORCH_BOX(&se_fused::cpu::rescale));
  m.impl("gate_gradient", TORCH_BOX(&se_fused::cpu::gate_gradient));
  m.impl("rescale_backward", TORCH_BOX(&se_fused::cpu::rescale_backward));
  m.impl("squeeze_excite", TORCH_BOX(&se_fused::cpu::squeeze_excite));
  m.impl("squeeze_excite_backward", TORCH_BOX(&se_fused::cpu::squeeze_excite_backward));
}

STABLE_TORCH_LIBRARY_IMPL(se_fused_cpp, CompositeExplicitAutograd, m) {
  m.impl("cpu_capability", TORCH_BOX(&se_fused::cpu::cpu_capability));
}
