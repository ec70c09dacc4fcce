"""The end of a residual block, BatchNorm to ReLU: inputs, oracle and the rule of ``rounding.py``.

Plain PyTorch, written without se_fused. In a ReLU at the end no result decides by rounding whether
a gradient passes: |p|, its input, is at least ``MARGIN``.
"""

from functools import partial
from typing import NamedTuple

import formulas
import torch
import torch.nn.functional as F
from reference import ACTS, block
from rounding import acc_dtype, assert_right
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


def exactly(inputs: TailInputs) -> dict[str, Tensor]:
    return results(inputs, torch.float64, plain_written_out)


def error_scales(inputs: TailInputs) -> dict[str, Tensor]:
    """Of ``results`` in float64, in the shapes of ``formulas``."""
    norm = None
    if inputs.norm:
        running = inputs.running_mean, inputs.running_var
        affine = inputs.weight, inputs.bias
        norm = formulas.Norm(*affine, *running, inputs.training, MOMENTUM, EPS)
    weights = inputs.w1, inputs.b1, inputs.w2, inputs.b2
    found = formulas.block(
        inputs.x, *weights, inputs.act, inputs.gate, inputs.dy, norm=norm, residual=inputs.residual,
        eps=torch.finfo(acc_dtype(inputs.x.dtype)).eps, norm_act=inputs.norm_act,
        relu=inputs.post_act == "relu",
    )  # fmt: skip
    return {name: rounded.scale for name, rounded in found.items() if rounded is not None}


def check(found: dict[str, Tensor], inputs: TailInputs):
    """Judges results, by their names in ``results``."""
    expected, scales = exactly(inputs), error_scales(inputs)
    assert found.keys() == expected.keys()
    for name, result in found.items():
        # Running statistics are updated in their own dtype.
        acc = result.dtype if name in RUNNING else acc_dtype(inputs.x.dtype)
        assert_right(name, result, expected[name], scales[name], acc)
