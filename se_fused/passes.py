"""The passes over a map of a block with BatchNorm, residual and ReLU, in plain PyTorch.

Letters and formulas as in ``se_fused/backends/__init__.py``: the specification of the compiled
passes, which is what the eager backend runs.
"""

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from se_fused.activations import FUNCTIONS, act_derivative
from se_fused.layout import acc_dtype, flat, like_map


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    wide = flat(x).to(acc_dtype(x.dtype))
    mean = wide.mean(2)
    return mean, (wide - mean[:, :, None]).square().sum(2)


def norm_squeeze(x, center, scale, shift, act: str) -> Tensor:
    return flat(FUNCTIONS[act](_normalized(x, center, scale, shift))).mean(2)


def norm_rescale(
    x, residual, center, scale, shift, g, act: str, relu: bool
) -> tuple[Tensor, Tensor]:
    p = FUNCTIONS[act](_normalized(x, center, scale, shift)) * like_map(g, x)
    if residual is not None:
        p = p + residual
    if not relu:
        return p.to(x.dtype), x.new_empty(0, dtype=torch.uint8)
    return p.relu().to(x.dtype), pack(~(p <= 0), x)


def norm_sums(dy, x, mask, center, scale, shift, act: str) -> Tensor:
    u = _normalized(x, center, scale, shift)
    q = _passed(dy, mask).to(u.dtype)
    centered = x.to(u.dtype) if center is None else x - like_map(center, x)
    if act == "identity":
        terms = (q, q * centered)
    else:
        slope = act_derivative(act, u)
        terms = (
            q * slope, q * slope * centered, q * FUNCTIONS[act](u), slope, slope * centered
        )  # fmt: skip
    return torch.stack([flat(term).sum(2) for term in terms])


def norm_rescale_backward(
    dy, x, mask, center, scale, shift, g, share, slope, offset, act: str, add: bool
) -> tuple[Tensor, Tensor]:
    u = _normalized(x, center, scale, shift)
    q = _passed(dy, mask)
    dx = q * like_map(g, x) + like_map(share, x)
    if act != "identity":
        dx = dx * act_derivative(act, u)
    if scale is not None:
        dx = dx * like_map(scale, x)
    if slope is not None:
        dx = dx + (x - like_map(center, x)) * like_map(slope, x) + like_map(offset, x)
    return dx.to(x.dtype), torch.empty_like(x).copy_(q) if add else q.new_empty(0)


def mask_size(x: Tensor) -> tuple[int, int]:
    """The shape of the mask of a map: rows in memory order, and the bytes of one."""
    channels, positions = x.shape[1], prod(x.shape[2:])
    is_channels_last = not x.is_contiguous()
    rows, cols = (positions, channels) if is_channels_last else (channels, positions)
    return x.shape[0] * rows, (cols + 7) // 8


def pack(passes: Tensor, x: Tensor) -> Tensor:
    """The mask of a boolean map, of x's shape and for x's layout."""
    rows, size = mask_size(x)
    last = passes if x.is_contiguous() else passes.movedim(1, -1)
    cols = prod(x.shape[2:]) if x.is_contiguous() else x.shape[1]
    bits = F.pad(last.reshape(rows, cols).to(torch.uint8), (0, size * 8 - cols))
    return (bits.view(rows, size, 8) << _bit_numbers(x)).sum(2, dtype=torch.uint8)


def unpack(mask: Tensor, x: Tensor) -> Tensor:
    """The boolean map of a mask, shaped and laid out like x."""
    bits = (mask[:, :, None] >> _bit_numbers(mask)) & 1
    bits = bits.view(mask.shape[0], mask.shape[1] * 8)
    if x.is_contiguous():
        return bits[:, : prod(x.shape[2:])].bool().reshape(x.shape)
    last = (x.shape[0], *x.shape[2:], x.shape[1])
    return bits[:, : x.shape[1]].bool().reshape(last).movedim(-1, 1)


def _bit_numbers(t: Tensor) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=t.device)


def _passed(dy: Tensor, mask: Tensor | None) -> Tensor:
    return dy if mask is None else torch.where(unpack(mask, dy), dy, 0)


def _normalized(x: Tensor, center, scale, shift) -> Tensor:
    wide = x.to(acc_dtype(x.dtype))
    if center is None:
        return wide
    return (wide - like_map(center, x)) * like_map(scale, x) + like_map(shift, x)
