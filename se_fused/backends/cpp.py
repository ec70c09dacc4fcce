"""The compiled extension ``se_fused._C``: C++ for CPU tensors."""

import torch
from torch import Tensor

import se_fused._C  # noqa: F401  (loading it registers torch.ops.se_fused_cpp)
from se_fused import fakes
from se_fused.activations import ACTS, GATES

_ops = torch.ops.se_fused_cpp
fakes.register("se_fused_cpp")
OPERATORS = True

_ACT_CODES = {name: code for code, name in enumerate(ACTS)}
_GATE_CODES = {name: code for code, name in enumerate(GATES)}

squeeze = _ops.squeeze.default
rescale = _ops.rescale.default
rescale_backward = _ops.rescale_backward.default
cpu_capability = _ops.cpu_capability.default


def unavailable(device: torch.device) -> str | None:
    if device.type != "cpu":
        return f"it has no {device.type} kernels yet"
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
