// The CPU bodies of the four passes and of the block at once: from tensors to pointers.
#include <cmath>

#include "parameters.h"
#include "schedule/se_block.h"

namespace se_fused::cpu {
namespace {

// The map x and what is given of its parts; outputs are set afterwards.
template <class T>
struct Operands {
  using A = acc_t<T>;
  const Shape shape;
  Pass<T> pass;

  explicit Operands(const Tensor& x) : shape(shape_of(x)) { pass.x = read<T>(x); }

  const A* per_plane(const OptionalTensor& t) const { return read<A>(t, shape.planes()); }
  const A* per_channel(const OptionalTensor& t) const { return read<A>(t, shape.channels); }
  const T* map(const OptionalTensor& t) const { return read<T>(t, shape.size()); }

  void set_norm(
      const OptionalTensor& center, const OptionalTensor& scale, const OptionalTensor& shift,
      const std::string& act) {
    pass.act = parse<Act>(act);
    STD_TORCH_CHECK(
        center ? scale && shift && pass.act <= Act::hardswish : pass.act == Act::identity,
        "se_fused: act needs center, center needs scale and shift, and act cannot be ", act);
    pass.center = per_channel(center);
    pass.scale = per_channel(scale);
    pass.shift = per_channel(shift);
  }

  void set_gradient(const Tensor& dy, const OptionalTensor& mask) {
    pass.dy = map(dy);
    if (!mask) return;
    STD_TORCH_CHECK(
        mask->is_cpu() && mask->scalar_type() == ScalarType::Byte &&
            mask->numel() == shape.samples * shape.rows() * shape.mask_bytes(),
        "se_fused: the mask has the wrong device, size or dtype");
    pass.mask = static_cast<const uint8_t*>(mask->const_data_ptr());
  }

  // y, or dx
  Tensor make_map(const Tensor& x) {
    Tensor y = map_like<T>(x);
    pass.y = write<T>(y);
    return y;
  }
  Tensor make_mask(const Tensor& x, bool relu) {
    if (!relu) return nothing(x, ScalarType::Byte);
    const int64_t sizes[] = {shape.samples * shape.rows(), shape.mask_bytes()};
    const int64_t strides[] = {std::max<int64_t>(shape.mask_bytes(), 1), 1};
    Tensor mask = empty_beside(x, sizes, strides, 2, ScalarType::Byte);
    pass.new_mask = write<uint8_t>(mask);
    return mask;
  }
  Tensor make_dr(const Tensor& x, bool add) {
    Tensor dr = add ? map_like<T>(x) : nothing(x, dtype_of<T>);
    if (add) pass.dr = write<T>(dr);
    return dr;
  }
};

// a [N, C] · b [C] + c [C]; a null c is absent, and of a null a the product.
template <class A>
std::unique_ptr<A[]> scaled(const Shape& s, const A* a, const A* b, const A* c) {
  if (a == nullptr && c == nullptr) return nullptr;
  auto out = scratch<A>(s.planes());
  for (int64_t n = 0, i = 0; n < s.samples; ++n)
    for (int64_t channel = 0; channel < s.channels; ++channel, ++i)
      out[i] = a == nullptr ? c[channel]
          : c == nullptr    ? a[i] * b[channel]
                            : a[i] * b[channel] + c[channel];
  return out;
}

template <class A>
bool are_finite(const A* values, int64_t count) {
  int others = 0;  // a loop without an exit is vectorized
  for (int64_t i = 0; i < count; ++i)
    others |= !(std::abs(values[i]) <= std::numeric_limits<A>::max());
  return others == 0;
}

Tensor reduce_forward(
    const Tensor& x, const OptionalTensor& center, const OptionalTensor& scale,
    const OptionalTensor& shift, const std::string& act, const std::string& statistic) {
  return with_type(x, [&](auto type) {
    using T = decltype(type);
    Operands<T> operands(x);
    Pass<T>& p = operands.pass;
    operands.set_norm(center, scale, shift, act);
    p.statistic = parse<Statistic>(statistic);
    STD_TORCH_CHECK(
        !center || p.statistic == Statistic::mean,
        "se_fused: max and moments are of a map without center");
    Tensor out = per_plane<T>(x, p.statistic == Statistic::mean ? 1 : 2);
    statistics_of(operands.shape, p, write<acc_t<T>>(out));
    return out;
  });
}

std::tuple<Tensor, Tensor> apply_forward(
    const Tensor& x, const OptionalTensor& residual, const OptionalTensor& center,
    const OptionalTensor& scale, const OptionalTensor& shift, const Tensor& g,
    const std::string& act, bool relu) {
  return with_type(x, [&](auto type) {
    using T = decltype(type);
    using A = acc_t<T>;
    Operands<T> operands(x);
    Pass<T>& p = operands.pass;
    const Shape& s = operands.shape;
    operands.set_norm(center, scale, shift, act);
    p.g = operands.per_plane(g);
    p.residual = operands.map(residual);
    std::unique_ptr<A[]> gated_scale, gated_shift;
    if (center && p.act == Act::identity) {
      gated_scale = scaled<A>(s, p.g, p.scale, nullptr);
      gated_shift = scaled<A>(s, p.g, p.shift, nullptr);
      // Inf · 0 is no product of the block's: then the gate stays a factor of its own.
      if (are_finite(gated_scale.get(), s.planes()) && are_finite(gated_shift.get(), s.planes())) {
        p.g = gated_scale.get();
        p.gated_shift = gated_shift.get();
      }
    }
    Tensor y = operands.make_map(x), mask = operands.make_mask(x, relu);
    apply(s, p, kernels<T>().apply_forward);
    return std::make_tuple(y, mask);
  });
}

std::tuple<Tensor, Tensor> reduce_backward(
    const Tensor& dy, const Tensor& x, const OptionalTensor& mask, const OptionalTensor& center,
    const OptionalTensor& scale, const OptionalTensor& shift, const OptionalTensor& maximum,
    const OptionalTensor& g, const std::string& act) {
  return with_type(x, [&](auto type) {
    using T = decltype(type);
    Operands<T> operands(x);
    operands.set_norm(center, scale, shift, act);
    operands.set_gradient(dy, mask);
    operands.pass.maximum = operands.per_plane(maximum);
    STD_TORCH_CHECK(!center || !maximum, "se_fused: maximum is of a map without center");
    STD_TORCH_CHECK(
        !g || !(mask || center || maximum), "se_fused: g needs no mask, center or maximum");
    const int64_t terms = center ? (operands.pass.act == Act::identity ? 2 : 5) : maximum ? 2 : 1;
    Tensor sums = per_plane<T>(x, terms);
    sums_of_backward(operands.shape, operands.pass, terms, write<acc_t<T>>(sums));
    if (!g) return std::make_tuple(sums, nothing(x, dtype_of<T>));
    operands.pass.x = nullptr;
    operands.pass.g = operands.per_plane(g);
    Tensor dx = operands.make_map(x);
    apply(operands.shape, operands.pass, kernels<T>().apply_backward);
    return std::make_tuple(sums, dx);
  });
}

std::tuple<Tensor, Tensor> apply_backward(
    const Tensor& dy, const Tensor& x, const OptionalTensor& mask, const OptionalTensor& center,
    const OptionalTensor& scale, const OptionalTensor& shift, const Tensor& g,
    const OptionalTensor& grad_mean, const OptionalTensor& maximum,
    const OptionalTensor& grad_max, const OptionalTensor& slope, const OptionalTensor& offset,
    const std::string& act, bool add) {
  return with_type(x, [&](auto type) {
    using T = decltype(type);
    using A = acc_t<T>;
    Operands<T> operands(x);
    Pass<T>& p = operands.pass;
    const Shape& s = operands.shape;
    STD_TORCH_CHECK(
        maximum.has_value() == grad_max.has_value() && !(center && maximum) &&
            slope.has_value() == offset.has_value() && (center || !slope),
        "se_fused: maximum needs grad_max and no center, slope needs offset and center");
    operands.set_norm(center, scale, shift, act);
    operands.set_gradient(dy, mask);
    p.g = operands.per_plane(g);
    p.grad_mean = operands.per_plane(grad_mean);
    p.maximum = operands.per_plane(maximum);
    p.grad_max = operands.per_plane(grad_max);
    p.slope = operands.per_channel(slope);
    p.offset = operands.per_channel(offset);
    std::unique_ptr<A[]> scaled_g, scaled_grad_mean;
    if (center) {
      const bool is_identity = p.act == Act::identity;
      scaled_g = scaled<A>(s, p.g, p.scale, nullptr);
      scaled_grad_mean = scaled<A>(s, p.grad_mean, p.scale, is_identity ? p.offset : nullptr);
      p.g = scaled_g.get();
      p.grad_mean = scaled_grad_mean.get();
      if (is_identity) p.offset = nullptr;
    }
    Tensor dx = operands.make_map(x), dr = operands.make_dr(x, add);
    apply(s, p, kernels<T>().apply_backward);
    return std::make_tuple(dx, dr);
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> squeeze_excite(
    const Tensor& x, const OptionalTensor& residual, const Tensor& w1, const OptionalTensor& b1,
    const Tensor& w2, const OptionalTensor& b2, const std::string& act, const std::string& gate,
    bool relu) {
  return with_type(x, [&](auto type) {
    using T = decltype(type);
    using A = acc_t<T>;
    Operands<T> operands(x);
    const int64_t channels = operands.shape.channels;
    const Parameters<A> parameters(w1, b1, w2, b2, channels, act, gate);
    Tensor y = operands.make_map(x), mask = operands.make_mask(x, relu);
    Tensor z = per_sample<T>(x, channels), g = per_sample<T>(x, channels);
    operands.pass.residual = operands.map(residual);
    operands.pass.g = write<A>(g);
    block_forward(
        operands.shape, parameters.excitation, operands.pass, write<A>(z), write<A>(g));
    return std::make_tuple(y, mask, z, g);
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> squeeze_excite_backward(
    const Tensor& dy, const Tensor& x, const OptionalTensor& mask, const Tensor& z,
    const Tensor& g, const Tensor& w1, const OptionalTensor& b1, const Tensor& w2,
    const OptionalTensor& b2, const std::string& act, const std::string& gate, bool add) {
  return with_type(x, [&](auto type) {
    using T = decltype(type);
    using A = acc_t<T>;
    Operands<T> operands(x);
    const int64_t channels = operands.shape.channels;
    const Parameters<A> parameters(w1, b1, w2, b2, channels, act, gate);
    const int64_t hidden = parameters.excitation.hidden;
    operands.set_gradient(dy, mask);
    operands.pass.g = operands.per_plane(g);
    Tensor dx = operands.make_map(x), dr = operands.make_dr(x, add);
    Tensor dp1 = per_sample<T>(x, hidden), h = per_sample<T>(x, hidden);
    Tensor dp2 = per_sample<T>(x, channels);
    block_backward(
        operands.shape, parameters.excitation, operands.pass, operands.per_plane(z),
        write<A>(dp1), write<A>(h), write<A>(dp2));
    return std::make_tuple(dx, dr, dp1, h, dp2);
  });
}

std::string cpu_capability() { return capability(); }

}  // namespace
}  // namespace se_fused::cpu

STABLE_TORCH_LIBRARY_IMPL(se_fused, CPU, m) {
  m.impl("reduce_forward.cpp", TORCH_BOX(&se_fused::cpu::reduce_forward));
  m.impl("apply_forward.cpp", TORCH_BOX(&se_fused::cpu::apply_forward));
  m.impl("reduce_backward.cpp", TORCH_BOX(&se_fused::cpu::reduce_backward));
  m.impl("apply_backward.cpp", TORCH_BOX(&se_fused::cpu::apply_backward));
  m.impl("squeeze_excite.cpp", TORCH_BOX(&se_fused::cpu::squeeze_excite));
  m.impl("squeeze_excite_backward.cpp", TORCH_BOX(&se_fused::cpu::squeeze_excite_backward));
}

STABLE_TORCH_LIBRARY_IMPL(se_fused, CompositeExplicitAutograd, m) {
  m.impl("cpu_capability", TORCH_BOX(&se_fused::cpu::cpu_capability));
}
