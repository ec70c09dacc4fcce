"""The excitation of one sample inside a reduce launch, by the sample's last program to finish.

Hu et al., "Squeeze-and-Excitation Networks", eq. 3. All R hidden units stay in registers; channels
are taken CHUNK at a time. Padding lanes are zeroed wherever they meet a sum: 0 · Inf is NaN.
"""

import triton
import triton.language as tl

from se_fused.backends.triton.activations import act, act_derivative, gate, gate_derivative
from se_fused.backends.triton.partials import join_partials


@triton.jit
def excite(
    partial_ptr, z_ptr, g_ptr, w1_ptr, b1_ptr, w2_ptr, b2_ptr, sample, channels, hidden, splits,
    ACT: tl.constexpr, GATE: tl.constexpr, BLOCK_R: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """z = Σ partials;  h = act(W1 z + b1);  g = gate(W2 h + b2);  stores z and g."""
    ACC: tl.constexpr = partial_ptr.dtype.element_ty
    unit = tl.arange(0, BLOCK_R)
    products = tl.zeros([BLOCK_R, CHUNK], ACC)
    for start in range(0, channels, CHUNK):
        channel = start + tl.arange(0, CHUNK)
        z = join_partials(partial_ptr, sample, channel, channels, splits)
        tl.store(z_ptr + sample * channels + channel, z, channel < channels)
        products += _weight(w1_ptr, unit, channel, hidden, channels, ACC) * z[None, :]
    h = act(tl.sum(products, 1) + _bias(b1_ptr, unit, hidden, ACC), ACT)
    h = tl.where(unit < hidden, h, 0.0)
    for start in range(0, channels, CHUNK):
        channel = start + tl.arange(0, CHUNK)
        w2 = _weight(w2_ptr, channel, unit, channels, hidden, ACC)
        p2 = tl.sum(w2 * h[None, :], 1) + _bias(b2_ptr, channel, channels, ACC)
        tl.store(g_ptr + sample * channels + channel, gate(p2, GATE), channel < channels)


@triton.jit
def excite_backward(
    partial_ptr, z_ptr, g_ptr, w1_ptr, b1_ptr, w2_ptr, dp1_ptr, h_ptr, dp2_ptr, grad_mean_ptr,
    sample, channels, spatial, hidden, splits,
    ACT: tl.constexpr, GATE: tl.constexpr, BLOCK_R: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """dg = Σ partials;  dp2 = dg gate';  dp1 = (dp2 W2) act'(p1);  grad_mean = (dp1 W1) / M;
    stores dp2, h, dp1 and grad_mean."""
    ACC: tl.constexpr = partial_ptr.dtype.element_ty
    unit = tl.arange(0, BLOCK_R)
    p1_products = tl.zeros([BLOCK_R, CHUNK], ACC)
    dh_products = tl.zeros([CHUNK, BLOCK_R], ACC)
    for start in range(0, channels, CHUNK):
        channel = start + tl.arange(0, CHUNK)
        index = sample * channels + channel
        z = tl.load(z_ptr + index, channel < channels, other=0)
        g = tl.load(g_ptr + index, channel < channels, other=0)
        dg = join_partials(partial_ptr, sample, channel, channels, splits)
        dp2 = dg * gate_derivative(g, GATE)
        tl.store(dp2_ptr + index, dp2, channel < channels)
        p1_products += _weight(w1_ptr, unit, channel, hidden, channels, ACC) * z[None, :]
        dh_products += _weight(w2_ptr, channel, unit, channels, hidden, ACC) * dp2[:, None]
    p1 = tl.sum(p1_products, 1) + _bias(b1_ptr, unit, hidden, ACC)
    dp1 = tl.sum(dh_products, 0) * act_derivative(p1, ACT)
    dp1 = tl.where(unit < hidden, dp1, 0.0)
    tl.store(h_ptr + sample * hidden + unit, act(p1, ACT), unit < hidden)
    tl.store(dp1_ptr + sample * hidden + unit, dp1, unit < hidden)
    for start in range(0, channels, CHUNK):
        channel = start + tl.arange(0, CHUNK)
        w1 = _weight(w1_ptr, unit, channel, hidden, channels, ACC)
        grad_mean = tl.sum(w1 * dp1[:, None], 0) / spatial
        tl.store(grad_mean_ptr + sample * channels + channel, grad_mean, channel < channels)


@triton.jit
def _weight(w_ptr, row, column, rows, columns, ACC: tl.constexpr):
    """A tile of a [rows, columns] matrix, zero outside of it."""
    mask = (row[:, None] < rows) & (column[None, :] < columns)
    return tl.load(w_ptr + row[:, None] * columns + column[None, :], mask, other=0).to(ACC)


@triton.jit
def _bias(b_ptr, index, size, ACC: tl.constexpr):
    if b_ptr is None:
        return tl.zeros(index.shape, ACC)
    else:
        return tl.load(b_ptr + index, index < size, other=0).to(ACC)
