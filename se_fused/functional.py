"""Squeeze-and-excitation as differentiable functions: argument checks and autograd.

Source of the formulas: Hu et al., "Squeeze-and-Excitation Networks", arXiv 1709.01507, eq. 2-4;
written out with their gradients in ``se_fused/backends/__init__.py``.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import Function

from se_fused import validation, maximum, ops
from se_fused.activations import ACTS, GATES
from se_fused.backends import eager
from se_fused.tracing import (
    any_requires_grad,
    eager_gradients,
    needs_double_backward,
    must_decompose,
    without_autocast,
)
from se_fused.excitation import excitation_gradient, call_gate_hook, weight_gradient
from se_fused.memory_format import acc_dtype, to_dense, match_memory_format
from se_fused.maximum import SQUEEZES


def squeeze_excite(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    *,
    act: str = "relu",
    gate: str = "sigmoid",
    squeeze: str = "avg",
    on_gate: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """The whole block: ``x * gate(F.linear(act(F.linear(x.mean(spatial), w1, b1)), w2, b2))``.

    Args:
        x: feature map ``[N, C]`` to ``[N, C, D, H, W]``; float64, float32, bfloat16 or float16.
            contiguous and channels_last are native; any other stride pattern is copied once.
        w1, b1: first layer, ``[R, C]`` (or ``[R, C, 1, 1]``) and ``[R]`` or None; ``[R, 2C]`` where
            the squeeze is concat.
        w2, b2: second layer, ``[C, R]`` (or ``[C, R, 1, 1]``) and ``[C]`` or None.
            Parameters have x's dtype, or float32 where x is bfloat16 or float16.
        act: identity, relu, silu, hardswish, leaky_relu (slope 0.01) or gelu (exact).
        gate: identity, relu, sigmoid, hardsigmoid or tanh.
        squeeze: avg, the mean; max, ``x.amax(spatial)``; avg_max, half the mean plus half the
            maximum; concat, ``torch.cat([mean, maximum], 1)``. A maximum that several positions
            share passes its gradient to them in equal parts, as torch.amax does.
        on_gate: called with the gates of this call, ``[N, C]``, detached, float32 (float64 for
            float64), which are not to be written to.

    Returns:
        A tensor with x's shape, dtype and layout. Sums and the excitation are computed in float32
        (float64 for float64). Differentiable twice with respect to every tensor.

    Raises:
        TypeError, ValueError: a wrong argument, by name, before anything is computed; the maximum
            of no positions.

    Source: Hu et al., arXiv 1709.01507, eq. 2-4; table 11 for the maximum.
    """
    validation.feature_map(x, "x")
    validation.choice(squeeze, SQUEEZES, "squeeze")
    is_plain = must_decompose()
    if not is_plain or not torch.jit.is_tracing():  # sizes are tensors there; comparing them warns
        validation.weights(x, w1, b1, w2, b2, squeeze)
        if squeeze != "avg":
            validation.positions(x)
    validation.choice(act, ACTS, "act")
    validation.choice(gate, GATES, "gate")
    if squeeze != "avg":
        return maximum.squeeze_excite(x, w1, b1, w2, b2, act, gate, squeeze, on_gate)
    if is_plain:
        with without_autocast(x):
            y, _, g = eager.squeeze_excite(x, w1, b1, w2, b2, act, gate)
        return call_gate_hook(y, g, on_gate)
    x = to_dense(x)
    if torch.is_grad_enabled() and any_requires_grad(x, w1, b1, w2, b2):
        return _SqueezeExcite.apply(x, w1, b1, w2, b2, act, gate, on_gate)
    y, _, g = ops.squeeze_excite(x, w1, b1, w2, b2, act, gate)
    return call_gate_hook(y, g, on_gate)


def squeeze(x: Tensor, kind: str = "avg") -> Tensor:
    """The mean of each channel: ``x.mean(spatial, dtype=torch.float32)``, ``[N, C]``.

    For excitations that ``squeeze_excite`` does not know: compute the gate from the result, then
    ``rescale``. x as in ``squeeze_excite``; the result is float32 (float64 for float64). kind is
    what ``squeeze_excite`` calls squeeze: avg, max, avg_max, or concat, ``[N, 2C]``.

    Source: Hu et al., arXiv 1709.01507, eq. 2; table 11 for the maximum.
    """
    validation.feature_map(x, "x")
    validation.choice(kind, SQUEEZES, "kind")
    if kind != "avg":
        if not torch.jit.is_tracing():
            validation.positions(x)
        return maximum.squeeze(x, kind)
    return eager.squeeze(x) if must_decompose() else _Squeeze.apply(to_dense(x))


def rescale(x: Tensor, gate: Tensor) -> Tensor:
    """Each channel times its gate: ``x * gate[:, :, None, None]``, in x's dtype and layout.

    Args:
        x: as in ``squeeze_excite``.
        gate: ``[N, C]``, or ``[N, C, 1, 1]`` with any number of trailing dims of size 1; x's dtype,
            or float32 where x is bfloat16 or float16. Its gradient has its dtype and shape.

    Source: Hu et al., arXiv 1709.01507, eq. 4.
    """
    validation.feature_map(x, "x")
    is_plain = must_decompose()
    if not is_plain or not torch.jit.is_tracing():
        validation.beside(gate, "gate", x, (x.shape[0], x.shape[1]), x.dtype, x.device)
    if is_plain:
        return eager.rescale(x, _acc_gate(gate, x))
    return _Rescale.apply(to_dense(x), gate)


class _SqueezeExcite(Function):
    @staticmethod
    def forward(ctx, x, w1, b1, w2, b2, act, gate, on_gate):
        y, z, g = ops.squeeze_excite(x, w1, b1, w2, b2, act, gate)
        ctx.save_for_backward(x, z, g, w1, b1, w2, b2)
        ctx.act, ctx.gate = act, gate
        return call_gate_hook(y, g, on_gate)

    @staticmethod
    def backward(ctx, dy):
        x, z, g, w1, b1, w2, b2 = ctx.saved_tensors
        with without_autocast(dy):
            if needs_double_backward(dy):
                forward = lambda x, w1, b1, w2, b2: eager.squeeze_excite(
                    x, w1, b1, w2, b2, ctx.act, ctx.gate
                )[0]
                return *eager_gradients(ctx, forward, (x, w1, b1, w2, b2), dy), *[None] * 3
            need_x, need_w1, need_b1, need_w2, need_b2, *_ = ctx.needs_input_grad
            if need_x:
                dx, dp1, h, dp2 = ops.squeeze_excite_backward(
                    dy, x, z, g, w1, b1, w2, b2, ctx.act, ctx.gate
                )
            else:
                dx, dg = None, ops.gate_gradient(dy, x)
                dp1, h, dp2 = excitation_gradient(dg, z, g, w1, b1, w2, ctx.act, ctx.gate)
            return (
                dx,
                weight_gradient(dp1, z, w1) if need_w1 else None,
                dp1.sum(0).to(b1.dtype) if need_b1 else None,
                weight_gradient(dp2, h, w2) if need_w2 else None,
                dp2.sum(0).to(b2.dtype) if need_b2 else None,
                *[None] * 3,
            )


class _Squeeze(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.shape, ctx.dtype = x.shape, x.dtype
        return ops.squeeze(x)

    @staticmethod
    def backward(ctx, dz):
        spatial = ctx.shape[2:]
        share = (dz / max(spatial.numel(), 1)).to(ctx.dtype)
        return share.reshape(dz.shape + (1,) * len(spatial)).expand(ctx.shape)


class _Rescale(Function):
    @staticmethod
    def forward(ctx, x, gate):
        ctx.save_for_backward(x, gate)
        return ops.rescale(x, _acc_gate(gate, x))

    @staticmethod
    def backward(ctx, dy):
        x, gate = ctx.saved_tensors
        if needs_double_backward(dy):
            forward = lambda x, gate: eager.rescale(x, _acc_gate(gate, x))
            with without_autocast(dy):
                return eager_gradients(ctx, forward, (x, gate), dy)
        need_x, need_gate = ctx.needs_input_grad
        if not need_gate:
            return ops.rescale(match_memory_format(dy, x), _acc_gate(gate, x)), None
        if need_x:
            dx, dg = ops.rescale_backward(dy, x, _acc_gate(gate, x))
        else:
            dx, dg = None, ops.gate_gradient(dy, x)
        return dx, dg.to(gate.dtype).view(gate.shape)


def _acc_gate(gate: Tensor, x: Tensor) -> Tensor:
    return gate.flatten(1).to(acc_dtype(x.dtype))
