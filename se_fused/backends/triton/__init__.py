"""Triton: two launches forward, two backward; on CPU tensors through Triton's interpreter.

    reduce      z, and the excitation by the last program of a sample to finish; backward dg, dp1, …
    (between)   the excitation as torch matmuls, unless plan.excites_in_reduce
    apply       y = x · g, backward dx = dy · g + dz / M, in the reverse order
    max_reduce, max_apply      the same two where the maximum is in the squeeze: one launch each
                               function
    norm_reduce, norm_apply    and of a block with BatchNorm, residual and ReLU

No program waits for another. Sums have a fixed order: results are the same from run to run.
"""

from math import prod

import torch
from torch import Tensor

from se_fused.backends import reference
from se_fused.backends.reference import (  # noqa: F401  (a part of the contract)
    excite,
    excite_backward,
    mask_size,
    merge_moments,
    nothing,
)
from se_fused.backends.triton import launch, launch_max, launch_norm
from se_fused.memory_format import acc_dtype

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


def reduce_forward(x, center, scale, shift, act: str, statistic: str) -> Tensor:
    if x.numel() == 0:
        found = x.new_full((2, *x.shape[:2]), torch.nan, dtype=acc_dtype(x.dtype))
        return found[:1] if statistic == "mean" else torch.stack([found[0], found[1] * 0])
    if center is not None:
        return launch_norm.norm_squeeze(x, center, scale, shift, act)[None]
    if statistic == "mean":
        return launch.squeeze(x)[None]
    if statistic == "max":
        return torch.stack(launch_max.squeeze_max(x))
    return torch.stack(launch_norm.moments(x))


def apply_forward(
    x, residual, center, scale, shift, g, act: str, relu: bool
) -> tuple[Tensor, Tensor]:
    if x.numel() == 0:
        mask = x.new_empty(mask_size(x), dtype=torch.uint8) if relu else nothing(x, torch.uint8)
        return torch.empty_like(x), mask
    if residual is None and center is None and not relu:
        return launch.rescale(x, g), nothing(x, torch.uint8)
    y, mask = launch_norm.norm_rescale(x, residual, center, scale, shift, g, act, relu)
    return y, mask if relu else nothing(x, torch.uint8)


def reduce_backward(
    dy, x, mask, center, scale, shift, maximum, g, act: str
) -> tuple[Tensor, Tensor]:
    if x.numel() == 0 or (maximum is not None and mask is not None):
        return reference.reduce_backward(dy, x, mask, center, scale, shift, maximum, g, act)
    if g is not None:
        dx, dg = launch.rescale_backward(dy, x, g)
        return dg[None], dx
    if maximum is not None:
        return torch.stack(launch_max.gate_gradient_max(dy, x, maximum)), nothing(x)
    if center is None and mask is None:
        return launch.gate_gradient(dy, x)[None], nothing(x)
    sums = launch_norm.norm_sums(dy, x, mask, center, scale, shift, act)
    return sums if center is not None else sums[1:].contiguous(), nothing(x)


def apply_backward(
    dy, x, mask, center, scale, shift, g, grad_mean, maximum, grad_max, slope, offset,
    act: str, add: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    if x.numel() == 0 or (maximum is not None and (mask is not None or add)):
        return reference.apply_backward(
            dy, x, mask, center, scale, shift, g, grad_mean, maximum, grad_max, slope, offset,
            act, add,
        )  # fmt: skip
    grad_mean = torch.zeros_like(g) if grad_mean is None else grad_mean
    if maximum is not None:
        dx = launch_max.rescale_backward_max(dy, x, g, grad_mean, maximum, grad_max)
        return dx, nothing(x)
    dx, dr = launch_norm.norm_rescale_backward(
        dy, x, mask, center, scale, shift, g, grad_mean, slope, offset, act, add
    )
    return dx, dr if add else nothing(x)


def squeeze_excite(
    x, residual, w1, b1, w2, b2, act: str, gate: str, relu: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    w1, b1, w2, b2 = _matrix(w1), _vector(b1), _matrix(w2), _vector(b2)
    if x.numel() and launch.excites_in_reduce(x, w1):
        z, g = launch.squeeze_excite(x, w1, b1, w2, b2, act, gate)
    else:
        (z,) = reduce_forward(x, None, None, None, "identity", "mean")
        g = reference.gates(reference.first_layer(z, w1, b1), w2, b2, act, gate)
    y, mask = apply_forward(x, residual, None, None, None, g, "identity", relu)
    return y, mask, z, g


def squeeze_excite_backward(
    dy, x, mask, z, g, w1, b1, w2, b2, act: str, gate: str, add: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    w1, b1, w2 = _matrix(w1), _vector(b1), _matrix(w2)
    if x.numel() and mask is None and launch.excites_in_reduce(x, w1):
        dp1, h, dp2, grad_mean = launch.excitation_gradient(dy, x, z, g, w1, b1, w2, act, gate)
    else:
        (dg,), _ = reduce_backward(dy, x, mask, None, None, None, None, None, "identity")
        p1 = reference.first_layer(z, w1, b1, reference.product)
        dp1, h, dp2 = reference.excitation_gradient(dg, p1, g, w2, act, gate)
        grad_mean = reference.squeeze_gradient(dp1, w1) / prod(x.shape[2:])
    if mask is None and not add and x.numel():
        return launch.rescale(dy, g, grad_mean), nothing(x), dp1, h, dp2
    dx, dr = apply_backward(
        dy, x, mask, None, None, None, g, grad_mean, None, None, None, None, "identity", add
    )
    return dx, dr, dp1, h, dp2


def _matrix(weight: Tensor) -> Tensor:
    return weight.flatten(1).contiguous()


def _vector(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.contiguous()
