"""Triton: two launches forward, two backward; on CPU tensors through Triton's interpreter.

    reduce      statistics and sums, and the excitation by a sample's last program to finish
    (between)   the excitation in PyTorch, unless plan.excites_in_reduce
    apply       y and dx, in the reverse order

No program waits for another. Sums have a fixed order: results are the same from run to run.
"""

from math import prod

import torch
from torch import Tensor

from se_fused.backends import reference
from se_fused.backends.reference import nothing
from se_fused.backends.triton import launch

_MIN_CAPABILITY = (7, 5)

OPERATORS = False

merge_moments = reference.merge_moments
excite = reference.excite
excite_backward = reference.excite_backward


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


# Of an empty map nothing is launched: the reference has its results.


def reduce_forward(x, center, scale, shift, act: str, statistic: str) -> Tensor:
    if x.numel() == 0:
        return reference.reduce_forward(x, center, scale, shift, act, statistic)
    if statistic == "moments":
        return launch.reduce_moments(x)
    return launch.reduce_forward(x, (center, scale, shift), act, statistic)[0]


def apply_forward(
    x, residual, center, scale, shift, g, act: str, relu: bool
) -> tuple[Tensor, Tensor]:
    if x.numel() == 0:
        return reference.apply_forward(x, residual, center, scale, shift, g, act, relu)
    return launch.apply_forward(x, residual, (center, scale, shift), g, act, relu)


def reduce_backward(
    dy, x, mask, center, scale, shift, maximum, g, act: str
) -> tuple[Tensor, Tensor]:
    if x.numel() == 0:
        return reference.reduce_backward(dy, x, mask, center, scale, shift, maximum, g, act)
    sums, dx = launch.reduce_backward(dy, x, mask, (center, scale, shift), maximum, g, act)
    return sums, nothing(x) if dx is None else dx


def apply_backward(
    dy, x, mask, center, scale, shift, g, grad_mean, maximum, grad_max, slope, offset,
    act: str, add: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    rest = g, grad_mean, maximum, grad_max, slope, offset, act, add
    if x.numel() == 0:
        return reference.apply_backward(dy, x, mask, center, scale, shift, *rest)
    return launch.apply_backward(dy, x, mask, (center, scale, shift), *rest)


def squeeze_excite(
    x, residual, w1, b1, w2, b2, act: str, gate: str, relu: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    w1, b1, w2, b2 = _matrix(w1), _vector(b1), _matrix(w2), _vector(b2)
    if x.numel() and launch.excites_in_reduce(x, w1):
        weights = w1, b1, w2, b2
        (z,), g = launch.reduce_forward(
            x, launch.NO_NORM, "identity", "mean", weights, act, gate
        )
    else:
        (z,) = reduce_forward(x, None, None, None, "identity", "mean")
        g = reference.gates(reference.first_layer(z, w1, b1), w2, b2, act, gate)
    return *apply_forward(x, residual, None, None, None, g, "identity", relu), z, g


def squeeze_excite_backward(
    dy, x, mask, z, g, w1, b1, w2, b2, act: str, gate: str, add: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    w1, b1, w2 = _matrix(w1), _vector(b1), _matrix(w2)
    if x.numel() and launch.excites_in_reduce(x, w1, "mean" if mask is None else "norm"):
        dp1, h, dp2, grad_mean = launch.excitation_gradient(
            dy, x, mask, z, g, w1, b1, w2, act, gate
        )
    else:
        sums, _ = reduce_backward(dy, x, mask, None, None, None, None, None, "identity")
        p1 = reference.first_layer(z, w1, b1, reference.product)
        dp1, h, dp2 = reference.excitation_gradient(sums[0], p1, g, w2, act, gate)
        grad_mean = reference.squeeze_gradient(dp1, w1) / prod(x.shape[2:])
    dx, dr = apply_backward(
        dy, x, mask, None, None, None, g, grad_mean, None, None, None, None, "identity", add
    )
    return dx, dr, dp1, h, dp2


def _matrix(weight: Tensor) -> Tensor:
    return weight.flatten(1).contiguous()


def _vector(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.contiguous()
