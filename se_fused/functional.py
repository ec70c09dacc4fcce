"""Squeeze-and-excitation as differentiable functions: argument checks and autograd.

Source of the formulas: Hu et al., "Squeeze-and-Excitation Networks", arXiv 1709.01507, eq. 2-4;
written out with their gradients in ``se_fused/backends/__init__.py``.
"""

from contextlib import nullcontext

import torch
from torch import Tensor
from torch.autograd import Function

from se_fused import ops
from se_fused.activations import ACTS, GATES
from se_fused.backends import eager
from se_fused.layout import dense

_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def squeeze_excite(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    *,
    act: str = "relu",
    gate: str = "sigmoid",
) -> Tensor:
    """The whole block: ``x * gate(F.linear(act(F.linear(x.mean(spatial), w1, b1)), w2, b2))``.

    Args:
        x: feature map ``[N, C]`` to ``[N, C, D, H, W]``; float64, float32, bfloat16 or float16.
            contiguous and channels_last are native; any other stride pattern is copied once.
        w1, b1: first layer, ``[R, C]`` (or ``[R, C, 1, 1]``) and ``[R]`` or None.
        w2, b2: second layer, ``[C, R]`` (or ``[C, R, 1, 1]``) and ``[C]`` or None.
            Parameters have x's dtype, or float32 where x is bfloat16 or float16.
        act: identity, relu, silu, hardswish, leaky_relu (slope 0.01) or gelu (exact).
        gate: identity, relu, sigmoid, hardsigmoid or tanh.

    Returns:
        A tensor with x's shape, dtype and layout. Sums and the excitation are computed in float32
        (float64 for float64). Differentiable twice with respect to every tensor.

    Raises:
        TypeError, ValueError: a wrong argument, by name, before anything is computed.

    Source: Hu et al., arXiv 1709.01507, eq. 2-4.
    """
    _check_map(x, "x")
    _check_weights(x, w1, b1, w2, b2)
    _check_choice(act, ACTS, "act")
    _check_choice(gate, GATES, "gate")
    x = dense(x)
    if torch.is_grad_enabled() and _any_requires_grad(x, w1, b1, w2, b2):
        return _SqueezeExcite.apply(x, w1, b1, w2, b2, act, gate)
    return ops.squeeze_excite(x, w1, b1, w2, b2, act, gate)[0]


def squeeze(x: Tensor) -> Tensor:
    """The mean of each channel: ``x.mean(spatial, dtype=torch.float32)``, ``[N, C]``.

    For excitations that ``squeeze_excite`` does not know: compute the gate from the result, then
    ``rescale``. x as in ``squeeze_excite``; the result is float32 (float64 for float64).

    Source: Hu et al., arXiv 1709.01507, eq. 2.
    """
    _check_map(x, "x")
    return _Squeeze.apply(dense(x))


def rescale(x: Tensor, gate: Tensor) -> Tensor:
    """Each channel times its gate: ``x * gate[:, :, None, None]``, in x's dtype and layout.

    Args:
        x: as in ``squeeze_excite``.
        gate: ``[N, C]``, or ``[N, C, 1, 1]`` with any number of trailing dims of size 1; x's dtype,
            or float32 where x is bfloat16 or float16. Its gradient has its dtype and shape.

    Source: Hu et al., arXiv 1709.01507, eq. 4.
    """
    _check_map(x, "x")
    _check_tensor(gate, "gate", x, (x.shape[0], x.shape[1]), x.dtype, x.device)
    return _Rescale.apply(dense(x), gate)


class _SqueezeExcite(Function):
    @staticmethod
    def forward(ctx, x, w1, b1, w2, b2, act, gate):
        y, z, g = ops.squeeze_excite(x, w1, b1, w2, b2, act, gate)
        ctx.save_for_backward(x, z, g, w1, b1, w2, b2)
        ctx.act, ctx.gate = act, gate
        return y

    @staticmethod
    def backward(ctx, dy):
        x, z, g, w1, b1, w2, b2 = ctx.saved_tensors
        with _without_autocast(dy):
            if torch.is_grad_enabled():
                forward = lambda x, w1, b1, w2, b2: eager.squeeze_excite(
                    x, w1, b1, w2, b2, ctx.act, ctx.gate
                )[0]
                return *_eager_gradients(ctx, forward, (x, w1, b1, w2, b2), dy), None, None
            dx, dp1, h, dp2 = ops.squeeze_excite_backward(
                dy, x, z, g, w1, b1, w2, b2, ctx.act, ctx.gate
            )
            _, need_w1, need_b1, need_w2, need_b2, _, _ = ctx.needs_input_grad
            return (
                dx,
                _weight_gradient(dp1, z, w1) if need_w1 else None,
                dp1.sum(0).to(b1.dtype) if need_b1 else None,
                _weight_gradient(dp2, h, w2) if need_w2 else None,
                dp2.sum(0).to(b2.dtype) if need_b2 else None,
                None,
                None,
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
        if torch.is_grad_enabled():
            forward = lambda x, gate: eager.rescale(x, _acc_gate(gate, x))
            with _without_autocast(dy):
                return _eager_gradients(ctx, forward, (x, gate), dy)
        dx, dg = ops.rescale_backward(dy, x, _acc_gate(gate, x))
        return dx, dg.to(gate.dtype).view(gate.shape)


def _any_requires_grad(*tensors: Tensor | None) -> bool:
    return any([t is not None and t.requires_grad for t in tensors])


def _acc_gate(gate: Tensor, x: Tensor) -> Tensor:
    return gate.flatten(1).to(torch.promote_types(x.dtype, torch.float32))


def _without_autocast(t: Tensor):
    """The accumulator's matmuls stay in its dtype, also in a backward pass inside autocast."""
    kind = t.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def _weight_gradient(dp: Tensor, inputs: Tensor, weight: Tensor) -> Tensor:
    """dpᵀ · inputs, in the weight's shape and dtype."""
    return (dp.t() @ inputs).to(weight.dtype).view(weight.shape)


def _eager_gradients(ctx, forward, inputs, dy):
    """Gradients that are themselves differentiable, from the eager formulas (double backward)."""
    # Aliases: a gradient must not run on into the history that one input may share with another.
    aliases = [t if t is None else t.view_as(t) for t in inputs]
    wanted = [t for t, needed in zip(aliases, ctx.needs_input_grad) if needed]
    found = iter(torch.autograd.grad(forward(*aliases), wanted, dy, create_graph=True))
    return tuple(next(found) if needed else None for needed in ctx.needs_input_grad[: len(inputs)])


def _check_map(x: Tensor, name: str):
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    if x.dtype not in _DTYPES:
        raise TypeError(
            f"{name} must be float64, float32, bfloat16 or float16, got {_short(x.dtype)}"
        )
    if not 2 <= x.dim() <= 5:
        raise ValueError(
            f"{name} must have 2 to 5 dims, [N, C] and up to three spatial ones, "
            f"got shape {tuple(x.shape)}"
        )


def _check_weights(x, w1, b1, w2, b2):
    channels = x.shape[1]
    if not isinstance(w1, Tensor):
        raise TypeError(f"w1 must be a tensor, got {type(w1).__name__}")
    hidden = w1.shape[0] if w1.dim() else 0
    if hidden == 0:
        raise ValueError(f"w1 must have a hidden unit, [R, C] with R >= 1, got {tuple(w1.shape)}")
    dtype, device = x.dtype, x.device
    _check_tensor(w1, "w1", x, (hidden, channels), dtype, device)
    _check_tensor(w2, "w2", x, (channels, hidden), dtype, device)
    if b1 is not None:
        _check_tensor(b1, "b1", x, (hidden,), dtype, device)
    if b2 is not None:
        _check_tensor(b2, "b2", x, (channels,), dtype, device)


def _check_tensor(t: Tensor, name: str, x: Tensor, shape: tuple, dtype, device):
    """t is [*shape, 1, 1, …], on x's device, of x's dtype or float32 beside a 16-bit x."""
    if not isinstance(t, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(t).__name__}")
    given = t.shape
    if given != shape and given != shape + (1,) * (len(given) - len(shape)):
        raise ValueError(
            f"{name} must have shape {shape}, trailing dims of size 1 allowed, "
            f"for x of shape {tuple(x.shape)}; got {tuple(given)}"
        )
    if t.dtype != dtype and t.dtype != torch.promote_types(dtype, torch.float32):
        raise TypeError(
            f"{name} must be {_short(dtype)} like x"
            f"{' or float32' if dtype.itemsize == 2 else ''}, got {_short(t.dtype)}"
        )
    if t.device != device:
        raise ValueError(f"{name} must be on {device} like x, got {t.device}")


def _check_choice(value: str, accepted: tuple, name: str):
    if value not in accepted:
        raise ValueError(f"{name} must be one of {', '.join(accepted)}, got {value!r}")


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
