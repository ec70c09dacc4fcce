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
# Between the passes: called for CPU tensors alone.
merge_moments = _ops.merge_moments.cpp
excite = _ops.excite.cpp
excite_backward = _ops.excite_backward.cpp


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


def reduce_forward(x, center, scale, shift, act: str, statistic: str) -> Tensor:
    compiled = x.is_cpu or (center is None and statistic == "mean")
    run = _ops.reduce_forward.cpp if compiled else reference.reduce_forward
    return run(x, center, scale, shift, act, statistic)


def apply_forward(
    x, residual, center, scale, shift, g, act: str, relu: bool
) -> tuple[Tensor, Tensor]:
    compiled = x.is_cpu or (residual is None and center is None and not relu)
    run = _ops.apply_forward.cpp if compiled else reference.apply_forward
    return run(x, residual, center, scale, shift, g, act, relu)


def reduce_backward(
    dy, x, mask, center, scale, shift, maximum, g, act: str
) -> tuple[Tensor, Tensor]:
    compiled = x.is_cpu or (mask is None and center is None and maximum is None)
    run = _ops.reduce_backward.cpp if compiled else reference.reduce_backward
    return run(dy, x, mask, center, scale, shift, maximum, g, act)


def apply_backward(dy, x, mask, *parts) -> tuple[Tensor, Tensor]:
    run = _ops.apply_backward.cpp if x.is_cpu else reference.apply_backward
    return run(dy, x, mask, *parts)


def squeeze_excite(
    x, residual, w1, b1, w2, b2, act: str, gate: str, relu: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    compiled = x.is_cpu or (residual is None and not relu)
    run = _ops.squeeze_excite.cpp if compiled else reference.squeeze_excite
    return run(x, residual, w1, b1, w2, b2, act, gate, relu)


def squeeze_excite_backward(
    dy, x, mask, z, g, w1, b1, w2, b2, act: str, gate: str, add: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    compiled = x.is_cpu or (mask is None and not add)
    run = _ops.squeeze_excite_backward.cpp if compiled else reference.squeeze_excite_backward
    return run(dy, x, mask, z, g, w1, b1, w2, b2, act, gate, add)
