"""The functions of ``se_fused.activations``, for the kernels; ACT and GATE are their names.

Every function passes NaN on. A literal operand of ``tl.where`` is rounded to float32 even beside
float64: only small integers stand there.
"""

import triton
import triton.language as tl

from se_fused.activations import LEAKY_SLOPE

SLOPE = tl.constexpr(LEAKY_SLOPE)
SQRT_HALF = tl.constexpr(0.5**0.5)
NORMAL_DENSITY = tl.constexpr(0.3989422804014327)  # (2π)^-½


@triton.jit
def act(p, ACT: tl.constexpr):
    """h = act(p)"""
    if ACT == "identity":
        h = p
    elif ACT == "relu":
        h = relu(p)
    elif ACT == "silu":
        h = p * tl.sigmoid(p)
    elif ACT == "hardswish":
        h = p * hardsigmoid(p)
    elif ACT == "leaky_relu":
        h = tl.where(p > 0, p, p * SLOPE)
    else:
        tl.static_assert(ACT == "gelu")
        h = p * normal_cdf(p)
    return h


@triton.jit
def act_derivative(p, ACT: tl.constexpr):
    """act'(p), from the value before the activation"""
    if ACT == "identity":
        d = tl.full(p.shape, 1, p.dtype)
    elif ACT == "relu":
        d = (p > 0).to(p.dtype)
    elif ACT == "silu":
        s = tl.sigmoid(p)
        d = s * (1 + p * (1 - s))
    elif ACT == "hardswish":
        d = tl.where(p < -3, 0.0, tl.where(p > 3, 1.0, p / 3 + 0.5))
    elif ACT == "leaky_relu":
        d = tl.where(p > 0, 1.0, tl.full(p.shape, SLOPE, p.dtype))
    else:
        tl.static_assert(ACT == "gelu")
        d = normal_cdf(p) + p * tl.exp(-0.5 * p * p) * NORMAL_DENSITY
    return d


@triton.jit
def gate(p, GATE: tl.constexpr):
    """g = gate(p)"""
    if GATE == "identity":
        g = p
    elif GATE == "relu":
        g = relu(p)
    elif GATE == "sigmoid":
        g = tl.sigmoid(p)
    elif GATE == "hardsigmoid":
        g = hardsigmoid(p)
    else:
        tl.static_assert(GATE == "tanh")
        g = tanh(p)
    return g


@triton.jit
def gate_derivative(g, GATE: tl.constexpr):
    """gate'(p), from the gate's output g = gate(p)"""
    if GATE == "identity":
        d = tl.full(g.shape, 1, g.dtype)
    elif GATE == "relu":
        d = (g > 0).to(g.dtype)
    elif GATE == "sigmoid":
        d = g * (1 - g)
    elif GATE == "hardsigmoid":
        d = ((g > 0) & (g < 1)).to(g.dtype) / 6
    else:
        tl.static_assert(GATE == "tanh")
        d = 1 - g * g
    return d


@triton.jit
def relu(p):
    return tl.where(p < 0, 0.0, p)


@triton.jit
def hardsigmoid(p):
    q = relu(p + 3)
    return tl.where(q > 6, 6.0, q) / 6


@triton.jit
def normal_cdf(p):
    return 0.5 * (1 + tl.erf(p * SQRT_HALF))


@triton.jit
def tanh(p):
    """1 - 2t / (1 + t) with t = exp(-2|p|); below 1, where that cancels, Lambert's continued
    fraction p / (1 + p² / (3 + p² / (5 + …))), whose terms are positive."""
    size = tl.abs(p)
    t = tl.exp(-2 * size)
    far = 1 - 2 * t / (1 + t)
    near = tl.where(size < 1, p, 0.0)
    square = near * near
    fraction = tl.full(p.shape, 19, p.dtype)
    for odd in tl.static_range(17, 0, -2):
        fraction = odd + square / fraction
    return tl.where(size < 1, near / fraction, tl.where(p < 0, -far, far))
