"""The excitation as torch matmuls between the launches, for plan.excites_in_reduce = False.

Weights come in any dtype and are read once for all samples.
"""

import torch.nn.functional as F
from torch import Tensor

from se_fused.activations import FUNCTIONS, act_derivative, gate_derivative


def excite(z, w1, b1, w2, b2, act: str, gate: str) -> Tensor:
    """g"""
    h = FUNCTIONS[act](_linear(z, w1, b1))
    return FUNCTIONS[gate](_linear(h, w2, b2))


def excitation_gradient(
    dg, z, g, w1, b1, w2, spatial: int, act: str, gate: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dp1, h, dp2 and share = dz / M."""
    p1 = _linear(z, w1, b1)
    dp2 = dg * gate_derivative(gate, g)
    dp1 = (dp2 @ w2.to(z.dtype)) * act_derivative(act, p1)
    return dp1, FUNCTIONS[act](p1), dp2, (dp1 @ w1.to(z.dtype)) / spatial


def _linear(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    dtype = inputs.dtype
    return F.linear(inputs, weight.to(dtype), None if bias is None else bias.to(dtype))
