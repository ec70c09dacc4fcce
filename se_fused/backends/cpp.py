"""The compiled extension ``se_fused._C``: C++ for CPU tensors, CUDA C++ for CUDA tensors.

Its functions are the overloads ``cpp`` of the operators, whose schemas stand in
``se_fused/ops.py``. On a GPU it has plain SE; other passes are the reference's there.
"""

import torch
from torch import Tensor

import se_fused._C  # noqa: F401  (loading it registers the overloads)
from se_fused.backends import reference

_ops = torch.ops.se_fused
OPERATORS = True
_MIN_CAPABILITY = (7, 5)

cpu_capability = _ops.cpu_capability.default
# What plain SE has not, and no CUDA kernel.
_PARTS = ("residual", "mask", "center", "maximum", "relu", "add", "statistic")


def unavailable(device: torch.device) -> str | None:
    if device.type == "cpu":
        return None
    if device.type != "cuda":
        return f"it has no {device.type} kernels"
    if not torch._C._dispatch_has_kernel_for_dispatch_key("se_fused::squeeze_excite.cpp", "CUDA"):
        return "the extension was built without CUDA: no toolkit was found, or SE_FUSED_CUDA=0"
    if torch.version.hip is not None:
        return "it has no kernels for ROCm"
    if not torch.cuda.is_available():
        return "torch.cuda.is_available() is False"
    if torch.cuda.get_device_capability(device) < _MIN_CAPABILITY:
        return "compute capability 7.5 or higher is needed"
    if not _ops.finds_cuda_stream.default():
        return "torch's CUDA library does not say which stream is current"
    return None


def __getattr__(name: str):
    """The function of the operator of that name, made when it is first asked for."""
    run, elsewhere = getattr(_ops, name).cpp, getattr(reference, name)
    arguments = [argument.name for argument in run._schema.arguments]
    parts = [arguments.index(part) for part in _PARTS if part in arguments]
    has_cuda = torch._C._dispatch_has_kernel_for_dispatch_key(f"se_fused::{name}.cpp", "CUDA")

    def function(*args):
        if args[0].is_cpu or (has_cuda and all(_is_absent(args[index]) for index in parts)):
            return run(*args)
        return elsewhere(*args)

    globals()[name] = function
    return function


def _is_absent(part) -> bool:
    return not isinstance(part, Tensor) and part in (None, False, "mean")
