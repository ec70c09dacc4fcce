"""Squeeze-and-excitation as differentiable functions: what they take, and their argument checks.

Source of the formulas: Hu et al., "Squeeze-and-Excitation Networks", arXiv 1709.01507, eq. 2-4;
written out with their gradients in ``se_fused/backends/README.md``.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from se_fused import autograd, validation
from se_fused.activations import ACTS, GATES, NORM_ACTS, POST_ACTS
from se_fused.autograd import SQUEEZES, Options
from se_fused.backends import reference
from se_fused.memory_format import to_dense
from se_fused.tracing import must_decompose


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
    options, weights = Options(act, gate, squeeze, on_gate), (w1, b1, w2, b2)
    _check(x, None, weights, options)
    return autograd.squeeze_excite(x, None, None, None, weights, options)


def squeeze(x: Tensor, kind: str = "avg") -> Tensor:
    """The mean of each channel: ``x.mean(spatial, dtype=torch.float32)``, ``[N, C]``.

    For excitations that ``squeeze_excite`` does not know: compute the gate from the result, then
    ``rescale``. x as in ``squeeze_excite``; the result is float32 (float64 for float64). kind is
    what ``squeeze_excite`` calls squeeze: avg, max, avg_max, or concat, ``[N, 2C]``.

    Source: Hu et al., arXiv 1709.01507, eq. 2; table 11 for the maximum.
    """
    validation.feature_map(x, "x")
    validation.choice(kind, SQUEEZES, "kind")
    if kind != "avg" and not torch.jit.is_tracing():
        validation.positions(x)
    if must_decompose():
        return reference.squeeze(x, kind)
    if kind == "avg":
        return autograd.Squeeze.apply(to_dense(x), "mean")
    return reference.combine(*autograd.Squeeze.apply(to_dense(x), "max"), kind)


def rescale(x: Tensor, gate: Tensor) -> Tensor:
    """Each channel times its gate: ``x * gate[:, :, None, None]``, in x's dtype and layout.

    Args:
        x: as in ``squeeze_excite``.
        gate: ``[N, C]``, or ``[N, C, 1, 1]`` with any number of trailing dims of size 1; x's dtype,
            or float32 where x is bfloat16 or float16. Its gradient has its dtype and shape.

    Source: Hu et al., arXiv 1709.01507, eq. 4.
    """
    validation.feature_map(x, "x")
    if not torch.jit.is_tracing():
        validation.beside(gate, "gate", x, (x.shape[0], x.shape[1]), x.dtype, x.device)
    if must_decompose():
        return reference.rescale(x, autograd.acc_gate(gate, x))
    return autograd.Rescale.apply(to_dense(x), gate)


def squeeze_excite_add_act(
    x: Tensor,
    residual: Tensor | None,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    *,
    act: str = "relu",
    gate: str = "sigmoid",
    post_act: str = "relu",
    on_gate: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """``F.relu(squeeze_excite(x, w1, b1, w2, b2) + residual)``, in 9 passes instead of 21.

    Args:
        x, w1, b1, w2, b2, act, gate, on_gate: as ``squeeze_excite`` takes them.
        residual: like x, in any layout (one that is not x's is copied); None adds nothing.
        post_act: relu, or identity for none.

    Kept for the backward pass: x, one bit per element, and tensors of [N, C].

    Source: Hu et al., arXiv 1709.01507, figure 3.
    """
    validation.feature_map(x, "x")
    options, weights = Options(act, gate, "avg", on_gate, post_act), (w1, b1, w2, b2)
    _check(x, residual, weights, options)
    return autograd.squeeze_excite(x, residual, None, None, weights, options)


def batch_norm_squeeze_excite(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    *,
    residual: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    norm_act: str = "identity",
    act: str = "relu",
    gate: str = "sigmoid",
    post_act: str = "identity",
    process_group=None,
    on_gate: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """BatchNorm, SE, addition and ReLU at once, in 10 passes instead of 29::

        x = F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
        y = squeeze_excite(norm_act(x), w1, b1, w2, b2, act=act, gate=gate)
        y = post_act(y + residual)

    Args:
        x, w1, b1, w2, b2, act, gate, on_gate: as ``squeeze_excite`` takes them.
        running_mean, running_var, weight, bias: ``[C]`` or None, as ``F.batch_norm`` takes them;
            x's dtype, or float32 where x is bfloat16 or float16. In training the running
            statistics, where given, are updated in place.
        residual: like x, in any layout (one that is not x's is copied); None adds nothing.
        norm_act: identity, relu, silu or hardswish.
        post_act: identity or relu.
        process_group: a ``torch.distributed`` group over which training takes its statistics, as
            ``nn.SyncBatchNorm`` does.

    Kept for the backward pass: x, one bit per element with a ReLU, and tensors of [N, C]. Twice
    differentiable, except with a process group.

    Raises:
        TypeError, ValueError: a wrong argument, by name, before anything is computed; in training
            a batch of one value per channel.

    Source: Hu et al., arXiv 1709.01507, figures 2 and 3; Ioffe and Szegedy, arXiv 1502.03167.
    """
    validation.feature_map(x, "x")
    running = running_mean, running_var
    if not torch.jit.is_tracing():
        validation.normalization(x, *running, weight, bias, training)
    validation.choice(norm_act, NORM_ACTS, "norm_act")
    if process_group is not None and not (training and dist.get_world_size(process_group) > 1):
        process_group = None
    if training and process_group is None and not torch.jit.is_tracing():
        validation.batch(x)
    options = Options(
        act, gate, "avg", on_gate, post_act, norm_act, training, momentum, eps, process_group
    )
    weights = w1, b1, w2, b2
    _check(x, residual, weights, options)
    return autograd.squeeze_excite(x, residual, running, (weight, bias), weights, options)


def _check(x, residual, weights, options: Options):
    if not torch.jit.is_tracing():  # sizes are tensors there; comparing them warns
        validation.weights(x, *weights, options.squeeze)
        if options.squeeze != "avg":
            validation.positions(x)
        if residual is not None:
            validation.alike(residual, "residual", x)
    validation.choice(options.act, ACTS, "act")
    validation.choice(options.gate, GATES, "gate")
    validation.choice(options.post_act, POST_ACTS, "post_act")
