"""squeeze_excite forward and backward, on inputs of ``reference.Inputs``."""

import torch
from reference import SQUEEZES, Inputs

import se_fused

# Squeezes with the maximum in them.
KINDS = tuple(kind for kind in SQUEEZES if kind != "avg")


def leaves(inputs: Inputs) -> list:
    """The tensors of the block, set to receive gradients."""
    return [None if t is None else t.detach().requires_grad_() for t in inputs.tensors]


def forward_backward(inputs: Inputs) -> dict[str, torch.Tensor]:
    x, w1, b1, w2, b2 = tensors = leaves(inputs)
    y = se_fused.squeeze_excite(
        x, w1, b1, w2, b2, act=inputs.act, gate=inputs.gate, squeeze=inputs.squeeze
    )
    y.backward(inputs.dy)
    found = {"y": y.detach()}
    for name, tensor in zip(("dx", "dw1", "db1", "dw2", "db2"), tensors):
        if tensor is not None:
            assert tensor.grad.dtype == tensor.dtype
            found[name] = tensor.grad
    return found
