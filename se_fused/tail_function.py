"""The end of a residual block as one autograd Function, as ``tail.py`` calls it.

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

from se_fused import between, ops, statistics
from se_fused.activations import FUNCTIONS
from se_fused.backends import eager
from se_fused.tracing import (
    eager_gradients,
    needs_double_backward,
    without_autocast,
)
from se_fused.excitation import call_gate_hook, weight_gradient
from se_fused.memory_format import acc_dtype, match_memory_format
from se_fused.passes import unpack
from se_fused.statistics import Statistics


class Options(NamedTuple):
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


def statistics_of(x, running, options) -> tuple[Tensor | None, Statistics]:
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


def forward_passes(x, residual, weight, bias, w1, b1, w2, b2, planes, center, var, options):
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
        residual = match_memory_format(residual, x)
    y, mask = ops.norm_rescale(x, residual, *norm, g, options.norm_act, options.has_relu)
    y = call_gate_hook(y, g, options.on_gate)
    return y, mask if options.has_relu else None, scale, shift, planes, z, p1, g


class Tail(Function):
    @staticmethod
    def forward(ctx, x, residual, weight, bias, w1, b1, w2, b2, planes, mean, var, count, options):
        weights = w1, b1, w2, b2
        if mean is not None and not options.training:
            # A training pass before the backward pass overwrites running statistics.
            mean, var = mean.clone(), var.clone()
        y, *kept = forward_passes(x, residual, weight, bias, *weights, planes, mean, var, options)
        ctx.save_for_backward(x, weight, bias, w1, b1, w2, b2, mean, var, *kept)
        ctx.adds, ctx.count, ctx.options = residual is not None, count, options
        return y

    @staticmethod
    def backward(ctx, dy):
        x, weight, bias, w1, b1, w2, b2, center, var, *kept = ctx.saved_tensors
        mask, scale, shift, planes, z, p1, g = kept
        options = ctx.options
        with without_autocast(dy):
            if needs_double_backward(dy):
                return _differentiable(ctx, dy)
            dy = match_memory_format(dy, x)
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
                    slope, offset = _throughstatistics_of(ctx, of_shift, of_scale, scale, rstd)
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


def _throughstatistics_of(ctx, of_shift, of_scale, scale, rstd) -> tuple[Tensor, Tensor]:
    """slope and offset: what dx gets because mean and variance are x's own."""
    if ctx.options.group is not None:
        both = torch.stack([of_shift, of_scale])
        dist.all_reduce(both, group=ctx.options.group)
        of_shift, of_scale = both
    share = scale / -ctx.count
    return share * rstd.square() * of_scale, share * of_shift


def plain(x, residual, running, affine, weights, options) -> Tensor:
    """The same of PyTorch's own operators."""
    if running is not None:
        x = F.batch_norm(x, *running, *affine, options.training, options.momentum, options.eps)
    x = FUNCTIONS[options.norm_act](x)
    y, _, g = eager.squeeze_excite(x, *weights, options.act, options.gate)
    y = call_gate_hook(y, g, options.on_gate)
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
        y = plain(x, residual, running, (weight, bias), weights, linear)
        return y if passes is None else torch.where(passes, y, 0)

    residual = torch.zeros_like(x, requires_grad=True) if ctx.adds else None
    inputs = x, residual, weight, bias, w1, b1, w2, b2
    return *eager_gradients(ctx, forward, inputs, dy), *[None] * 5
