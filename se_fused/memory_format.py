"""Layouts and dtypes: backends see contiguous and channels_last maps, and compute in acc; the bit
mask of a ReLU lies as its map does."""

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def to_dense(x: Tensor) -> Tensor:
    """x itself if it is contiguous or channels_last, else one copy in the layout nearest to it."""
    if x.is_contiguous():
        return x
    channels_last = _CHANNELS_LAST.get(x.dim())
    if channels_last and (x.is_contiguous(memory_format=channels_last) or x.stride(1) == 1):
        return x.contiguous(memory_format=channels_last)
    return x.contiguous()


def match_memory_format(dy: Tensor, x: Tensor) -> Tensor:
    """dy in the layout of the dense tensor x."""
    if x.is_contiguous():
        return dy.contiguous()
    return dy.contiguous(memory_format=_CHANNELS_LAST[x.dim()])


def acc_dtype(dtype: torch.dtype) -> torch.dtype:
    """What maps of this dtype are summed in, and gates computed in."""
    # Not promote_types, which torch.export would keep in its graph.
    return torch.float64 if dtype == torch.float64 else torch.float32


def flatten_spatial(x: Tensor) -> Tensor:
    """x as a [N, C, M] view, in either layout; M = 1 where x is [N, C]."""
    return x.unsqueeze(-1).flatten(2)


def broadcast_spatial(values: Tensor, x: Tensor) -> Tensor:
    """[C] or [N, C] as [C, 1, …] or [N, C, 1, …], to broadcast against x."""
    return values.reshape(values.shape + (1,) * (x.dim() - 2))


# The mask of a ReLU


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
