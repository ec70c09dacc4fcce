"""The passes of a block with BatchNorm, residual and ReLU: inputs, oracle and rule.

Plain PyTorch, written without se_fused. The rule is that of ``rounding.py``.
"""

from typing import NamedTuple

import numpy as np
import torch
from block_operators import PLAIN, Operator
from formulas import act, act_slope, exact, flat
from reference import ACTS, per_channel, spatial_max, spatial_mean
from rounding import acc_dtype, assert_right
from shapes import LAYOUTS
from torch import Tensor

NORM_ACTS = ("identity", "relu", "silu", "hardswish")


class NormInputs(NamedTuple):
    """Arguments of the five passes. Tensors may be None where the operators take None."""

    x: Tensor
    residual: Tensor | None
    dy: Tensor
    mask: Tensor | None
    center: Tensor | None
    scale: Tensor | None
    shift: Tensor | None
    g: Tensor
    grad_mean: Tensor | None
    maximum: Tensor | None
    grad_max: Tensor | None
    slope: Tensor | None
    offset: Tensor | None
    act: str = "identity"
    relu: bool = True
    add: bool = True

    @property
    def norm(self):
        return self.center, self.scale, self.shift


def make_norm_inputs(
    shape,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    layout: str = "contiguous",
    norm: bool = True,
    residual: bool = True,
    masked: bool = True,
    train: bool = True,
    mean: bool = True,
    maximum: bool = False,
    **rest,
) -> NormInputs:
    """Random inputs. ``masked``: the gradient comes through a ReLU; ``train``: through the
    statistics of the batch; ``mean``, ``maximum``: through those of the squeeze."""
    samples, channels = shape[:2]
    acc = torch.promote_types(dtype, torch.float32)

    def draw(*size, scale=1.0, to=acc):
        return (torch.randn(size, dtype=torch.float64) * scale).to(to).to(device)

    offsets = torch.randn(shape[:2] + (1,) * (len(shape) - 2), dtype=torch.float64)
    x = (torch.randn(shape, dtype=torch.float64) + offsets).to(dtype).to(device)
    if maximum:  # equal ones among them
        x = (2 * x).round() / 2
    x, dy, other = (LAYOUTS[layout](t) for t in (x, draw(*shape, to=dtype), draw(*shape, to=dtype)))
    return NormInputs(
        x,
        other if residual else None,
        dy,
        pack(torch.rand(shape, device=device) < 0.6, x) if masked else None,
        *((draw(channels) for _ in range(3)) if norm else (None, None, None)),
        torch.sigmoid(draw(samples, channels)),
        draw(samples, channels, scale=0.1) if mean else None,
        *((spatial_max(x).to(acc), draw(samples, channels)) if maximum else (None, None)),
        *((draw(channels, scale=0.1) for _ in range(2)) if norm and train else (None, None)),
        **rest,
    )


def rows_of(t: Tensor, like: Tensor) -> Tensor:
    """A map as the rows of its mask, which lie as ``like`` would lie if it were dense."""
    channels_last = not like.is_contiguous() and like.dim() > 3 and like.stride(1) == 1
    last = t.movedim(1, -1) if channels_last else t.flatten(2) if t.dim() > 2 else t[..., None]
    return last.reshape(last.shape[:-1].numel(), last.shape[-1])


def pack(keep: Tensor, x: Tensor) -> Tensor:
    """The mask of a boolean map, for x's layout."""
    rows = rows_of(keep, x)
    bits = np.packbits(rows.cpu().contiguous().numpy(), axis=1, bitorder="little")
    return torch.from_numpy(bits).to(x.device)


def unpack(mask: Tensor, x: Tensor) -> Tensor:
    """The boolean map of a mask, contiguous; fails on a padding bit that is set."""
    numbers = torch.arange(x.numel(), device=x.device).view(x.shape)
    numbers = rows_of(numbers, x)
    cells = torch.from_numpy(np.unpackbits(mask.cpu().numpy(), axis=1, bitorder="little"))
    cells = cells.bool().to(x.device)
    assert not cells[:, numbers.shape[1] :].any(), "a padding bit is set"
    flat = torch.empty(x.numel(), dtype=torch.bool, device=x.device)
    flat[numbers.flatten()] = cells[:, : numbers.shape[1]].flatten()
    return flat.view(x.shape)


def results(inputs: NormInputs, dtype: torch.dtype) -> dict[str, Tensor]:
    """What the passes return, the mask excepted, computed in one dtype."""

    def wide(t):
        return None if t is None else t.to(dtype)

    x, residual, dy = wide(inputs.x), wide(inputs.residual), wide(inputs.dy)
    g = per_channel(wide(inputs.g), x)
    centered, scale, u = x, 1, x
    if inputs.center is not None:
        center, scale, shift = (per_channel(wide(t)[None], x) for t in inputs.norm)
        centered = x - center
        u = centered * scale + shift
    u = u.detach().requires_grad_()
    v = ACTS[inputs.act](u)
    [d] = torch.autograd.grad(v.sum(), u)
    u, v = u.detach(), v.detach()
    mean = spatial_mean(x)
    p = v * g if residual is None else v * g + residual
    q = dy if inputs.mask is None else torch.where(unpack(inputs.mask, inputs.x), dy, 0)
    terms = (q * d, q * d * centered) if inputs.center is not None else (q * x,)
    if inputs.act != "identity":
        terms += (q * v, d, d * centered)
    dv = q * g
    if inputs.grad_mean is not None:
        dv = dv + per_channel(wide(inputs.grad_mean), x)
    if inputs.maximum is not None:
        at_maximum = (x == per_channel(wide(inputs.maximum), x)).to(dtype)
        terms += (at_maximum,)
        dv = dv + at_maximum * per_channel(wide(inputs.grad_max), x)
    dx = dv * scale * d
    if inputs.slope is not None:
        slope, offset = (per_channel(wide(t)[None], x) for t in (inputs.slope, inputs.offset))
        dx = dx + centered * slope + offset
    return {
        "mean": mean,
        "m2": _spatial_sum((x - per_channel(mean, x)).square()),
        "z": spatial_mean(v),
        "p": p,
        "y": p.relu() if inputs.relu else p,
        "sums": torch.stack([_spatial_sum(term) for term in terms]),
        "dx": dx,
        "dr": q if inputs.add else q.new_empty(0),
    }


def _spatial_sum(t: Tensor) -> Tensor:
    return t.flatten(2).sum(2) if t.dim() > 2 else t


def error_scales(inputs: NormInputs) -> dict[str, Tensor]:
    """Of ``results`` in float64, maps as [N, C, M]."""
    eps = torch.finfo(acc_dtype(inputs.x.dtype)).eps
    x, dy = flat(inputs.x), flat(inputs.dy)
    g = exact(inputs.g)[..., None]
    centered = u = x
    if inputs.center is not None:
        center, scale, shift = (exact(t)[:, None] for t in inputs.norm)
        centered = x - center
        u = centered * scale + shift
    v, d = act(inputs.act, u, eps), act_slope(inputs.act, u, eps)
    p = v * g
    if inputs.residual is not None:
        p = p + flat(inputs.residual)
    q = dy if inputs.mask is None else dy * flat(unpack(inputs.mask, inputs.x))
    terms = [q * d, q * d * centered] if inputs.center is not None else [q * x]
    if inputs.act != "identity":
        terms += [q * v, d, d * centered]
    dv = q * g
    if inputs.grad_mean is not None:
        dv = dv + exact(inputs.grad_mean)[..., None]
    if inputs.maximum is not None:
        at_maximum = exact((x.value == exact(inputs.maximum).value[..., None]).double())
        terms += [at_maximum]
        dv = dv + at_maximum * exact(inputs.grad_max)[..., None]
    dx = dv * d
    if inputs.center is not None:
        dx = dx * scale
    if inputs.slope is not None:
        dx = dx + centered * exact(inputs.slope)[:, None] + exact(inputs.offset)[:, None]
    mean = x.mean(2)
    apart = x - mean[..., None]
    found = {"mean": mean, "m2": (apart * apart).sum(2), "z": v.mean(2), "y": p, "dx": dx, "dr": q}
    found = {name: rounded.scale for name, rounded in found.items()}
    return found | {"sums": torch.stack([term.sum(2).scale for term in terms])}


def check(found: dict[str, Tensor], inputs: NormInputs):
    """Judges results, by their names in ``results``; the mask by y."""
    expected, scales = results(inputs, torch.float64), error_scales(inputs)
    for name, result in found.items():
        if name != "mask":
            assert_right(name, result, expected[name], scales[name], acc_dtype(inputs.x.dtype))
        elif inputs.relu:
            assert torch.equal(unpack(result, inputs.x), ~(found["y"] <= 0)), "mask"
        else:
            assert result.numel() == 0


def _operator(*parts) -> Operator:
    return Operator(*parts, make_norm_inputs, check)


OPERATORS = {
    "moments": _operator("reduce_forward", lambda i: (i.x, *PLAIN, "moments"), (("mean", "m2"),)),
    "squeeze": _operator("reduce_forward", lambda i: (i.x, *i.norm, i.act, "mean"), (("z",),)),
    "rescale": _operator(
        "apply_forward", lambda i: (i.x, i.residual, *i.norm, i.g, i.act, i.relu), ("y", "mask")
    ),
    "sums": _operator(
        "reduce_backward", lambda i: (i.dy, i.x, i.mask, *i.norm, i.maximum, None, i.act),
        ("sums", None),
    ),
    "gradient": _operator(
        "apply_backward",
        lambda i: (
            i.dy, i.x, i.mask, *i.norm, i.g, i.grad_mean, i.maximum, i.grad_max, i.slope,
            i.offset, i.act, i.add,
        ),
        ("dx", "dr"),
    ),
}  # fmt: skip
