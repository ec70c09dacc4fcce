"""The block, the squeeze and the rescale as autograd Functions, as ``functional.py`` calls them.

Formulas and letters in ``se_fused/backends/README.md``; the gradients follow from y as written
there. Arguments have been checked.
"""

from collections.abc import Callable
from contextlib import nullcontext
from math import prod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from se_fused import batch_norm, ops
from se_fused.activations import FUNCTIONS
from se_fused.backends import reference
from se_fused.memory_format import acc_dtype, match_memory_format, to_dense, unpack
from se_fused.tracing import must_decompose, needs_double_backward, without_autocast

SQUEEZES = ("avg", "max", "avg_max", "concat")


class Options(NamedTuple):
    """The parts of ``post_act(squeeze_excite(norm_act(norm(x))) + residual)`` that are no tensors;
    those after post_act are of the norm."""

    act: str = "relu"
    gate: str = "sigmoid"
    squeeze: str = "avg"
    on_gate: Callable[[Tensor], None] | None = None
    post_act: str = "identity"
    norm_act: str = "identity"
    training: bool = False
    momentum: float = 0.0
    eps: float = 0.0
    group: object = None


class Kept(NamedTuple):
    """What the forward passes find that the backward passes need."""

    z: Tensor  # [N, C], [N, 2C] for concat
    g: Tensor
    p1: Tensor | None = None  # None: the whole block was one operator
    mask: Tensor | None = None  # of the ReLU
    scale: Tensor | None = None  # of the norm
    shift: Tensor | None = None
    mean: Tensor | None = None  # of each plane
    maximum: Tensor | None = None


def squeeze_excite(x, residual, running, affine, weights, options: Options) -> Tensor:
    """The block; running and affine are None without norm."""
    if must_decompose():
        with without_autocast(x):
            return _decomposed(x, residual, running, affine, weights, options)
    # Autocast does not reach the one operator of plain SE.
    is_plain = running is None and options.squeeze == "avg"
    with nullcontext() if is_plain else without_autocast(x):
        x, mean, found = to_dense(x), None, (None, None, 0)
        if running is not None:
            with torch.no_grad():
                mean, found = batch_norm.statistics(
                    x, running, options.training, options.momentum, options.group
                )
        center, var, count = found
        arguments = x, residual, *(affine or (None, None)), *weights
        if torch.is_grad_enabled() and any([t is not None and t.requires_grad for t in arguments]):
            return SqueezeExcite.apply(*arguments, center, var, mean, count, options)
        return _forward(*arguments, center, var, mean, options)[0]


def _forward(
    x, residual, weight, bias, w1, b1, w2, b2, center, var, mean, options
) -> tuple[Tensor, Kept]:
    act, gate, relu = options.act, options.gate, options.post_act == "relu"
    if center is None and options.squeeze == "avg":
        y, mask, z, g = ops.squeeze_excite(x, residual, w1, b1, w2, b2, act, gate, relu)
        kept = Kept(z, g, None, mask if relu else None)
    elif center is None:
        mean, maximum = ops.reduce_forward(x, None, None, None, "identity", "max")
        z = reference.combine(mean, maximum, options.squeeze)
        p1 = reference.first_layer(z, w1, b1)
        g = reference.gates(p1, w2, b2, act, gate)
        y, mask = ops.apply_forward(x, residual, None, None, None, g, "identity", relu)
        kept = Kept(z, g, p1, mask if relu else None, maximum=maximum)
    else:
        rstd = (var + options.eps).rsqrt()
        scale = rstd if weight is None else weight.to(rstd.dtype) * rstd
        shift = torch.zeros_like(rstd) if bias is None else bias.to(rstd.dtype)
        norm = of_mean = center, scale, shift
        if options.norm_act != "identity":
            (mean,) = ops.reduce_forward(x, *norm, options.norm_act, "mean")
            of_mean = None, None, None  # it is z already
        elif mean is None:
            (mean,) = ops.reduce_forward(x, None, None, None, "identity", "mean")
        z, p1, g = ops.excite(mean, *of_mean, w1, b1, w2, b2, act, gate)
        z = mean if of_mean[0] is None else z
        y, mask = ops.apply_forward(x, residual, *norm, g, options.norm_act, relu)
        kept = Kept(z, g, p1, mask if relu else None, scale, shift, mean)
    return call_gate_hook(y, g, options.on_gate), kept


class SqueezeExcite(Function):
    @staticmethod
    def forward(
        ctx, x, residual, weight, bias, w1, b1, w2, b2, center, var, mean, count, options
    ):
        if center is not None and not options.training:
            # A training pass before the backward pass overwrites running statistics.
            center, var = center.clone(), var.clone()
        parameters = weight, bias, w1, b1, w2, b2
        y, kept = _forward(x, residual, *parameters, center, var, mean, options)
        ctx.save_for_backward(x, *parameters, center, var, *kept)
        ctx.has_residual, ctx.count, ctx.options = residual is not None, count, options
        return y

    @staticmethod
    def backward(ctx, dy):
        x, weight, bias, w1, b1, w2, b2, center, var, *kept = ctx.saved_tensors
        z, g, p1, mask, scale, shift, mean, maximum = kept
        options = ctx.options
        act, gate = options.act, options.gate
        need_x, need_residual, *need_affine = ctx.needs_input_grad[:4]
        write_dr = need_residual and mask is not None
        dx = dr = dweight = dbias = None
        with without_autocast(dy):
            if needs_double_backward(dy):
                return _differentiable(ctx, dy)
            if p1 is None and need_x:
                dx, dr, dp1, h, dp2 = ops.squeeze_excite_backward(
                    dy, x, mask, z, g, w1, b1, w2, b2, act, gate, write_dr
                )
            else:
                dy, norm = match_memory_format(dy, x), (center, scale, shift)
                grad_mean = grad_max = slope = offset = None
                sums, _ = ops.reduce_backward(
                    dy, x, mask, *norm, maximum if need_x else None, None, options.norm_act
                )
                if center is not None:
                    dp1, h, dp2, grad_mean, grad_shift, grad_scale = ops.excite_backward(
                        sums, mean, *norm, p1, g, w1, w2, act, gate, prod(x.shape[2:])
                    )
                    rstd = (var + options.eps).rsqrt()
                    dweight = (grad_scale * rstd).to(weight.dtype) if need_affine[0] else None
                    dbias = grad_shift.to(bias.dtype) if need_affine[1] else None
                    if options.training:
                        slope, offset = batch_norm.gradient_through_statistics(
                            grad_shift, grad_scale, scale, rstd, ctx.count, options.group
                        )
                else:
                    if p1 is None:
                        p1 = reference.first_layer(z, w1, b1, reference.product)
                    dp1, h, dp2 = reference.excitation_gradient(sums[0], p1, g, w2, act, gate)
                    if need_x:
                        dz = reference.squeeze_gradient(dp1, w1)
                        grad_mean, grad_max = reference.combine_backward(dz, options.squeeze)
                        if grad_mean is not None:
                            grad_mean = grad_mean / prod(x.shape[2:])
                        grad_max = grad_max / sums[1]
                if need_x:
                    dx, dr = ops.apply_backward(
                        dy, x, mask, *norm, g, grad_mean, maximum, grad_max, slope, offset,
                        options.norm_act, write_dr,
                    )  # fmt: skip
                elif write_dr:
                    dr = torch.where(unpack(mask, dy), dy, 0)
            if need_residual and not write_dr:
                dr = dy
            need_w1, need_b1, need_w2, need_b2 = ctx.needs_input_grad[4:8]
            return (
                dx,
                dr if need_residual else None,
                dweight,
                dbias,
                reference.weight_gradient(dp1, z, w1) if need_w1 else None,
                dp1.sum(0).to(b1.dtype) if need_b1 else None,
                reference.weight_gradient(dp2, h, w2) if need_w2 else None,
                dp2.sum(0).to(b2.dtype) if need_b2 else None,
                *[None] * 5,
            )


def _decomposed(x, residual, running, affine, weights, options: Options) -> Tensor:
    """The block of PyTorch's own operators."""
    if options.group is not None:
        raise RuntimeError("synchronised statistics cannot be exported or transformed")
    if running is not None:
        x = F.batch_norm(x, *running, *affine, options.training, options.momentum, options.eps)
    x = FUNCTIONS[options.norm_act](x)
    y, g = reference.squeeze_excite_map(x, *weights, options.act, options.gate, options.squeeze)
    y = call_gate_hook(y, g, options.on_gate)
    y = y if residual is None else y + residual
    return y.relu() if options.post_act == "relu" else y


def _differentiable(ctx, dy):
    """Gradients that are themselves differentiable. They do not depend on the residual's values."""
    x, weight, bias, w1, b1, w2, b2, center, var, *kept = ctx.saved_tensors
    options, mask = ctx.options, Kept(*kept).mask
    if options.group is not None:
        raise RuntimeError("synchronised statistics cannot be differentiated twice")
    running = None
    if center is not None:
        dtype = acc_dtype(x.dtype) if weight is None else weight.dtype
        running = (None, None) if options.training else (center.to(dtype), var.to(dtype))
    passes = None if mask is None else unpack(mask, x)
    linear = options._replace(post_act="identity", on_gate=None)

    def forward(x, residual, weight, bias, *weights):
        y = _decomposed(x, residual, running, (weight, bias), weights, linear)
        return y if passes is None else torch.where(passes, y, 0)

    residual = torch.zeros_like(x, requires_grad=True) if ctx.has_residual else None
    inputs = x, residual, weight, bias, w1, b1, w2, b2
    return *_gradients(ctx, forward, inputs, dy), *[None] * 5


class Squeeze(Function):
    """The mean, and the maximum where the statistic is max; each [N, C]."""

    @staticmethod
    def forward(ctx, x, statistic):
        # Copies, since a view may not be changed in place.
        mean, *maximum = (
            t.clone() for t in ops.reduce_forward(x, None, None, None, "identity", statistic)
        )
        ctx.shape, ctx.dtype = x.shape, x.dtype
        ctx.save_for_backward(*([x, *maximum] if maximum else []))
        return (mean, *maximum) if maximum else mean

    @staticmethod
    def backward(ctx, dmean, *dmax):
        if dmax:
            return reference.squeeze_max_backward(dmean, *dmax, *ctx.saved_tensors), None
        spatial = ctx.shape[2:]
        grad_mean = (dmean / max(prod(spatial), 1)).to(ctx.dtype)
        return grad_mean.reshape(dmean.shape + (1,) * len(spatial)).expand(ctx.shape), None


class Rescale(Function):
    @staticmethod
    def forward(ctx, x, gate):
        ctx.save_for_backward(x, gate)
        return _rescale(x, gate)

    @staticmethod
    def backward(ctx, dy):
        x, gate = ctx.saved_tensors
        if needs_double_backward(dy):
            forward = lambda x, gate: reference.rescale(x, acc_gate(gate, x))
            with without_autocast(dy):
                return _gradients(ctx, forward, (x, gate), dy)
        need_x, need_gate = ctx.needs_input_grad
        if not need_gate:
            return _rescale(match_memory_format(dy, x), gate), None
        g = acc_gate(gate, x) if need_x else None
        (dg,), dx = ops.reduce_backward(dy, x, None, None, None, None, None, g, "identity")
        return dx if need_x else None, dg.to(gate.dtype).view(gate.shape)


def _rescale(x: Tensor, gate: Tensor) -> Tensor:
    g = acc_gate(gate, x)
    return ops.apply_forward(x, None, None, None, None, g, "identity", False)[0]


def acc_gate(gate: Tensor, x: Tensor) -> Tensor:
    return gate.flatten(1).to(acc_dtype(x.dtype))


def call_gate_hook(y: Tensor, g: Tensor, on_gate: Callable[[Tensor], None] | None) -> Tensor:
    """y, after its gates were shown to whoever asks for them."""
    if on_gate is not None:
        on_gate(g.detach())
    return y


def _gradients(ctx, forward, inputs, dy):
    """Gradients that are themselves differentiable, from a differentiable forward."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # A gradient must not run on into the history that one input may share with another.
        aliases = [t if t is None else t.view_as(t) for t in inputs]
        wanted = [t for t, needed in zip(aliases, ctx.needs_input_grad) if needed]
        found = iter(torch.autograd.grad(forward(*aliases), wanted, dy, create_graph=create_graph))
    return tuple(next(found) if needed else None for needed in ctx.needs_input_grad[: len(inputs)])
