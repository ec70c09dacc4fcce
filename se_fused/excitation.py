"""The excitation and its gradient in plain PyTorch, on [N, C] and [N, R].

Letters and formulas as in ``se_fused/backends/__init__.py``. Arithmetic is in z's dtype; weights
come in any dtype and may have trailing dims of size 1.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from se_fused.activations import FUNCTIONS, act_derivative, gate_derivative


def excite(z, w1, b1, w2, b2, act: str, gate: str) -> Tensor:
    """g"""
    return gates(first_layer(z, w1, b1), w2, b2, act, gate)


def first_layer(z, w1, b1) -> Tensor:
    """p1"""
    return _linear(z, w1, b1)


def gates(p1, w2, b2, act: str, gate: str) -> Tensor:
    """g"""
    return FUNCTIONS[gate](_linear(FUNCTIONS[act](p1), w2, b2))


def excitation_gradient(
    dg, z, g, w1, b1, w2, act: str, gate: str, p1: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """dp1, h and dp2; p1 is computed again where it was not kept."""
    if p1 is None:
        p1 = product(z, _matrix(w1, z).t(), _bias(b1, z))
    dp2 = dg * gate_derivative(gate, g)
    dp1 = product(dp2, _matrix(w2, dp2)) * act_derivative(act, p1)
    return dp1, FUNCTIONS[act](p1), dp2


def squeeze_gradient(dp1, w1) -> Tensor:
    """dz = dp1 w1"""
    return product(dp1, _matrix(w1, dp1))


def weight_gradient(dp: Tensor, inputs: Tensor, weight: Tensor) -> Tensor:
    """dpᵀ · inputs, in the weight's shape and dtype."""
    return product(dp.t(), inputs).to(weight.dtype).view(weight.shape)


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """``a @ b + bias`` of a backward pass: an operator where torch.compile traces it, which would
    cast a matmul to 16 bits under autocast, though autocast is disabled around it."""
    if torch.compiler.is_compiling():
        return torch.ops.se_fused.product(a, b, bias)
    return a @ b if bias is None else torch.addmm(bias, a, b)


def observed(y: Tensor, g: Tensor, on_gate: Callable[[Tensor], None] | None) -> Tensor:
    """y, after its gates were shown to whoever asks for them."""
    if on_gate is not None:
        on_gate(g.detach())
    return y


def _linear(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(inputs, _matrix(weight, inputs), _bias(bias, inputs))


def _matrix(weight: Tensor, beside: Tensor) -> Tensor:
    return weight.flatten(1).to(beside.dtype)


def _bias(bias: Tensor | None, beside: Tensor) -> Tensor | None:
    return None if bias is None else bias.to(beside.dtype)
