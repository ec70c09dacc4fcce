"""The oracle: plain PyTorch, written without se_fused. The rule by which results are judged by it
is in ``rounding.py``, the scales of errors that it needs in ``formulas.py``.

Arithmetic is promised in float32 at least: 16-bit inputs are widened first, and what is kept in 16
bits is rounded once.
"""

from typing import NamedTuple

import formulas
import torch
import torch.nn.functional as F
from formulas import ACTS, GATES
from rounding import acc_dtype, assert_right
from torch import Tensor

SQUEEZES = {
    "avg": lambda mean, m: mean,
    "max": lambda mean, m: m,
    "avg_max": lambda mean, m: 0.5 * mean + 0.5 * m,
    "concat": lambda mean, m: torch.cat([mean, m], 1),
}


class Inputs(NamedTuple):
    """Arguments of one block, and the gradient of its result."""

    x: Tensor
    w1: Tensor
    b1: Tensor | None
    w2: Tensor
    b2: Tensor | None
    act: str
    gate: str
    dy: Tensor
    squeeze: str = "avg"

    @property
    def block(self):
        return self[:7]

    @property
    def tensors(self):
        return self[:5]


def spatial_mean(x: Tensor) -> Tensor:
    return x.mean(tuple(range(2, x.dim()))) if x.dim() > 2 else x


def spatial_max(x: Tensor) -> Tensor:
    return x.amax(tuple(range(2, x.dim()))) if x.dim() > 2 else x


def per_channel(g: Tensor, x: Tensor) -> Tensor:
    return g.reshape(g.shape[:2] + (1,) * (x.dim() - 2))


def block(x, w1, b1, w2, b2, act: str, gate: str, squeeze: str = "avg") -> Tensor:
    """Squeeze-and-excitation as users write it."""
    z = spatial_mean(x) if squeeze == "avg" else SQUEEZES[squeeze](spatial_mean(x), spatial_max(x))
    h = ACTS[act](F.linear(z, w1.flatten(1), b1))
    return x * per_channel(GATES[gate](F.linear(h, w2.flatten(1), b2)), x)


def results(inputs: Inputs, dtype: torch.dtype) -> dict[str, Tensor]:
    """Every value and gradient of the block, computed in one dtype by plain autograd."""

    def leaf(t):
        return None if t is None else t.detach().to(dtype, copy=True).requires_grad_()

    x, w1, b1, w2, b2 = map(leaf, inputs.tensors)
    mean = spatial_mean(x)
    m = spatial_max(x) if x.numel() or not x.shape[0] else mean  # of no positions: NaN, as the mean
    z = SQUEEZES[inputs.squeeze](mean, m)
    p1 = F.linear(z, w1.flatten(1), b1)
    h = ACTS[inputs.act](p1)
    p2 = F.linear(h, w2.flatten(1), b2)
    g = GATES[inputs.gate](p2)
    y = x * per_channel(g, x)
    sources = {"x": x, "w1": w1, "b1": b1, "w2": w2, "b2": b2, "p1": p1, "p2": p2, "g": g}
    sources = {name: t for name, t in sources.items() if t is not None}
    dy = inputs.dy.to(dtype)
    gradients = torch.autograd.grad(y, list(sources.values()), dy)
    dy_times_g, peaks = dy * per_channel(g, x), x == per_channel(m, x)
    found = {"z": z, "h": h, "g": g, "y": y, "dy_times_g": dy_times_g, "mean": mean, "m": m}
    found["ties"] = peaks.to(dtype).flatten(2).sum(2) if x.dim() > 2 else peaks.to(dtype)
    # With the mean for the share of the mean, and g for that of a peak.
    found["dx_max"] = dy_times_g + per_channel(mean, x) + peaks * per_channel(g, x)
    found |= {f"d{name}": gradient for name, gradient in zip(sources, gradients)}
    return {name: t.detach() for name, t in found.items()}


def error_scales(inputs: Inputs) -> dict[str, Tensor]:
    """Of ``results`` in float64, in the shapes of ``formulas``."""
    eps = torch.finfo(acc_dtype(inputs.x.dtype)).eps
    found = formulas.block(*inputs.block, inputs.dy, inputs.squeeze, eps=eps)
    return {name: rounded.scale for name, rounded in found.items()}


def check(found: dict[str, Tensor], inputs: Inputs):
    """Judges results, by their names in ``results``."""
    exact, scales = results(inputs, torch.float64), error_scales(inputs)
    for name, result in found.items():
        assert_right(name, result, exact[name], scales[name], acc_dtype(inputs.x.dtype))
