"""The end of a residual block as differentiable functions: BatchNorm, SE, addition, ReLU at once.

Formulas and letters in ``se_fused/backends/__init__.py``; the gradients follow from y as written
there, with the statistics of the batch depending on x (Ioffe and Szegedy, arXiv 1502.03167).
"""

from collections.abc import Callable
from math import prod
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from se_fused import between, checks, ops, statistics
from se_fused.activations import ACTS, FUNCTIONS, GATES, NORM_ACTS, POST_ACTS
from se_fused.backends import eager
from se_fused.differentiation import (
    any_requires_grad,
    eager_gradients,
    is_taken_apart,
    needs_plain_operators,
    weight_gradient,
    without_autocast,
)
from se_fused.excitation import observed
from se_fused.layout import acc_dtype, dense, like
from se_fused.passes import unpack
from se_fused.statistics import Statistics


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
    checks.feature_map(x, "x")
    options = _Options(act=act, gate=gate, post_act=post_act, on_gate=on_gate)
    return _tail(x, residual, None, None, (w1, b1, w2, b2), options)


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
    checks.feature_map(x, "x")
    running = running_mean, running_var
    if not torch.jit.is_tracing():
        checks.normalization(x, *running, weight, bias, training)
    checks.choice(norm_act, NORM_ACTS, "norm_act")
    if process_group is not None and not (training and dist.get_world_size(process_group) > 1):
        process_group = None
    if training and process_group is None and not torch.jit.is_tracing():
        checks.batch(x)
    options = _Options(
        norm_act, act, gate, post_act, training, momentum, eps, process_group, on_gate
    )
    return _tail(x, residual, running, (weight, bias), (w1, b1, w2, b2), options)


class _Options(NamedTuple):
    norm_act: str = "identity"
    act: str = "relu"
    gate: str = "sigmoid"
    post_act: str = "relu"
    training: bool = False
    momentum: float = 0.0
    eps: float = 0.0
    group: object = None
    on_gate: Callable[[Tensor], None] | None = None

    @property
    def has_relu(self) -> bool:
        return self.post_act == "relu"


def _tail(x, residual, running, affine, weights, options: _Options) -> Tensor:
    """running and affine are None where there is no BatchNorm."""
    is_plain = needs_plain_operators()
    if not is_plain or not torch.jit.is_tracing():  # sizes are tensors there; comparing them warns
        checks.weights(x, *weights)
        if residual is not None:
            checks.alike(residual, "residual", x)
    checks.choice(options.act, ACTS, "act")
    checks.choice(options.gate, GATES, "gate")
    checks.choice(options.post_act, POST_ACTS, "post_act")
    with without_autocast(x):
        if is_plain:
            if options.group is not None:
                raise RuntimeError("synchronised statistics cannot be exported or transformed")
            return _plain(x, residual, running, affine, weights, options)
        x = dense(x)
        weight, bias = affine or (None, None)
        planes, norm = None, (None, None, None)
        if running is not None:
            with torch.no_grad():
                planes, norm = _statistics(x, running, options)
        arguments = x, residual, weight, bias, *weights, planes, *norm, options
        if torch.is_grad_enabled() and any_requires_grad(x, residual, weight, bias, *weights):
            return _Tail.apply(*arguments)
        *arguments, _, options = arguments
        return _forward(*arguments, options)[0]


def _statistics(x, running, options) -> tuple[Tensor | None, Statistics]:
    """The mean of each plane if a pass over x found it, and what x is normalized with."""
    acc = acc_dtype(x.dtype)
    if not options.training:
        mean, var = (t.to(acc) for t in running)
        return None, Statistics(mean, var, 0)
    planes, m2 = ops.moments(x)
    positions = prod(x.shape[2:])
    count = x.shape[0] * positions
    if count:
        batch = Statistics(*_between(x).merge_moments(planes, m2, positions), count)
    else:
        batch = Statistics(*planes.new_zeros(2, x.shape[1]), 0)
    if options.group is not None:
        batch = statistics.over_processes(*batch, options.group)
    if running[0] is not None:
        statistics.update_running(*running, batch, options.momentum)
    return planes, batch


def _between(x: Tensor):
    """Who computes what lies between the passes."""
    return ops if x.is_cpu else between


def _forward(x, residual, weight, bias, w1, b1, w2, b2, planes, center, var, options):
    """y, the mask, scale and shift, the planes' means (or z), z, p1 and g"""
    scale = shift = None
    if center is not None:
        rstd = (var + options.eps).rsqrt()
        scale = rstd if weight is None else weight.to(rstd.dtype) * rstd
        shift = torch.zeros_like(rstd) if bias is None else bias.to(rstd.dtype)
    norm = center, scale, shift
    if center is not None and options.norm_act != "identity":
        planes = ops.norm_squeeze(x, *norm, options.norm_act)
        own_norm = None, None, None
    else:
        planes = ops.squeeze(x) if planes is None else planes
        own_norm = norm
    z, p1, g = _between(x).norm_excite(
        planes, *own_norm, w1, b1, w2, b2, options.act, options.gate
    )
    if own_norm[0] is None:
        z = planes
    if residual is not None:
        residual = like(residual, x)
    y, mask = ops.norm_rescale(x, residual, *norm, g, options.norm_act, options.has_relu)
    y = observed(y, g, options.on_gate)
    return y, mask if options.has_relu else None, scale, shift, planes, z, p1, g


class _Tail(Function):
    @staticmethod
    def forward(ctx, x, residual, weight, bias, w1, b1, w2, b2, planes, mean, var, count, options):
        y, *kept = _forward(x, residual, weight, bias, w1, b1, w2, b2, planes, mean, var, options)
        ctx.save_for_backward(x, weight, bias, w1, b1, w2, b2, mean, var, *kept)
        ctx.adds, ctx.count, ctx.options = residual is not None, count, options
        return y

    @staticmethod
    def backward(ctx, dy):
        x, weight, bias, w1, b1, w2, b2, center, var, *kept = ctx.saved_tensors
        mask, scale, shift, planes, z, p1, g = kept
        options = ctx.options
        with without_autocast(dy):
            if is_taken_apart(dy):
                return _differentiable(ctx, dy)
            dy = like(dy, x)
            need_x, need_residual, *need_affine = ctx.needs_input_grad[:4]
            norm = center, scale, shift
            sums = ops.norm_sums(dy, x, mask, *norm, options.norm_act)
            dp1, h, dp2, share, of_shift, of_scale = _between(x).norm_excite_backward(
                sums, planes, *norm, p1, g, w1, w2, options.act, options.gate,
                prod(x.shape[2:]),
            )  # fmt: skip
            dweight = dbias = slope = offset = None
            if center is not None:
                rstd = (var + options.eps).rsqrt()
                dweight = (of_scale * rstd).to(weight.dtype) if need_affine[0] else None
                dbias = of_shift.to(bias.dtype) if need_affine[1] else None
                if options.training:
                    slope, offset = _through_statistics(ctx, of_shift, of_scale, scale, rstd)
            dx = dr = None
            write_dr = need_residual and mask is not None
            if need_x:
                dx, dr = ops.norm_rescale_backward(
                    dy, x, mask, *norm, g, share, slope, offset, options.norm_act, write_dr
                )
            elif write_dr:
                dr = torch.where(unpack(mask, dy), dy, 0)
            need_w1, need_b1, need_w2, need_b2 = ctx.needs_input_grad[4:8]
            return (
                dx,
                (dr if write_dr else dy) if need_residual else None,
                dweight,
                dbias,
                weight_gradient(dp1, z, w1) if need_w1 else None,
                dp1.sum(0).to(b1.dtype) if need_b1 else None,
                weight_gradient(dp2, h, w2) if need_w2 else None,
                dp2.sum(0).to(b2.dtype) if need_b2 else None,
                *[None] * 5,
            )


def _through_statistics(ctx, of_shift, of_scale, scale, rstd) -> tuple[Tensor, Tensor]:
    """slope and offset: what dx gets because mean and variance are x's own."""
    if ctx.options.group is not None:
        both = torch.stack([of_shift, of_scale])
        dist.all_reduce(both, group=ctx.options.group)
        of_shift, of_scale = both
    share = scale / -ctx.count
    return share * rstd.square() * of_scale, share * of_shift


def _plain(x, residual, running, affine, weights, options) -> Tensor:
    """The same of PyTorch's own operators."""
    if running is not None:
        x = F.batch_norm(x, *running, *affine, options.training, options.momentum, options.eps)
    x = FUNCTIONS[options.norm_act](x)
    y, _, g = eager.squeeze_excite(x, *weights, options.act, options.gate)
    y = observed(y, g, options.on_gate)
    y = y if residual is None else y + residual
    return y.relu() if options.has_relu else y


def _differentiable(ctx, dy):
    """Gradients that are themselves differentiable. They do not depend on the residual's values."""
    x, weight, bias, w1, b1, w2, b2, mean, var, mask, *_ = ctx.saved_tensors
    options = ctx.options
    if options.group is not None:
        raise RuntimeError("synchronised statistics cannot be differentiated twice")
    running = None
    if mean is not None:
        dtype = acc_dtype(x.dtype) if weight is None else weight.dtype
        running = (None, None) if options.training else (mean.to(dtype), var.to(dtype))
    passes = None if mask is None else unpack(mask, x)
    linear = options._replace(post_act="identity", on_gate=None)

    def forward(x, residual, weight, bias, *weights):
        y = _plain(x, residual, running, (weight, bias), weights, linear)
        return y if passes is None else torch.where(passes, y, 0)

    residual = torch.zeros_like(x, requires_grad=True) if ctx.adds else None
    inputs = x, residual, weight, bias, w1, b1, w2, b2
    return *eager_gradients(ctx, forward, inputs, dy), *[None] * 5
