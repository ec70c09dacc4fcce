"""Plain PyTorch on any device: the specification of the other backends, and their oracle in fp64.

Letters and formulas in README.md beside it. What autograd differentiates twice, and torch.func and
exporters take apart, runs on the functions that are differentiable: ``squeeze_excite_map``,
``squeeze`` and ``rescale``.
"""

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from se_fused.activations import FUNCTIONS, act_derivative, gate_derivative
from se_fused.memory_format import (
    acc_dtype,
    broadcast_spatial,
    flatten_spatial,
    pack,
    unpack,
)

OPERATORS = False


def unavailable(device: torch.device) -> str | None:
    return None


# Four passes over the map


def reduce_forward(x, center, scale, shift, act: str, statistic: str) -> Tensor:
    if center is not None:
        v = FUNCTIONS[act](_normalized(x, center, scale, shift))
        return flatten_spatial(v).mean(2)[None]
    wide = flatten_spatial(x)
    mean = wide.mean(2, dtype=acc_dtype(x.dtype))
    if statistic == "mean":
        return mean[None]
    if statistic == "max":
        return torch.stack([mean, wide.amax(2).to(mean.dtype)])
    return torch.stack([mean, (wide - mean[:, :, None]).square().sum(2)])


def apply_forward(
    x, residual, center, scale, shift, g, act: str, relu: bool
) -> tuple[Tensor, Tensor]:
    p = FUNCTIONS[act](_normalized(x, center, scale, shift)) * broadcast_spatial(g, x)
    if residual is not None:
        p = p + residual
    if not relu:
        return p.to(x.dtype), nothing(x, torch.uint8)
    return p.relu().to(x.dtype), pack(~(p <= 0), x)


def reduce_backward(
    dy, x, mask, center, scale, shift, maximum, g, act: str
) -> tuple[Tensor, Tensor]:
    q = _masked(dy, mask).to(acc_dtype(x.dtype))
    dx = nothing(x) if g is None else rescale(dy, g)
    if center is None:
        terms = [q * x]
        if maximum is not None:
            terms += [(x == broadcast_spatial(maximum, x)).to(q.dtype)]
    else:
        centered = x - broadcast_spatial(center, x)
        terms = [q, q * centered]
        if act != "identity":
            u = _normalized(x, center, scale, shift)
            slope = act_derivative(act, u)
            terms = [
                q * slope, q * slope * centered, q * FUNCTIONS[act](u), slope, slope * centered
            ]  # fmt: skip
    return torch.stack([flatten_spatial(term).sum(2) for term in terms]), dx


def apply_backward(
    dy, x, mask, center, scale, shift, g, grad_mean, maximum, grad_max, slope, offset,
    act: str, add: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    q = _masked(dy, mask)
    dx = q * broadcast_spatial(g, x)
    if grad_mean is not None:
        dx = dx + broadcast_spatial(grad_mean, x)
    if maximum is not None:
        dx = dx + _gradient_of_maximum(x, maximum, grad_max)
    if act != "identity":
        dx = dx * act_derivative(act, _normalized(x, center, scale, shift))
    if center is not None:
        dx = dx * broadcast_spatial(scale, x)
    if slope is not None:
        centered = x - broadcast_spatial(center, x)
        dx = dx + centered * broadcast_spatial(slope, x) + broadcast_spatial(offset, x)
    return dx.to(x.dtype), torch.empty_like(x).copy_(q) if add else nothing(x)


# The block at once


def squeeze_excite(
    x, residual, w1, b1, w2, b2, act: str, gate: str, relu: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    z = squeeze(x)
    g = gates(first_layer(z, w1, b1), w2, b2, act, gate)
    return *apply_forward(x, residual, None, None, None, g, "identity", relu), z, g


def squeeze_excite_backward(
    dy, x, mask, z, g, w1, b1, w2, b2, act: str, gate: str, add: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    (dg,), _ = reduce_backward(dy, x, mask, None, None, None, None, None, "identity")
    dp1, h, dp2 = excitation_gradient(dg, first_layer(z, w1, b1, product), g, w2, act, gate)
    grad_mean = squeeze_gradient(dp1, w1) / prod(x.shape[2:])
    return *apply_backward(
        dy, x, mask, None, None, None, g, grad_mean, None, None, None, None, "identity", add
    ), dp1, h, dp2  # fmt: skip


# Between the passes, on [C], [N, C] and [N, R]


def merge_moments(moments: Tensor, positions: int) -> tuple[Tensor, Tensor]:
    mean, m2 = moments
    # From the first, so that means much larger than their differences lose nothing.
    center = mean[0] + (mean - mean[0]).mean(0)
    delta = mean - center
    return center, torch.addcmul(m2, delta, delta, value=positions).mean(0) / positions


def excite(
    mean, center, scale, shift, w1, b1, w2, b2, act: str, gate: str
) -> tuple[Tensor, Tensor, Tensor]:
    z = mean if center is None else torch.addcmul(shift, mean - center, scale)
    p1 = first_layer(z, w1, b1)
    g = gates(p1, w2, b2, act, gate)
    return nothing(mean) if center is None else z, p1, g


def excite_backward(
    sums, mean, center, scale, shift, p1, g, w1, w2, act: str, gate: str, positions: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    is_identity = sums.shape[0] == 2
    if center is None:
        dg = sums[0]
    elif is_identity:
        dg = torch.addcmul(sums[0] * shift, sums[1], scale)
    else:
        dg = sums[2]
    dp1, h, dp2 = excitation_gradient(dg, p1, g, w2, act, gate)
    grad_mean = squeeze_gradient(dp1, w1) / positions
    if center is None:
        return dp1, h, dp2, grad_mean, nothing(g), nothing(g)
    # du is q·g·v' by way of the rescale, and grad_mean·v' by way of the squeeze.
    if is_identity:
        dz = grad_mean * positions
        by_squeeze = dz, dz * (mean - center)
    else:
        by_squeeze = sums[3] * grad_mean, sums[4] * grad_mean
    grad_shift, grad_scale = (
        torch.addcmul(squeezed, g, rescaled).sum(0)
        for squeezed, rescaled in zip(by_squeeze, sums[:2])
    )
    return dp1, h, dp2, grad_mean, grad_shift, grad_scale


def first_layer(z, w1, b1, linear=None) -> Tensor:
    """p1; arithmetic is in z's dtype, weights come in any and may have trailing dims of size 1"""
    return _linear(z, w1, b1, linear)


def gates(p1, w2, b2, act: str, gate: str) -> Tensor:
    """g"""
    return FUNCTIONS[gate](_linear(FUNCTIONS[act](p1), w2, b2))


def excitation_gradient(dg, p1, g, w2, act: str, gate: str) -> tuple[Tensor, Tensor, Tensor]:
    """dp1, h and dp2"""
    dp2 = dg * gate_derivative(gate, g)
    dp1 = product(dp2, _matrix(w2, dp2)) * act_derivative(act, p1)
    return dp1, FUNCTIONS[act](p1), dp2


def squeeze_gradient(dp1, w1) -> Tensor:
    """dz = dp1 w1"""
    return product(dp1, _matrix(w1, dp1))


def weight_gradient(dp: Tensor, inputs: Tensor, weight: Tensor) -> Tensor:
    """dpᵀ · inputs, in the weight's shape and dtype."""
    return product(dp.t(), inputs).to(weight.dtype).view(weight.shape)


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """``a @ b + bias`` of a backward pass: an operator where torch.compile traces it, which would
    cast a matmul to 16 bits under autocast, though autocast is disabled around it."""
    if torch.compiler.is_compiling():
        return torch.ops.se_fused.product(a, b, bias)
    return a @ b if bias is None else torch.addmm(bias, a, b)


# What is differentiable, without the passes


def squeeze(x: Tensor, kind: str = "avg") -> Tensor:
    """z, [N, C], or [N, 2C] for concat"""
    mean = flatten_spatial(x).mean(2, dtype=acc_dtype(x.dtype))
    if kind == "avg":
        return mean
    return combine(mean, flatten_spatial(x).amax(2).to(mean.dtype), kind)


def rescale(x: Tensor, g: Tensor) -> Tensor:
    return (x * broadcast_spatial(g, x)).to(x.dtype)


def squeeze_excite_map(x, w1, b1, w2, b2, act: str, gate: str, kind: str) -> tuple[Tensor, Tensor]:
    """y and g"""
    g = gates(first_layer(squeeze(x, kind), w1, b1), w2, b2, act, gate)
    return rescale(x, g), g


def squeeze_max_backward(grad_mean: Tensor, grad_max: Tensor, x: Tensor, maximum: Tensor) -> Tensor:
    """The gradient of [mean, maximum] alone, which is no pass."""
    ties = flatten_spatial(x == broadcast_spatial(maximum, x)).sum(2)
    of_mean = broadcast_spatial(grad_mean / prod(x.shape[2:]), x)
    return (of_mean + _gradient_of_maximum(x, maximum, grad_max / ties)).to(x.dtype)


def combine(mean: Tensor, maximum: Tensor, kind: str) -> Tensor:
    """z of a squeeze with the maximum"""
    if kind == "max":
        return maximum
    return 0.5 * mean + 0.5 * maximum if kind == "avg_max" else torch.cat([mean, maximum], 1)


def combine_backward(dz: Tensor, kind: str) -> tuple[Tensor | None, Tensor]:
    """The gradients of the mean, None if z does not depend on it, and of the maximum"""
    if kind == "max":
        return None, dz
    return (0.5 * dz, 0.5 * dz) if kind == "avg_max" else dz.chunk(2, 1)


def nothing(x: Tensor, dtype=None) -> Tensor:
    """What an operator returns in the place of a result that is not wanted."""
    return x.new_empty(0, dtype=dtype)


def _masked(dy: Tensor, mask: Tensor | None) -> Tensor:
    """q"""
    return dy if mask is None else torch.where(unpack(mask, dy), dy, 0)


def _normalized(x: Tensor, center, scale, shift) -> Tensor:
    """u"""
    if center is None:
        return x
    centered = x - broadcast_spatial(center, x)
    return centered * broadcast_spatial(scale, x) + broadcast_spatial(shift, x)


def _gradient_of_maximum(x, maximum, grad_max) -> Tensor:
    # A product, so that an Inf of grad_max makes NaN of other positions, as torch.amax does.
    return (x == broadcast_spatial(maximum, x)) * broadcast_spatial(grad_max, x)


def _linear(inputs: Tensor, weight: Tensor, bias: Tensor | None, linear=None) -> Tensor:
    bias = None if bias is None else bias.to(inputs.dtype)
    if linear is not None:
        return linear(inputs, _matrix(weight, inputs).t(), bias)
    return F.linear(inputs, _matrix(weight, inputs), bias)


def _matrix(weight: Tensor, beside: Tensor) -> Tensor:
    return weight.flatten(1).to(beside.dtype)
