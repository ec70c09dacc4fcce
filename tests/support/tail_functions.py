"""The fused end of a block forward and backward, on inputs of ``tail_reference.TailInputs``."""

import torch
from tail_reference import EPS, MOMENTUM, RUNNING, TENSORS, TailInputs

from se_fused import functional


def fused(inputs: TailInputs, tensors):
    """As ``tail_reference.plain``, with the functions under test."""
    x, residual, weight, bias, *weights, running_mean, running_var = tensors
    names = dict(act=inputs.act, gate=inputs.gate, post_act=inputs.post_act)
    if not inputs.norm:
        return functional.squeeze_excite_add_act(x, residual, *weights, **names)
    return functional.batch_norm_squeeze_excite(
        x, running_mean, running_var, weight, bias, *weights, residual=residual,
        training=inputs.training, momentum=MOMENTUM, eps=EPS, norm_act=inputs.norm_act, **names,
    )  # fmt: skip


def forward_backward(inputs: TailInputs) -> dict[str, torch.Tensor]:
    """As ``tail_reference.results``, each tensor in the dtype and layout that it has."""
    tensors = {name: getattr(inputs, name) for name in TENSORS}
    leaves = {n: None if t is None else t.detach().requires_grad_() for n, t in tensors.items()}
    running = [None if t is None else t.clone() for t in (inputs.running_mean, inputs.running_var)]
    y = fused(inputs, (*leaves.values(), *running))
    y.backward(inputs.dy)
    found = {"y": y.detach()}
    for name, leaf in leaves.items():
        if leaf is not None:
            assert leaf.grad.dtype == leaf.dtype, name
            found[f"d{name}"] = leaf.grad
    return found | {name: t for name, t in zip(RUNNING, running) if t is not None}
