"""The compiled extension ``se_fused._C``: C++ for CPU tensors, CUDA C++ for CUDA tensors."""

import torch
from torch import Tensor

import se_fused._C  # noqa: F401  (loading it registers torch.ops.se_fused_cpp)
from se_fused import between, fakes, max_passes, passes
from se_fused.activations import ACTS, GATES

_ops = torch.ops.se_fused_cpp
fakes.register("se_fused_cpp")
OPERATORS = True
_MIN_CAPABILITY = (7, 5)

_ACT_CODES = {name: code for code, name in enumerate(ACTS)}
_GATE_CODES = {name: code for code, name in enumerate(GATES)}

squeeze = _ops.squeeze.default
rescale = _ops.rescale.default
gate_gradient = _ops.gate_gradient.default
rescale_backward = _ops.rescale_backward.default
cpu_capability = _ops.cpu_capability.default


def unavailable(device: torch.device) -> str | None:
    if device.type == "cpu":
        return None
    if device.type != "cuda":
        return f"it has no {device.type} kernels"
    if not torch._C._dispatch_has_kernel_for_dispatch_key("se_fused_cpp::squeeze", "CUDA"):
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


def squeeze_excite(x, w1, b1, w2, b2, act: str, gate: str) -> tuple[Tensor, Tensor, Tensor]:
    return _ops.squeeze_excite.default(
        x, w1, b1, w2, b2, _ACT_CODES[act], _GATE_CODES[gate]
    )


def squeeze_excite_backward(
    dy, x, z, g, w1, b1, w2, b2, act: str, gate: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _ops.squeeze_excite_backward.default(
        dy, x, z, g, w1, b1, w2, b2, _ACT_CODES[act], _GATE_CODES[gate]
    )


# The passes of a squeeze with the maximum in it have kernels for the CPU; on a GPU they are
# PyTorch's.


def squeeze_max(x: Tensor) -> tuple[Tensor, Tensor]:
    return _ops.squeeze_max.default(x) if x.is_cpu else max_passes.squeeze_max(x)


def gate_gradient_max(dy: Tensor, x: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
    if not x.is_cpu:
        return max_passes.gate_gradient_max(dy, x, m)
    return _ops.gate_gradient_max.default(dy, x, m)


def rescale_backward_max(dy, x, g, share, m, peak) -> Tensor:
    if not x.is_cpu:
        return max_passes.rescale_backward_max(dy, x, g, share, m, peak)
    return _ops.rescale_backward_max.default(dy, x, g, share, m, peak)


# The passes of a block with BatchNorm have kernels for the CPU; on a GPU they are PyTorch's.


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    return _ops.moments.default(x) if x.is_cpu else passes.moments(x)


def norm_squeeze(x, center, scale, shift, act: str) -> Tensor:
    if not x.is_cpu:
        return passes.norm_squeeze(x, center, scale, shift, act)
    return _ops.norm_squeeze.default(x, center, scale, shift, _ACT_CODES[act])


def norm_rescale(
    x, residual, center, scale, shift, g, act: str, relu: bool
) -> tuple[Tensor, Tensor]:
    if not x.is_cpu:
        return passes.norm_rescale(x, residual, center, scale, shift, g, act, relu)
    return _ops.norm_rescale.default(
        x, residual, center, scale, shift, g, _ACT_CODES[act], relu
    )


def norm_sums(dy, x, mask, center, scale, shift, act: str) -> Tensor:
    if not x.is_cpu:
        return passes.norm_sums(dy, x, mask, center, scale, shift, act)
    return _ops.norm_sums.default(dy, x, mask, center, scale, shift, _ACT_CODES[act])


def norm_rescale_backward(
    dy, x, mask, center, scale, shift, g, share, slope, offset, act: str, add: bool
) -> tuple[Tensor, Tensor]:
    arguments = dy, x, mask, center, scale, shift, g, share, slope, offset
    if not x.is_cpu:
        return passes.norm_rescale_backward(*arguments, act, add)
    return _ops.norm_rescale_backward.default(*arguments, _ACT_CODES[act], add)


# What lies between these passes: kernels for the CPU, too.


def merge_moments(planes: Tensor, m2: Tensor, positions: int) -> tuple[Tensor, Tensor]:
    if not planes.is_cpu:
        return between.merge_moments(planes, m2, positions)
    return _ops.merge_moments.default(planes, m2, positions)


def norm_excite(
    planes, center, scale, shift, w1, b1, w2, b2, act: str, gate: str
) -> tuple[Tensor, Tensor, Tensor]:
    arguments = planes, center, scale, shift, w1, b1, w2, b2
    if not planes.is_cpu:
        return between.norm_excite(*arguments, act, gate)
    return _ops.norm_excite.default(*arguments, _ACT_CODES[act], _GATE_CODES[gate])


def norm_excite_backward(
    sums, planes, center, scale, shift, p1, g, w1, w2, act: str, gate: str, positions: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    arguments = sums, planes, center, scale, shift, p1, g, w1, w2
    if not planes.is_cpu:
        return between.norm_excite_backward(*arguments, act, gate, positions)
    return _ops.norm_excite_backward.default(
        *arguments, _ACT_CODES[act], _GATE_CODES[gate], positions
    )
