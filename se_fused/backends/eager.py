"""Plain PyTorch on any device: the specification of the other backends, and their oracle in fp64.

The forward functions are differentiable, which is what double backward runs on.
"""

import torch
from torch import Tensor

from se_fused.between import (  # noqa: F401  (a part of the contract)
    merge_moments,
    norm_excite,
    norm_excite_backward,
)
from se_fused.excitation import excitation_gradient, excite, squeeze_gradient
from se_fused.layout import acc_dtype, flat, like_map
from se_fused.max_passes import (  # noqa: F401
    gate_gradient_max,
    rescale_backward_max,
    squeeze_max,
)
from se_fused.passes import (  # noqa: F401  (the rest of the contract)
    moments,
    norm_rescale,
    norm_rescale_backward,
    norm_squeeze,
    norm_sums,
)

OPERATORS = False


def unavailable(device: torch.device) -> str | None:
    return None


def squeeze(x: Tensor) -> Tensor:
    return flat(x).mean(2, dtype=acc_dtype(x.dtype))


def rescale(x: Tensor, g: Tensor) -> Tensor:
    return (x * like_map(g, x)).to(x.dtype)


def gate_gradient(dy: Tensor, x: Tensor) -> Tensor:
    return (flat(dy).to(acc_dtype(x.dtype)) * flat(x)).sum(2)


def rescale_backward(dy: Tensor, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    return rescale(dy, g), gate_gradient(dy, x)


def squeeze_excite(x, w1, b1, w2, b2, act: str, gate: str) -> tuple[Tensor, Tensor, Tensor]:
    z = squeeze(x)
    g = excite(z, w1, b1, w2, b2, act, gate)
    return rescale(x, g), z, g


def squeeze_excite_backward(
    dy, x, z, g, w1, b1, w2, b2, act: str, gate: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dp1, h, dp2 = excitation_gradient(gate_gradient(dy, x), z, g, w1, b1, w2, act, gate)
    share = squeeze_gradient(dp1, w1) / x.shape[2:].numel()
    dx = (dy * like_map(g, x) + like_map(share, x)).to(x.dtype)
    return dx, dp1, h, dp2
