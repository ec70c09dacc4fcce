"""Squeezes with the maximum in them, and the block around them: autograd.

Formulas in ``se_fused/backends/__init__.py``; what lies between the passes over the map, on [N, C],
is plain PyTorch. Arguments have been checked, and x is dense, where a Function gets it.
"""

from math import prod

import torch
from torch import Tensor
from torch.autograd import Function

from se_fused import max_passes, ops
from se_fused.backends import eager
from se_fused.tracing import (
    any_requires_grad,
    eager_gradients,
    needs_double_backward,
    must_decompose,
    without_autocast,
)
from se_fused.excitation import (
    excitation_gradient,
    excite,
    first_layer,
    gates,
    call_gate_hook,
    squeeze_gradient,
    weight_gradient,
)
from se_fused.memory_format import to_dense

SQUEEZES = ("avg", "max", "avg_max", "concat")


def squeeze(x: Tensor, kind: str) -> Tensor:
    """z, [N, C] or [N, 2C]"""
    if must_decompose():
        return _joined(*max_passes.squeeze_max(x), kind)
    return _joined(*_SqueezeMax.apply(to_dense(x)), kind)


def squeeze_excite(x, w1, b1, w2, b2, act: str, gate: str, kind: str, on_gate=None) -> Tensor:
    arguments = w1, b1, w2, b2, act, gate, kind, on_gate
    with without_autocast(x):
        if must_decompose():
            return _plain(x, *arguments)
        x = to_dense(x)
        if torch.is_grad_enabled() and any_requires_grad(x, w1, b1, w2, b2):
            return _SqueezeExciteMax.apply(x, *arguments)
        return _forward(x, *arguments)[0]


class _SqueezeMax(Function):
    @staticmethod
    def forward(ctx, x):
        mean, m = ops.squeeze_max(x)
        ctx.save_for_backward(x, m)
        return mean, m

    @staticmethod
    def backward(ctx, dmean, dm):
        return max_passes.squeeze_max_backward(dmean, dm, *ctx.saved_tensors)


class _SqueezeExciteMax(Function):
    @staticmethod
    def forward(ctx, x, w1, b1, w2, b2, act, gate, kind, on_gate):
        y, *kept = _forward(x, w1, b1, w2, b2, act, gate, kind, on_gate)
        ctx.save_for_backward(x, w1, b1, w2, b2, *kept)
        ctx.options = act, gate, kind
        return y

    @staticmethod
    def backward(ctx, dy):
        x, w1, b1, w2, b2, z, m, p1, g = ctx.saved_tensors
        act, gate, kind = ctx.options
        with without_autocast(dy):
            if needs_double_backward(dy):
                forward = lambda *tensors: _plain(*tensors, act, gate, kind)
                inputs = x, w1, b1, w2, b2
                return *eager_gradients(ctx, forward, inputs, dy), *[None] * 4
            need_x, need_w1, need_b1, need_w2, need_b2 = ctx.needs_input_grad[:5]
            if need_x:
                dg, ties = ops.gate_gradient_max(dy, x, m)
            else:
                dg = ops.gate_gradient(dy, x)
            dp1, h, dp2 = excitation_gradient(dg, z, g, w1, b1, w2, act, gate, p1)
            dx = None
            if need_x:
                dmean, dm = _apart(squeeze_gradient(dp1, w1), kind)
                dx = ops.rescale_backward_max(
                    dy, x, g, dmean / prod(x.shape[2:]), m, dm / ties
                )
            return (
                dx,
                weight_gradient(dp1, z, w1) if need_w1 else None,
                dp1.sum(0).to(b1.dtype) if need_b1 else None,
                weight_gradient(dp2, h, w2) if need_w2 else None,
                dp2.sum(0).to(b2.dtype) if need_b2 else None,
                *[None] * 4,
            )


def _forward(
    x, w1, b1, w2, b2, act, gate, kind, on_gate
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """y, z, m, p1 and g"""
    mean, m = ops.squeeze_max(x)
    z = _joined(mean, m, kind)
    p1 = first_layer(z, w1, b1)
    g = gates(p1, w2, b2, act, gate)
    return call_gate_hook(ops.rescale(x, g), g, on_gate), z, m, p1, g


def _plain(x, w1, b1, w2, b2, act, gate, kind, on_gate=None) -> Tensor:
    z = _joined(*max_passes.squeeze_max(x), kind)
    g = excite(z, w1, b1, w2, b2, act, gate)
    return call_gate_hook(eager.rescale(x, g), g, on_gate)


def _joined(mean: Tensor, m: Tensor, kind: str) -> Tensor:
    """z"""
    if kind == "max":
        return m
    return 0.5 * mean + 0.5 * m if kind == "avg_max" else torch.cat([mean, m], 1)


def _apart(dz: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """dmean and dm"""
    if kind == "max":
        return torch.zeros_like(dz), dz
    if kind == "avg_max":
        return 0.5 * dz, 0.5 * dz
    return dz.chunk(2, 1)
