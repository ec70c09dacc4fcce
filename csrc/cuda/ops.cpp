// The CUDA bodies of the operators: from tensors to pointers. Built where a CUDA toolkit is found.
// Every body: check → empty early-out → device guard → current stream → launch → launch check.
#include <dlfcn.h>

#include <torch/csrc/stable/accelerator.h>

#include "../tensors.h"
#include "kernels.h"

namespace se_fused::cuda {

const Launches& launches_fp64();
const Launches& launches_fp32();
const Launches& launches_bf16();
const Launches& launches_fp16();

const Launches& launches(Type type) {
  switch (type) {
    case Type::fp64: return launches_fp64();
    case Type::fp32: return launches_fp32();
    case Type::bf16: return launches_bf16();
    default: return launches_fp16();
  }
}

namespace {

using StreamGetter = AOTITorchError (*)(int32_t, void**);

// torch's function for the current stream of a device, null in a torch without CUDA. This library
// does not link torch's CUDA library, so that it loads without one; torch loads it without making
// its symbols global, so it is looked up by name.
StreamGetter stream_getter() {
  static const auto get = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    void* symbol = library ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr;
    return reinterpret_cast<StreamGetter>(symbol);
  }();
  return get;
}

bool finds_cuda_stream() { return stream_getter() != nullptr; }

void* current_stream(int32_t device) {
  STD_TORCH_CHECK(finds_cuda_stream(), "se_fused: this torch has no CUDA streams");
  void* stream = nullptr;
  SE_FUSED_TORCH_CHECK(stream_getter()(device, &stream));
  return stream;
}

Type type_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Double: return Type::fp64;
    case ScalarType::Float: return Type::fp32;
    case ScalarType::BFloat16: return Type::bf16;
    case ScalarType::Half: return Type::fp16;
    default: STD_TORCH_CHECK(false, "x must be float64, float32, bfloat16 or float16");
  }
}

// One operator call: its tensors checked and turned to pointers, and what it launches.
class Operation {
 public:
  explicit Operation(const Tensor& x) : x_(x), acc_(accumulator_dtype(x)), type_(type_of(x)) {
    STD_TORCH_CHECK(x.is_cuda() && x.dim() >= 2, "x must be a CUDA tensor [N, C, *spatial]");
    call.samples = x.size(0);
    call.positions = positions_of(x);
    STD_TORCH_CHECK(
        x.size(1) < INT32_MAX && call.positions < INT32_MAX,
        "se_fused: more than 2^31 channels or positions");
    call.channels = static_cast<int>(x.size(1));
    call.channels_last = !x.is_contiguous() || call.positions == 1;
    call.x = x.const_data_ptr();
  }

  bool empty() const { return x_.numel() == 0; }

  Tensor map() const { return empty_map(x_); }
  Tensor per_sample(int64_t width) const { return empty_per_sample(x_, width, acc_); }
  Tensor per_plane() const { return empty_per_plane(x_, 1, acc_); }

  const void* map_like_x(const Tensor& t) const {
    return checked(t, x_.numel(), x_.scalar_type());
  }
  // A state that an earlier operator gave out; the kernels only read it.
  void* state(const Tensor& t, int64_t width) const {
    return const_cast<void*>(checked(t, x_.size(0) * width, acc_));
  }

  void set_weights(
      const Tensor& w1, const OptionalTensor& b1, const Tensor& w2, const OptionalTensor& b2,
      const std::string& act, const std::string& gate) {
    const int64_t channels = x_.size(1), hidden = w1.size(0);
    call.w1 = weight(w1, channels * hidden);
    call.b1 = weight(b1, hidden);
    call.w2 = weight(w2, channels * hidden);
    call.b2 = weight(b2, channels);
    call.hidden = static_cast<int>(hidden);
    call.act = parse<Act>(act);
    call.gate = parse<Gate>(gate);
  }

  // Sums, then the rescale where there is an output for it.
  void run(Summed summed, bool excites, bool rescales) {
    const torch::stable::accelerator::DeviceGuard guard(x_.get_device_index());
    call.stream = current_stream(x_.get_device_index());
    const Launches& launch = launches(type_);
    const Scratch scratch = launch.scratch(call, summed, excites);
    if (scratch.slots == 0) {
      launch.reduce(call, summed, excites, nullptr, nullptr);
    } else {
      const int64_t one = 1;
      const Tensor slots = empty_beside(x_, &scratch.slots, &one, 1, acc_);
      Tensor counters = empty_beside(x_, &scratch.counters, &one, 1, ScalarType::Int);
      torch::stable::zero_(counters);
      launch.reduce(
          call, summed, excites, slots.mutable_data_ptr(), counters.mutable_data_ptr());
    }
    if (rescales) launch.rescale(call);
  }

  void rescale() {
    const torch::stable::accelerator::DeviceGuard guard(x_.get_device_index());
    call.stream = current_stream(x_.get_device_index());
    launches(type_).rescale(call);
  }

  Call call{};

 private:
  const void* checked(const Tensor& t, int64_t count, ScalarType dtype) const {
    STD_TORCH_CHECK(
        t.is_cuda() && t.get_device_index() == x_.get_device_index() && t.numel() == count &&
            t.scalar_type() == dtype,
        "se_fused: a tensor has the wrong device, size or dtype");
    return t.const_data_ptr();
  }

  Weight weight(const OptionalTensor& t, int64_t count) {
    if (!t) return {nullptr, false};
    const bool is_acc = t->scalar_type() == acc_;
    const Tensor dense = t->is_contiguous() ? *t : torch::stable::contiguous(*t);
    kept_.push_back(dense);
    return {checked(dense, count, is_acc ? acc_ : x_.scalar_type()), is_acc};
  }

  const Tensor& x_;
  ScalarType acc_;
  Type type_;
  std::vector<Tensor> kept_;  // copies of weights, until the launches are queued
};

// Whatever else a block may have is PyTorch's on a GPU: se_fused/backends/cpp.py.
void check_plain(std::initializer_list<const OptionalTensor*> parts, bool flag = false) {
  for (const OptionalTensor* part : parts) flag = flag || part->has_value();
  STD_TORCH_CHECK(!flag, "se_fused: a part that has no CUDA C++ kernel");
}

Tensor reduce_forward(
    const Tensor& x, const OptionalTensor& center, const OptionalTensor& scale,
    const OptionalTensor& shift, const std::string&, const std::string& statistic) {
  check_plain({&center, &scale, &shift}, statistic != "mean");
  Operation op(x);
  Tensor z = op.per_plane();
  if (op.empty()) return torch::stable::fill_(z, NAN);
  op.call.z = z.mutable_data_ptr();
  op.run(Summed::values, false, false);
  return z;
}

std::tuple<Tensor, Tensor> apply_forward(
    const Tensor& x, const OptionalTensor& residual, const OptionalTensor& center,
    const OptionalTensor& scale, const OptionalTensor& shift, const Tensor& g, const std::string&,
    bool relu) {
  check_plain({&residual, &center, &scale, &shift}, relu);
  Operation op(x);
  Tensor y = op.map(), mask = nothing(x, ScalarType::Byte);
  if (op.empty()) return {y, mask};
  op.call.g = op.state(g, x.size(1));
  op.call.y = y.mutable_data_ptr();
  op.rescale();
  return {y, mask};
}

std::tuple<Tensor, Tensor> reduce_backward(
    const Tensor& dy, const Tensor& x, const OptionalTensor& mask, const OptionalTensor& center,
    const OptionalTensor& scale, const OptionalTensor& shift, const OptionalTensor& maximum,
    const OptionalTensor& g, const std::string&) {
  check_plain({&mask, &center, &scale, &shift, &maximum});
  Operation op(x);
  Tensor dg = op.per_plane(), dx = g ? op.map() : nothing(x, x.scalar_type());
  if (op.empty()) return {torch::stable::zero_(dg), dx};
  op.call.dy = op.map_like_x(dy);
  op.call.dg = dg.mutable_data_ptr();
  if (g) {
    op.call.g = op.state(*g, x.size(1));
    op.call.dx = dx.mutable_data_ptr();
  }
  op.run(g ? Summed::products_rescaled : Summed::products, false, false);
  return {dg, dx};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> squeeze_excite(
    const Tensor& x, const OptionalTensor& residual, const Tensor& w1, const OptionalTensor& b1,
    const Tensor& w2, const OptionalTensor& b2, const std::string& act, const std::string& gate,
    bool relu) {
  check_plain({&residual}, relu);
  Operation op(x);
  op.set_weights(w1, b1, w2, b2, act, gate);
  Tensor y = op.map(), z = op.per_sample(x.size(1)), g = op.per_sample(x.size(1));
  Tensor mask = nothing(x, ScalarType::Byte);
  if (op.empty()) return {y, mask, torch::stable::fill_(z, NAN), torch::stable::fill_(g, NAN)};
  const Tensor h = op.per_sample(w1.size(0));
  op.call.y = y.mutable_data_ptr();
  op.call.z = z.mutable_data_ptr();
  op.call.g = g.mutable_data_ptr();
  op.call.h = h.mutable_data_ptr();
  op.run(Summed::values, true, true);
  return {y, mask, z, g};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> squeeze_excite_backward(
    const Tensor& dy, const Tensor& x, const OptionalTensor& mask, const Tensor& z, const Tensor& g,
    const Tensor& w1, const OptionalTensor& b1, const Tensor& w2, const OptionalTensor& b2,
    const std::string& act, const std::string& gate, bool add) {
  check_plain({&mask}, add);
  Operation op(x);
  op.set_weights(w1, b1, w2, b2, act, gate);
  const int64_t channels = x.size(1), hidden = w1.size(0);
  Tensor dx = op.map(), dp1 = op.per_sample(hidden), h = op.per_sample(hidden);
  Tensor dp2 = op.per_sample(channels), dr = nothing(x, x.scalar_type());
  if (op.empty()) {
    torch::stable::zero_(dp1);
    torch::stable::zero_(h);
    return {dx, dr, dp1, h, torch::stable::zero_(dp2)};
  }
  const Tensor dg = op.per_sample(channels), grad_mean = op.per_sample(channels);
  op.call.dy = op.map_like_x(dy);
  op.call.z = op.state(z, channels);
  op.call.g = op.state(g, channels);
  op.call.dx = dx.mutable_data_ptr();
  op.call.dp1 = dp1.mutable_data_ptr();
  op.call.h = h.mutable_data_ptr();
  op.call.dp2 = dp2.mutable_data_ptr();
  op.call.dg = dg.mutable_data_ptr();
  op.call.grad_mean = grad_mean.mutable_data_ptr();
  op.run(Summed::products, true, true);
  return {dx, dr, dp1, h, dp2};
}

}  // namespace
}  // namespace se_fused::cuda

STABLE_TORCH_LIBRARY_IMPL(se_fused, CompositeExplicitAutograd, m) {
  m.impl("finds_cuda_stream", TORCH_BOX(&se_fused::cuda::finds_cuda_stream));
}

STABLE_TORCH_LIBRARY_IMPL(se_fused, CUDA, m) {
  m.impl("reduce_forward.cpp", TORCH_BOX(&se_fused::cuda::reduce_forward));
  m.impl("apply_forward.cpp", TORCH_BOX(&se_fused::cuda::apply_forward));
  m.impl("reduce_backward.cpp", TORCH_BOX(&se_fused::cuda::reduce_backward));
  m.impl("squeeze_excite.cpp", TORCH_BOX(&se_fused::cuda::squeeze_excite));
  m.impl("squeeze_excite_backward.cpp", TORCH_BOX(&se_fused::cuda::squeeze_excite_backward));
}
