"""Plain PyTorch on any device: the specification of the other backends, and their oracle in fp64.

The forward functions are differentiable, which is what double backward runs on.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from se_fused.activations import FUNCTIONS, act_derivative, gate_derivative

OPERATORS = False


def unavailable(device: torch.device) -> str | None:
    return None


def squeeze(x: Tensor) -> Tensor:
    return _flat(x).mean(2, dtype=_acc(x))


def rescale(x: Tensor, g: Tensor) -> Tensor:
    return (x * _like_map(g, x)).to(x.dtype)


def rescale_backward(dy: Tensor, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    return rescale(dy, g), _gate_gradient(dy, x)


def squeeze_excite(x, w1, b1, w2, b2, act: str, gate: str) -> tuple[Tensor, Tensor, Tensor]:
    z = squeeze(x)
    g = excite(z, w1, b1, w2, b2, act, gate)
    return rescale(x, g), z, g


def excite(z, w1, b1, w2, b2, act: str, gate: str) -> Tensor:
    h = FUNCTIONS[act](_linear(z, w1, b1))
    return FUNCTIONS[gate](_linear(h, w2, b2))


def squeeze_excite_backward(
    dy, x, z, g, w1, b1, w2, b2, act: str, gate: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    p1 = _linear(z, w1, b1)
    dp2 = _gate_gradient(dy, x) * gate_derivative(gate, g)
    dp1 = (dp2 @ w2.flatten(1).to(z.dtype)) * act_derivative(act, p1)
    dz = dp1 @ w1.flatten(1).to(z.dtype)
    share = dz / x.shape[2:].numel()
    dx = (dy * _like_map(g, x) + _like_map(share, x)).to(x.dtype)
    return dx, dp1, FUNCTIONS[act](p1), dp2


def _gate_gradient(dy: Tensor, x: Tensor) -> Tensor:
    return (_flat(dy).to(_acc(x)) * _flat(x)).sum(2)


def _linear(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    dtype = inputs.dtype
    return F.linear(inputs, weight.flatten(1).to(dtype), None if bias is None else bias.to(dtype))


def _like_map(per_channel: Tensor, x: Tensor) -> Tensor:
    """[N, C] as [N, C, 1, …], to broadcast against x."""
    return per_channel.view(per_channel.shape + (1,) * (x.dim() - 2))


def _flat(x: Tensor) -> Tensor:
    """x as a [N, C, M] view, in either layout; M = 1 where x is [N, C]."""
    return x.unsqueeze(-1).flatten(2)


def _acc(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
