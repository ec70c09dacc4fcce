"""Triton: two launches forward, two backward; on CPU tensors through Triton's interpreter.

    reduce      z, and the excitation by the last program of a sample to finish; backward dg, dp1, …
    (between)   the excitation as torch matmuls, unless plan.excites_in_reduce
    apply       y = x · g, backward dx = dy · g + dz / M, in the reverse order
    max_reduce, max_apply      the same two where the maximum is in the squeeze: one launch each
                               function
    norm_reduce, norm_apply    and of a block with BatchNorm, residual and ReLU

No program waits for another. Sums have a fixed order: results are the same from run to run.
"""

import torch
from torch import Tensor

from se_fused.backends.triton import launch, launch_max, launch_norm
from se_fused.between import (  # noqa: F401  (a part of the contract)
    merge_moments,
    norm_excite,
    norm_excite_backward,
)
from se_fused.excitation import excitation_gradient, excite, squeeze_gradient
from se_fused.memory_format import acc_dtype
from se_fused.passes import mask_size

_MIN_CAPABILITY = (7, 5)

OPERATORS = False


def unavailable(device: torch.device) -> str | None:
    if device.type not in ("cuda", "cpu"):
        return f"no kernels for {device.type} tensors"
    if launch.INTERPRETED:
        return None
    if device.type == "cpu":
        return "CPU tensors need TRITON_INTERPRET=1"
    if not torch.cuda.is_available():
        return "torch.cuda.is_available() is False"
    capability = torch.cuda.get_device_capability(device)
    if torch.version.hip is None and capability < _MIN_CAPABILITY:
        return f"compute capability {capability[0]}.{capability[1]}, 7.5 or higher is needed"
    return None


def squeeze(x: Tensor) -> Tensor:
    if x.numel() == 0:
        return _per_channel(x, torch.nan)
    return launch.squeeze(x)


def rescale(x: Tensor, g: Tensor) -> Tensor:
    return _apply(x, g)


def gate_gradient(dy: Tensor, x: Tensor) -> Tensor:
    return launch.gate_gradient(dy, x) if x.numel() else _per_channel(x, 0)


def rescale_backward(dy: Tensor, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    if x.numel() == 0:
        return torch.empty_like(x), _per_channel(x, 0)
    return launch.rescale_backward(dy, x, g)


def squeeze_excite(x, w1, b1, w2, b2, act: str, gate: str) -> tuple[Tensor, Tensor, Tensor]:
    w1, b1, w2, b2 = _matrix(w1), _vector(b1), _matrix(w2), _vector(b2)
    if x.numel() and launch.excites_in_reduce(x, w1):
        z, g = launch.squeeze_excite(x, w1, b1, w2, b2, act, gate)
    else:
        z = squeeze(x)
        g = excite(z, w1, b1, w2, b2, act, gate)
    return _apply(x, g), z, g


def squeeze_excite_backward(
    dy, x, z, g, w1, b1, w2, b2, act: str, gate: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    w1, b1, w2 = _matrix(w1), _vector(b1), _matrix(w2)
    if x.numel() and launch.excites_in_reduce(x, w1):
        dp1, h, dp2, share = launch.excitation_gradient(dy, x, z, g, w1, b1, w2, act, gate)
    else:
        dg = gate_gradient(dy, x)
        dp1, h, dp2 = excitation_gradient(dg, z, g, w1, b1, w2, act, gate)
        share = squeeze_gradient(dp1, w1) / x.shape[2:].numel()
    return _apply(dy, g, share), dp1, h, dp2


def squeeze_max(x: Tensor) -> tuple[Tensor, Tensor]:
    if x.numel() == 0:
        return _per_channel(x, 0), _per_channel(x, 0)
    return launch_max.squeeze_max(x)


def gate_gradient_max(dy: Tensor, x: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
    if x.numel() == 0:
        return _per_channel(x, 0), _per_channel(x, 0)
    return launch_max.gate_gradient_max(dy, x, m)


def rescale_backward_max(dy, x, g, share, m, peak) -> Tensor:
    if x.numel() == 0:
        return torch.empty_like(x)
    return launch_max.rescale_backward_max(dy, x, g, share, m, peak)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    if x.numel() == 0:
        return _per_channel(x, torch.nan), _per_channel(x, 0)
    return launch_norm.moments(x)


def norm_squeeze(x, center, scale, shift, act: str) -> Tensor:
    if x.numel() == 0:
        return _per_channel(x, torch.nan)
    return launch_norm.norm_squeeze(x, center, scale, shift, act)


def norm_rescale(
    x, residual, center, scale, shift, g, act: str, relu: bool
) -> tuple[Tensor, Tensor]:
    if x.numel() == 0:
        size = mask_size(x) if relu else 0
        return torch.empty_like(x), x.new_empty(size, dtype=torch.uint8)
    y, mask = launch_norm.norm_rescale(x, residual, center, scale, shift, g, act, relu)
    return y, mask if relu else x.new_empty(0, dtype=torch.uint8)


def norm_sums(dy, x, mask, center, scale, shift, act: str) -> Tensor:
    if x.numel() == 0:
        count = 2 if act == "identity" else 5
        return x.new_zeros((count, *x.shape[:2]), dtype=acc_dtype(x.dtype))
    return launch_norm.norm_sums(dy, x, mask, center, scale, shift, act)


def norm_rescale_backward(
    dy, x, mask, center, scale, shift, g, share, slope, offset, act: str, add: bool
) -> tuple[Tensor, Tensor]:
    if x.numel() == 0:
        return torch.empty_like(x), torch.empty_like(x) if add else x.new_empty(0)
    dx, dr = launch_norm.norm_rescale_backward(
        dy, x, mask, center, scale, shift, g, share, slope, offset, act, add
    )
    return dx, dr if add else x.new_empty(0)


def _apply(x: Tensor, g: Tensor, share: Tensor | None = None) -> Tensor:
    return launch.rescale(x, g, share) if x.numel() else torch.empty_like(x)


def _per_channel(x: Tensor, value: float) -> Tensor:
    return x.new_full(x.shape[:2], value, dtype=acc_dtype(x.dtype))


def _matrix(weight: Tensor) -> Tensor:
    return weight.flatten(1).contiguous()


def _vector(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.contiguous()
