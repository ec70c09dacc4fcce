"""The end of a residual block, BatchNorm to ReLU: inputs, oracle and rule of ``reference.py``.

Plain PyTorch, written without se_fused. In a ReLU at the end no result decides by rounding whether
a gradient passes: |p|, its input, is at least ``MARGIN``.

Eager's error is the largest of a few nearby inputs, as sums of few values may come out exact by
chance; in float32 of F.batch_norm and of its formula written out, as on the CPU F.batch_norm sums
float32 in float64.
"""

from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from reference import ACTS, assert_no_worse, block, error, per_channel, spatial_mean
from shapes import LAYOUTS
from torch import Tensor

MARGIN = 0.25
MOMENTUM, EPS = 0.3, 1e-3
TENSORS = ("x", "residual", "weight", "bias", "w1", "b1", "w2", "b2")
RUNNING = ("running_mean", "running_var")


class TailInputs(NamedTuple):
    """Arguments of one block, None where they may be, and the gradient of its result."""

    x: Tensor
    residual: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    w1: Tensor
    b1: Tensor | None
    w2: Tensor
    b2: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    dy: Tensor
    training: bool = True
    norm: bool = True
    norm_act: str = "identity"
    act: str = "silu"
    gate: str = "sigmoid"
    post_act: str = "relu"


def plain(inputs: TailInputs, tensors, batch_norm=F.batch_norm) -> Tensor:
    """As users write it, of these tensors: TENSORS, then RUNNING."""
    x, residual, weight, bias, *weights, running_mean, running_var = tensors
    if inputs.norm:
        running = running_mean, running_var
        x = batch_norm(x, *running, weight, bias, inputs.training, MOMENTUM, EPS)
    y = block(ACTS[inputs.norm_act](x), *weights, inputs.act, inputs.gate)
    y = y if residual is None else y + residual
    return ACTS[inputs.post_act](y)


def written_out(x, running_mean, running_var, weight, bias, training, momentum, eps) -> Tensor:
    """F.batch_norm"""
    mean, var = running_mean, running_var
    if training:
        others = [dim for dim in range(x.dim()) if dim != 1]
        mean = x.mean(others)
        var = (x - per_map(mean[None], x.shape)).square().mean(others)
        if running_mean is not None:
            count = x.numel() // x.shape[1]
            with torch.no_grad():
                running_mean.lerp_(mean, momentum)
                running_var.lerp_(var * count / (count - 1), momentum)
    scale = (var + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    mean, scale = (per_map(t[None], x.shape) for t in (mean, scale))
    u = (x - mean) * scale
    return u if bias is None else u + per_map(bias[None], x.shape)


plain_written_out = partial(plain, batch_norm=written_out)


def results(inputs: TailInputs, dtype: torch.dtype, function=plain) -> dict[str, Tensor]:
    """y, every gradient, and the running statistics afterwards, computed in one dtype."""

    def copied(t, wanted):
        return None if t is None else t.detach().to(dtype, copy=True).requires_grad_(wanted)

    tensors = {name: copied(getattr(inputs, name), True) for name in TENSORS}
    running = {name: copied(getattr(inputs, name), False) for name in RUNNING}
    y = function(inputs, (*tensors.values(), *running.values()))
    wanted = {name: t for name, t in tensors.items() if t is not None}
    gradients = torch.autograd.grad(y, list(wanted.values()), inputs.dy.to(dtype))
    found = {"y": y.detach()} | {f"d{name}": t for name, t in zip(wanted, gradients)}
    return found | {name: t for name, t in running.items() if t is not None}


def make_tail_inputs(
    shape,
    hidden: int,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    weight_dtype: torch.dtype | None = None,
    layout: str = "contiguous",
    residual: bool = True,
    residual_layout: str | None = None,
    affine: bool = True,
    biases: bool = True,
    running: bool = True,
    mean: float = 0.0,
    **options,
) -> TailInputs:
    """Random inputs with channels of standard deviation about 1 around ``mean``.

    Each channel has a gap in its values, and the bias puts the zero of BatchNorm's result there.
    """
    samples, channels = shape[:2]
    norm = options.get("norm", True)

    def draw(*size, scale=1.0):
        return torch.randn(size, dtype=torch.float64) * scale

    def rounded(t):
        return t.to(weight_dtype or dtype)

    offset = draw(channels) + mean if norm else torch.zeros(channels, dtype=torch.float64)
    often = per_map(0.3 + 0.4 * torch.rand(samples, channels), shape)
    distance = torch.where(torch.rand(shape) < often, 1.0, -1.0) * (2 * MARGIN + torch.rand(shape))
    x = (per_map(offset[None], shape) + distance.double()).to(dtype)
    weight = rounded(0.75 + torch.rand(channels)) if norm and affine else None
    running_mean = running_var = bias = None
    if norm and running:
        running_mean = rounded(offset + draw(channels, scale=0.3))
        running_var = rounded(0.5 + torch.rand(channels))
    if weight is not None:
        bias = rounded(draw(channels))
    if weight is not None and samples:
        of_batch = x.double().transpose(0, 1).flatten(1)
        center, var = of_batch.mean(1), of_batch.var(1, correction=0)
        if not options.get("training", True):
            center, var = running_mean.double(), running_var.double()
        bias = rounded((center - offset) * weight / (var + EPS).sqrt())
    weights = [
        rounded(draw(hidden, channels, scale=channels**-0.5)),
        rounded(draw(hidden, scale=0.5)) if biases else None,
        rounded(draw(channels, hidden, scale=hidden**-0.5)),
        rounded(draw(channels, scale=0.5)) if biases else None,
    ]
    parts = [x, None, weight, bias, *weights, running_mean, running_var, draw(*shape).to(dtype)]
    inputs = TailInputs(*parts, **options)
    if residual:
        before = inputs._replace(dy=x, post_act="identity")
        keep = torch.where(torch.rand(shape) < 0.5, 1.0, -1.0) * (MARGIN + torch.rand(shape))
        shortcut = keep - results(before, torch.float64)["y"] if x.numel() else draw(*shape)
        inputs = inputs._replace(residual=shortcut.to(dtype))
    inputs = inputs._replace(**{
        name: t.to(device) for name, t in inputs._asdict().items() if isinstance(t, Tensor)
    })
    layouts = {"x": layout, "dy": layout, "residual": residual_layout or layout}
    return inputs._replace(**{
        name: LAYOUTS[other](getattr(inputs, name))
        for name, other in layouts.items()
        if getattr(inputs, name) is not None
    })


def per_map(t: Tensor, shape) -> Tensor:
    return t.reshape(t.shape + (1,) * (len(shape) - 2))


def check(found: dict[str, Tensor], inputs: TailInputs, other: TailInputs | None = None):
    """Judges results, by their names in ``results``. Where other inputs are given, what they change
    in the exact results is added to eager's errors."""
    exact = exactly(inputs)
    assert found.keys() == exact.keys()
    change = {name: error(t, exact[name]) for name, t in exactly(other or inputs).items()}
    for dtype in {t.dtype for t in found.values()}:
        errors = eager_errors(inputs, dtype)
        for name, result in found.items():
            if result.dtype == dtype:
                assert_no_worse(name, result, exact[name], errors[name] + change[name])


def with_means_moved(inputs: TailInputs) -> TailInputs:
    """By about an ulp of each plane's mean in the dtype that it is kept in."""
    wide = inputs.x.double()
    means = spatial_mean(wide)
    ulp = torch.finfo(torch.promote_types(inputs.x.dtype, torch.float32)).eps * means
    return inputs._replace(x=wide + per_channel(ulp * torch.randn_like(ulp), wide))


def exactly(inputs: TailInputs) -> dict[str, Tensor]:
    return results(inputs, torch.float64, plain_written_out)


def eager_errors(inputs: TailInputs, dtype: torch.dtype) -> dict[str, float]:
    if dtype == torch.float64:  # as in reference.py: float32's, smaller by the ratio of the two eps
        narrow = inputs._replace(**{
            name: t.float() for name, t in inputs._asdict().items() if isinstance(t, Tensor)
        })
        ratio = 2 * torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
        return {name: ratio * error for name, error in eager_errors(narrow, torch.float32).items()}
    functions = (plain, plain_written_out) if dtype == torch.float32 else (plain,)
    largest = {}
    for trial in range(8):
        nearby = inputs._replace(x=inputs.x * (1 + trial / 64))
        exact = exactly(nearby)
        for function in functions:
            for name, t in results(nearby, dtype, function).items():
                largest[name] = max(largest.get(name, 0), error(t, exact[name]))
    return largest
