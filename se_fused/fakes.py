"""What the operators return, without computing it: shapes, dtypes and layouts.

For torch.compile, fake and meta tensors. Arguments as in ``se_fused/backends/__init__.py``.
"""

import torch
from torch import Tensor

from se_fused.layout import acc_dtype, dense
from se_fused.passes import mask_size


def register(namespace: str, lib: torch.library.Library | None = None):
    """Registers the fakes of all operators of a namespace."""
    for name, fake in _FAKES.items():
        torch.library.register_fake(f"{namespace}::{name}", fake, lib=lib)


def _per_channel(x: Tensor, width=None) -> Tensor:
    dtype = acc_dtype(x.dtype)
    return x.new_empty((x.shape[0], x.shape[1] if width is None else width), dtype=dtype)


def _squeeze(x):
    return _per_channel(x)


def _rescale(x, g):
    return torch.empty_like(dense(x))


def _gate_gradient(dy, x):
    return _per_channel(x)


def _rescale_backward(dy, x, g):
    return torch.empty_like(dense(x)), _per_channel(x)


def _squeeze_excite(x, w1, b1, w2, b2, act, gate):
    return torch.empty_like(dense(x)), _per_channel(x), _per_channel(x)


def _squeeze_excite_backward(dy, x, z, g, w1, b1, w2, b2, act, gate):
    dp1, h = (_per_channel(x, w1.shape[0]) for _ in range(2))
    return torch.empty_like(dense(x)), dp1, h, _per_channel(x)


def _squeeze_max(x):
    return _per_channel(x), _per_channel(x)


def _gate_gradient_max(dy, x, m):
    return _per_channel(x), _per_channel(x)


def _rescale_backward_max(dy, x, g, share, m, peak):
    return torch.empty_like(dense(x))


def _moments(x):
    return _per_channel(x), _per_channel(x)


def _norm_squeeze(x, center, scale, shift, act):
    return _per_channel(x)


def _norm_rescale(x, residual, center, scale, shift, g, act, relu):
    x = dense(x)
    return torch.empty_like(x), x.new_empty(mask_size(x) if relu else 0, dtype=torch.uint8)


def _norm_sums(dy, x, mask, center, scale, shift, act):
    count = 2 if act in (0, "identity") else 5  # a code where the extension's operators are called
    return x.new_empty((count, x.shape[0], x.shape[1]), dtype=acc_dtype(x.dtype))


def _norm_rescale_backward(
    dy, x, mask, center, scale, shift, g, share, slope, offset, act, add
):
    dx = torch.empty_like(dense(x))
    return dx, torch.empty_like(dx) if add else dx.new_empty(0)


def _merge_moments(planes, m2, positions):
    return planes.new_empty(planes.shape[1]), planes.new_empty(planes.shape[1])


def _norm_excite(planes, center, scale, shift, w1, b1, w2, b2, act, gate):
    z = planes.new_empty(0) if center is None else _per_channel(planes)
    return z, _per_channel(planes, w1.shape[0]), _per_channel(planes)


def _norm_excite_backward(
    sums, planes, center, scale, shift, p1, g, w1, w2, act, gate, positions
):
    channels = 0 if center is None else g.shape[1]
    return (
        torch.empty_like(p1), torch.empty_like(p1), torch.empty_like(g), torch.empty_like(g),
        g.new_empty(channels), g.new_empty(channels),
    )  # fmt: skip


_FAKES = {
    "squeeze": _squeeze,
    "rescale": _rescale,
    "gate_gradient": _gate_gradient,
    "rescale_backward": _rescale_backward,
    "squeeze_excite": _squeeze_excite,
    "squeeze_excite_backward": _squeeze_excite_backward,
    "squeeze_max": _squeeze_max,
    "gate_gradient_max": _gate_gradient_max,
    "rescale_backward_max": _rescale_backward_max,
    "moments": _moments,
    "norm_squeeze": _norm_squeeze,
    "norm_rescale": _norm_rescale,
    "norm_sums": _norm_sums,
    "norm_rescale_backward": _norm_rescale_backward,
    "merge_moments": _merge_moments,
    "norm_excite": _norm_excite,
    "norm_excite_backward": _norm_excite_backward,
}
