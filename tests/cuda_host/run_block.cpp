// Runs the CUDA launchers on the host, unchanged: one operator for each line of DIR/cases.txt,
//
//   name op type samples channels positions channels_last hidden act gate biases acc_weights
//   x_offset dy_offset multiprocessors l2_bytes seed order
//
// with the tensors x, dy, w1, b1, w2, b2, z, g, as many as the operator takes, one after another in
// DIR/name.in; what it returns goes to DIR/name.out. Every tensor is an allocation of its own, of
// exactly its size, x_offset and dy_offset elements from an aligned address.
#include <cstdio>
#include <fstream>
#include <iostream>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <vector>

#include "../../csrc/cuda/device.cuh"
#include "../../csrc/cuda/kernels.h"
#include "../../csrc/cuda/runtime.cuh"

namespace se_fused::cuda {

const Launches& launches_fp32();
const Launches& launches_bf16();
#if defined(CUDA_HOST_TWO_TYPES)
const Launches& launches_fp64() { throw std::runtime_error("fp64 was not built"); }
const Launches& launches_fp16() { throw std::runtime_error("fp16 was not built"); }
#else
const Launches& launches_fp64();
const Launches& launches_fp16();
#endif

namespace {

struct Case {
  std::string name, op, type;
  int64_t samples, channels, positions, channels_last, hidden, act, gate, biases, acc_weights;
  int64_t x_offset, dy_offset, multiprocessors, l2_bytes, seed, order;
};

bool read_line(std::istream& in, Case& c) {
  return static_cast<bool>(
      in >> c.name >> c.op >> c.type >> c.samples >> c.channels >> c.positions >>
      c.channels_last >> c.hidden >> c.act >> c.gate >> c.biases >> c.acc_weights >> c.x_offset >>
      c.dy_offset >> c.multiprocessors >> c.l2_bytes >> c.seed >> c.order);
}

// An allocation that ends with its last byte and begins `offset` bytes after an aligned address.
class Buffer {
 public:
  explicit Buffer(int64_t bytes, int64_t offset = 0)
      : bytes_(bytes), offset_(offset), memory_(new char[bytes + offset]) {
    std::memset(memory_.get(), 0xff, bytes + offset);
  }
  char* data() { return memory_.get() + offset_; }
  int64_t bytes() const { return bytes_; }

 private:
  int64_t bytes_, offset_;
  std::unique_ptr<char[]> memory_;
};

class Run {
 public:
  Run(const Case& c, const std::string& folder)
      : c_(c), in_(folder + "/" + c.name + ".in", std::ios::binary),
        out_(folder + "/" + c.name + ".out", std::ios::binary) {}

  void operator()() {
    const Type type = c_.type == "fp64" ? Type::fp64
        : c_.type == "fp32"             ? Type::fp32
        : c_.type == "bf16"             ? Type::bf16
                                        : Type::fp16;
    const Launches& launch = type == Type::fp64 ? launches_fp64()
        : type == Type::fp32                    ? launches_fp32()
        : type == Type::bf16                    ? launches_bf16()
                                                : launches_fp16();
    item_ = item_size(type);
    acc_ = type == Type::fp64 ? 8 : 4;
    host_device = {static_cast<int>(c_.multiprocessors), c_.l2_bytes};
    host_options.seed = static_cast<uint64_t>(c_.seed);
    host_options.order = static_cast<cuda_host::Order>(c_.order);
    Call call{};
    call.samples = c_.samples;
    call.channels = static_cast<int>(c_.channels);
    call.positions = c_.positions;
    call.channels_last = c_.channels_last;
    call.hidden = static_cast<int>(c_.hidden);
    call.act = static_cast<Act>(c_.act);
    call.gate = static_cast<Gate>(c_.gate);
    const bool block = c_.op == "squeeze_excite" || c_.op == "squeeze_excite_backward";
    const bool forward = c_.op == "squeeze" || c_.op == "rescale" || c_.op == "squeeze_excite";
    const int64_t map = c_.samples * c_.channels * c_.positions;
    const int64_t nc = c_.samples * c_.channels, nr = c_.samples * c_.hidden;

    call.x = input(map, item_, c_.x_offset);
    if (!forward) call.dy = input(map, item_, c_.dy_offset);
    if (block) {
      call.w1 = weight(c_.hidden * c_.channels);
      if (c_.biases) call.b1 = weight(c_.hidden);
      call.w2 = weight(c_.hidden * c_.channels);
      if (c_.biases) call.b2 = weight(c_.channels);
    }
    if (c_.op == "squeeze") {
      call.z = output(nc, acc_);
      reduce(launch, call, Summed::values, false);
    } else if (c_.op == "rescale") {
      call.g = input(nc, acc_, 0);
      call.y = output(map, item_);
      launch.rescale(call);
    } else if (c_.op == "gate_gradient") {
      call.dg = output(nc, acc_);
      reduce(launch, call, Summed::products, false);
    } else if (c_.op == "rescale_backward") {
      call.g = input(nc, acc_, 0);
      call.dx = output(map, item_);
      call.dg = output(nc, acc_);
      reduce(launch, call, Summed::products_rescaled, false);
    } else if (c_.op == "squeeze_excite") {
      call.y = output(map, item_);
      call.z = output(nc, acc_);
      call.g = output(nc, acc_);
      call.h = scratch(nr);
      reduce(launch, call, Summed::values, true);
      launch.rescale(call);
    } else {
      call.z = input(nc, acc_, 0);
      call.g = input(nc, acc_, 0);
      call.dx = output(map, item_);
      call.dp1 = output(nr, acc_);
      call.h = output(nr, acc_);
      call.dp2 = output(nc, acc_);
      call.dg = scratch(nc);
      call.grad_mean = scratch(nc);
      reduce(launch, call, Summed::products, true);
      launch.rescale(call);
    }
    for (Buffer* buffer : results_) out_.write(buffer->data(), buffer->bytes());
  }

 private:
  char* keep(int64_t count, int64_t size, int64_t offset) {
    buffers_.push_back(std::make_unique<Buffer>(count * size, offset * size));
    return buffers_.back()->data();
  }
  char* input(int64_t count, int64_t size, int64_t offset) {
    char* data = keep(count, size, offset);
    in_.read(data, count * size);
    if (!in_) throw std::runtime_error(c_.name + ": the input is too short");
    return data;
  }
  char* output(int64_t count, int64_t size) {
    char* data = keep(count, size, 0);
    results_.push_back(buffers_.back().get());
    return data;
  }
  char* scratch(int64_t count) { return keep(count, acc_, 0); }
  Weight weight(int64_t count) {
    return {input(count, c_.acc_weights ? acc_ : item_, 0), c_.acc_weights != 0};
  }

  void reduce(const Launches& launch, const Call& call, Summed summed, bool excites) {
    const Scratch needed = launch.scratch(call, summed, excites);
    Buffer slots(needed.slots * acc_), counters(needed.counters * 4);
    std::memset(counters.data(), 0, counters.bytes());
    launch.reduce(
        call, summed, excites, needed.slots ? slots.data() : nullptr,
        needed.counters ? counters.data() : nullptr);
  }

  const Case& c_;
  std::ifstream in_;
  std::ofstream out_;
  int64_t item_ = 0, acc_ = 0;
  std::vector<std::unique_ptr<Buffer>> buffers_;
  std::vector<Buffer*> results_;
};

}  // namespace
}  // namespace se_fused::cuda

int main(int, char** argv) {
  const std::string folder = argv[1];
  std::ifstream cases(folder + "/cases.txt");
  for (se_fused::cuda::Case c; read_line(cases, c);) {
    try {
      se_fused::cuda::Run(c, folder)();
    } catch (const std::exception& error) {
      std::cerr << c.name << ": " << error.what() << std::endl;
      return 1;
    }
  }
}
