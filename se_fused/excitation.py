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
        p1 = product(z, _matrix(w1, z).t())
        p1 = p1 if b1 is None else p1 + b1.to(p1.dtype)
    dp2 = dg * gate_derivative(gate, g)
    dp1 = product(dp2, _matrix(w2, dp2)) * act_derivative(act, p1)
    return dp1, FUNCTIONS[act](p1), dp2


def squeeze_gradient(dp1, w1) -> Tensor:
    """dz = dp1 w1"""
    return product(dp1, _matrix(w1, dp1))


def weight_gradient(dp: Tensor, inputs: Tensor, weight: Tensor) -> Tensor:
    """dpᵀ · inputs, in the weight's shape and dtype."""
    return product(dp.t(), inputs).to(weight.dtype).view(weight.shape)


def product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` of a backward pass: an operator where torch.compile traces it, which would cast a
    matmul to 16 bits under autocast, though autocast is disabled around it."""
    return torch.ops.se_fused.product(a, b) if torch.compiler.is_compiling() else a @ b


def observed(y: Tensor, g: Tensor, on_gate: Callable[[Tensor], None] | None) -> Tensor:
    """y, after its gates were shown to whoever asks for them."""
    if on_gate is not None:
        on_gate(g.detach())
    return y


def _linear(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    bias = None if bias is None else bias.to(inputs.dtype)
    return F.linear(inputs, _matrix(weight, inputs), bias)


def _matrix(weight: Tensor, beside: Tensor) -> Tensor:
    return weight.flatten(1).to(beside.dtype)
