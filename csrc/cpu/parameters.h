// The excitation's parameters on the CPU, in the accumulator type.
#pragma once

#include "arguments.h"

namespace se_fused::cpu {

// A parameter as a dense array of A: its own memory, or a widened copy.
template <class A>
class Parameter {
 public:
  Parameter(const OptionalTensor& t, int64_t count) {
    if (!t) return;
    const Tensor dense = t->is_contiguous() ? *t : (copy_ = torch::stable::contiguous(*t)).value();
    if (dense.scalar_type() == dtype_of<A>) {
      data_ = read<A>(dense, count);
      return;
    }
    with_type(dense, [&](auto type) {
      using T = decltype(type);
      if constexpr (std::is_same_v<acc_t<T>, A>) {
        const T* narrow = read<T>(dense, count);
        widened_ = scratch<A>(count);
        parallel(count, count, [&](int64_t begin, int64_t end) {
          kernels<T>().widen(narrow + begin, widened_.get() + begin, end - begin);
        });
        data_ = widened_.get();
      } else {
        STD_TORCH_CHECK(false, "se_fused: a parameter has the wrong dtype");
      }
    });
  }
  const A* data() const { return data_; }

 private:
  OptionalTensor copy_;
  std::unique_ptr<A[]> widened_;
  const A* data_ = nullptr;
};

template <class A>
struct Parameters {
  Parameter<A> w1, b1, w2, b2;
  Excitation<A> excitation;

  Parameters(
      const Tensor& w1, const OptionalTensor& b1, const Tensor& w2, const OptionalTensor& b2,
      int64_t channels, const std::string& act, const std::string& gate)
      : w1(w1, channels * w1.size(0)),
        b1(b1, w1.size(0)),
        w2(w2, channels * w1.size(0)),
        b2(b2, channels),
        excitation{channels, w1.size(0), this->w1.data(), this->b1.data(), this->w2.data(),
                   this->b2.data(), parse<Act>(act), parse<Gate>(gate)} {}
};

}  // namespace se_fused::cpu
