"""What lies between the passes of a block with BatchNorm, in plain PyTorch: on [C], [N, C], [N, R].

Letters and formulas as in ``se_fused/backends/__init__.py``: the specification of the compiled
functions for CPU tensors, and what runs on other devices, where torch.compile may fuse it.
"""

import torch
from torch import Tensor

from se_fused.excitation import excitation_gradient, first_layer, gates, squeeze_gradient


def merge_moments(planes: Tensor, m2: Tensor, positions: int) -> tuple[Tensor, Tensor]:
    # From the first, so that means much larger than their differences lose nothing.
    mean = planes[0] + (planes - planes[0]).mean(0)
    apart = planes - mean
    return mean, torch.addcmul(m2, apart, apart, value=positions).mean(0) / positions


def norm_excite(
    planes, center, scale, shift, w1, b1, w2, b2, act: str, gate: str
) -> tuple[Tensor, Tensor, Tensor]:
    z = planes if center is None else torch.addcmul(shift, planes - center, scale)
    p1 = first_layer(z, w1, b1)
    g = gates(p1, w2, b2, act, gate)
    return z if center is not None else planes.new_empty(0), p1, g


def norm_excite_backward(
    sums, planes, center, scale, shift, p1, g, w1, w2, act: str, gate: str, positions: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    is_identity = sums.shape[0] == 2
    if not is_identity:
        dg = sums[2]
    else:
        dg = sums[1] if center is None else torch.addcmul(sums[0] * shift, sums[1], scale)
    dp1, h, dp2 = excitation_gradient(dg, None, g, w1, None, w2, act, gate, p1)
    share = squeeze_gradient(dp1, w1) / positions
    if center is None:
        return dp1, h, dp2, share, g.new_empty(0), g.new_empty(0)
    # du is q·g·v' by way of the rescale, and share·v' by way of the squeeze.
    if is_identity:
        dz = share * positions
        by_squeeze = dz, dz * (planes - center)
    else:
        by_squeeze = sums[3] * share, sums[4] * share
    of_shift, of_scale = (
        torch.addcmul(squeezed, g, rescaled).sum(0)
        for squeezed, rescaled in zip(by_squeeze, sums[:2])
    )
    return dp1, h, dp2, share, of_shift, of_scale
