"""The excitation and its gradient in plain PyTorch, on [N, C] and [N, R].

Letters and formulas as in ``se_fused/backends/__init__.py``. Arithmetic is in z's dtype; weights
come in any dtype and may have trailing dims of size 1.
"""

from collections.abc import Callable

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
        p1 = first_layer(z, w1, b1)
    dp2 = dg * gate_derivative(gate, g)
    dp1 = _transposed_linear(dp2, w2) * act_derivative(act, p1)
    return dp1, FUNCTIONS[act](p1), dp2


def squeeze_gradient(dp1, w1) -> Tensor:
    """dz = dp1 w1"""
    # Its matmul is cast where a backward pass that was compiled inside autocast runs it.
    return _transposed_linear(dp1, w1).to(dp1.dtype)


def observed(y: Tensor, g: Tensor, on_gate: Callable[[Tensor], None] | None) -> Tensor:
    """y, after its gates were shown to whoever asks for them."""
    if on_gate is not None:
        on_gate(g.detach())
    return y


def _linear(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    dtype = inputs.dtype
    return F.linear(inputs, weight.flatten(1).to(dtype), None if bias is None else bias.to(dtype))


def _transposed_linear(gradient: Tensor, weight: Tensor) -> Tensor:
    return gradient @ weight.flatten(1).to(gradient.dtype)
