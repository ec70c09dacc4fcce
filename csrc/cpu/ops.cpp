// The CPU bodies of the operators of a block without BatchNorm.
#include <string>

#include "arguments.h"
#include "block.h"

namespace se_fused::cpu {
namespace {

// A parameter as a dense array of the accumulator type: its own memory, or a widened copy.
template <class T>
class Parameter {
  using A = acc_t<T>;

 public:
  Parameter(const OptionalTensor& t, int64_t count) {
    if (!t) return;
    const Tensor dense = t->is_contiguous() ? *t : (copy_ = torch::stable::contiguous(*t)).value();
    if (std::is_same_v<T, A> || dense.scalar_type() == dtype_of<A>) {
      data_ = read<A>(dense, count);
      return;
    }
    const T* narrow = read<T>(dense, count);
    widened_ = scratch<A>(count);
    parallel(count, count, [&](int64_t begin, int64_t end) {
      kernels<T>().widen(narrow + begin, widened_.get() + begin, end - begin);
    });
    data_ = widened_.get();
  }
  const A* data() const { return data_; }

 private:
  OptionalTensor copy_;
  std::unique_ptr<A[]> widened_;
  const A* data_ = nullptr;
};

template <class T>
struct Parameters {
  Parameter<T> w1, b1, w2, b2;
  Excitation<acc_t<T>> excitation;

  Parameters(
      const Tensor& w1, const OptionalTensor& b1, const Tensor& w2, const OptionalTensor& b2,
      int64_t channels, int64_t act, int64_t gate)
      : w1(w1, channels * w1.size(0)),
        b1(b1, w1.size(0)),
        w2(w2, channels * w1.size(0)),
        b2(b2, channels),
        excitation{channels, w1.size(0), this->w1.data(), this->b1.data(), this->w2.data(),
                   this->b2.data(), static_cast<Act>(act), static_cast<Gate>(gate)} {}
};

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
    const Parameters<T> p(w1, b1, w2, b2, s.channels, act, gate);
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
    const Parameters<T> p(w1, b1, w2, b2, s.channels, act, gate);
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
