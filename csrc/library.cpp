// The Python module se_fused._C, and the operators that are defined here: schemas of all others stand in
// se_fused/ops.py, and their bodies are registered per device (cpu/ops.cpp, cuda/ops.cpp).
#include <Python.h>

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(se_fused, m) {
  m.def("cpu_capability() -> str");
  m.def("finds_cuda_stream() -> bool");
}

// `import se_fused._C` loads the library; there is nothing else in the module.
extern "C" PyMODINIT_FUNC PyInit__C(void) {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr};
  return PyModule_Create(&module);
}
