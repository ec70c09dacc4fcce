"""The passes over a map whose squeeze has its maximum in it, in plain PyTorch.

Letters and formulas as in ``se_fused/backends/__init__.py``: the specification of the compiled
passes, which is what the eager backend runs. As in ``torch.amax``, a NaN is a maximum, and one that
several positions share passes its gradient to them in equal parts.
"""

from math import prod

from torch import Tensor

from se_fused.layout import acc_dtype, flat, like_map


def squeeze_max(x: Tensor) -> tuple[Tensor, Tensor]:
    acc = acc_dtype(x.dtype)
    return flat(x).mean(2, dtype=acc), flat(x).amax(2).to(acc)


def gate_gradient_max(dy: Tensor, x: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
    dg = (flat(dy).to(m.dtype) * flat(x)).sum(2)
    return dg, flat(x == like_map(m, x)).sum(2, dtype=m.dtype)


def rescale_backward_max(dy, x, g, share, m, peak) -> Tensor:
    return (dy * like_map(g, x) + _of_squeeze(x, share, m, peak)).to(x.dtype)


def squeeze_max_backward(dmean: Tensor, dm: Tensor, x: Tensor, m: Tensor) -> Tensor:
    """The gradient of the squeeze alone, which is no operator."""
    ties = flat(x == like_map(m, x)).sum(2)
    return _of_squeeze(x, dmean / prod(x.shape[2:]), m, dm / ties).to(x.dtype)


def _of_squeeze(x, share, m, peak) -> Tensor:
    return like_map(share, x) + (x == like_map(m, x)) * like_map(peak, x)
