// The extension's operators, torch.ops.se_fused_cpp.*: every schema stands here. Bodies are
// registered per device (cpu/ops.cpp); se_fused/backends/cpp.py calls them.
#include <Python.h>

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(se_fused_cpp, m) {
  m.def("squeeze(Tensor x) -> Tensor");
  m.def("rescale(Tensor x, Tensor g) -> Tensor");
  m.def("gate_gradient(Tensor dy, Tensor x) -> Tensor");
  m.def("rescale_backward(Tensor dy, Tensor x, Tensor g) -> (Tensor, Tensor)");
  m.def(
      "squeeze_excite(Tensor x, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, int act, int gate)"
      " -> (Tensor, Tensor, Tensor)");
  m.def(
      "squeeze_excite_backward(Tensor dy, Tensor x, Tensor z, Tensor g, Tensor w1, Tensor? b1,"
      " Tensor w2, Tensor? b2, int act, int gate) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("squeeze_max(Tensor x) -> (Tensor, Tensor)");
  m.def("gate_gradient_max(Tensor dy, Tensor x, Tensor m) -> (Tensor, Tensor)");
  m.def(
      "rescale_backward_max(Tensor dy, Tensor x, Tensor g, Tensor share, Tensor m, Tensor peak)"
      " -> Tensor");
  m.def("moments(Tensor x) -> (Tensor, Tensor)");
  m.def(
      "norm_squeeze(Tensor x, Tensor? center, Tensor? scale, Tensor? shift, int act) -> Tensor");
  m.def(
      "norm_rescale(Tensor x, Tensor? residual, Tensor? center, Tensor? scale, Tensor? shift,"
      " Tensor g, int act, bool relu) -> (Tensor, Tensor)");
  m.def(
      "norm_sums(Tensor dy, Tensor x, Tensor? mask, Tensor? center, Tensor? scale, Tensor? shift,"
      " int act) -> Tensor");
  m.def(
      "norm_rescale_backward(Tensor dy, Tensor x, Tensor? mask, Tensor? center, Tensor? scale,"
      " Tensor? shift, Tensor g, Tensor share, Tensor? slope, Tensor? offset, int act, bool add)"
      " -> (Tensor, Tensor)");
  m.def("merge_moments(Tensor planes, Tensor m2, int positions) -> (Tensor, Tensor)");
  m.def(
      "norm_excite(Tensor planes, Tensor? center, Tensor? scale, Tensor? shift, Tensor w1,"
      " Tensor? b1, Tensor w2, Tensor? b2, int act, int gate) -> (Tensor, Tensor, Tensor)");
  m.def(
      "norm_excite_backward(Tensor sums, Tensor planes, Tensor? center, Tensor? scale,"
      " Tensor? shift, Tensor p1, Tensor g, Tensor w1, Tensor w2, int act, int gate,"
      " int positions) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("cpu_capability() -> str");
  m.def("finds_cuda_stream() -> bool");
}

// `import se_fused._C` loads the library; there is nothing else in the module.
extern "C" PyMODINIT_FUNC PyInit__C(void) {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr};
  return PyModule_Create(&module);
}
