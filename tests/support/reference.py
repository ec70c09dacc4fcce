"""The oracle: plain PyTorch, written without se_fused, and the rule by which results are judged.

Rule: err(result) <= 2 * (err(eager) + eps * max|exact|), where err is the largest difference from
``exact``, the block computed in float64 from the same inputs, and ``eager`` is the block computed
by plain PyTorch in the result's own dtype. So y and dx of a bfloat16 map are judged against eager
in bfloat16, while what is kept in float32 (z, g, gradients of float32 weights) is judged against
eager in float32: there the 16-bit inputs are widened first, as the operators promise.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

ACTS = {
    "identity": lambda p: p,
    "relu": F.relu,
    "silu": F.silu,
    "hardswish": F.hardswish,
    "leaky_relu": F.leaky_relu,
    "gelu": F.gelu,
}
GATES = {
    "identity": lambda p: p,
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    # F.hardsigmoid has a float32 1/6 in its float64 gradient, and no second derivative.
    "hardsigmoid": lambda p: F.relu6(p + 3) / 6,
    "tanh": torch.tanh,
}
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


def error(result: Tensor, exact: Tensor) -> float:
    return (result.double() - exact).abs().max().item() if exact.numel() else 0.0


def assert_no_worse(name: str, result: Tensor, exact: Tensor, eager_error: float):
    """The rule, for one result."""
    assert result.shape == exact.shape, f"{name}: shape {result.shape}, expected {exact.shape}"
    largest = exact.abs().max().item() if exact.numel() else 0.0
    allowed = 2 * (eager_error + torch.finfo(result.dtype).eps * largest)
    assert allowed < float("inf"), f"{name}: the reference itself is not finite"
    found = error(result, exact)
    assert found <= allowed, f"{name}: error {found:.3g}, allowed {allowed:.3g}"


def check(found: dict[str, Tensor], inputs: Inputs):
    """Judges results, by their names in ``results``."""
    exact = results(inputs, torch.float64)
    for dtype in {t.dtype for t in found.values()}:
        errors = eager_errors(inputs, exact, dtype)
        for name, result in found.items():
            if result.dtype == dtype:
                assert_no_worse(name, result, exact[name], errors[name])


def eager_errors(inputs: Inputs, exact: dict[str, Tensor], dtype: torch.dtype) -> dict[str, float]:
    if dtype != torch.float64:
        eager = results(inputs, dtype)
        return {name: error(eager[name], exact[name]) for name in exact}
    # Nothing wider to compare float64 with: eager makes there the errors that it makes in float32,
    # smaller by the ratio of the two eps. Twice, because the exact results carry them too.
    narrow = inputs._replace(
        **{
            name: None if t is None else t.float()
            for name, t in zip(("x", "w1", "b1", "w2", "b2", "dy"), (*inputs.tensors, inputs.dy))
        }
    )
    ratio = 2 * torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
    wide, eager = results(narrow, torch.float64), results(narrow, torch.float32)
    return {name: ratio * error(eager[name], wide[name]) for name in wide}
