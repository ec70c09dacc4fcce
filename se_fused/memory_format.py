"""Layouts and dtypes: backends see contiguous and channels_last maps, and compute in acc."""

import torch
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
