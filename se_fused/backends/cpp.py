"""The compiled extension ``se_fused._C``: C++ for CPU tensors, CUDA C++ for CUDA tensors."""

import torch
from torch import Tensor

import se_fused._C  # noqa: F401  (loading it registers torch.ops.se_fused_cpp)
from se_fused import fakes
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
