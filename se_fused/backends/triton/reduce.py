"""The first launch of each direction: statistics over the spatial extent, then the excitation.

A program reads a row of ``tiles_per_split`` tiles; how the programs' results are joined is in
partials.py. Parts without a pointer are not compiled. u = (x - center) · scale + shift and
v = act(u) exist in registers only.
"""

import triton
import triton.language as tl

from se_fused.backends.triton.activations import act, act_derivative
from se_fused.backends.triton.bitmask import load_bits
from se_fused.backends.triton.excitation import excite, excite_backward
from se_fused.backends.triton.partials import (
    NOTHING,
    finish,
    finishes_sample,
    largest,
)
from se_fused.backends.triton.tiles import (
    channel_sums,
    fold,
    folded_zeros,
    per_channel,
    program_index,
    tile_offsets,
    unflatten_planes,
    unfold,
    zeros,
)


# STATISTIC mean: Σ v / M, eq. 2 (v = x without a norm); max: Σ x / M and max x. With weights also
# g = gate(W2 act(W1 z + b1) + b2), eq. 3. Results [K, N, C].
# One program: BLOCK_C channels of one sample, tiles_per_split tiles of BLOCK_M positions.
# Reads x once; the last program of a sample reads its partial results and the weights.
# Budget: 104 registers, 16 KB of shared memory.
# Budget with maximum: 104 registers, 8 KB of shared memory.
# Budget with norm: 120 registers, 8 KB of shared memory.
@triton.jit(do_not_specialize=["samples", "splits", "tiles_per_split"])
def reduce_forward_kernel(
    x_ptr, center_ptr, scale_ptr, shift_ptr, partial_ptr, counter_ptr, out_ptr,
    g_ptr, w1_ptr, b1_ptr, w2_ptr, b2_ptr,
    samples, channels, spatial, hidden, splits, tiles_per_split,
    LAYOUT: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr, PLANE: tl.constexpr,
    ALIGN: tl.constexpr, INT64: tl.constexpr, NORM_ACT: tl.constexpr, STATISTIC: tl.constexpr,
    ACT: tl.constexpr, GATE: tl.constexpr, BLOCK_R: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    ACC: tl.constexpr = partial_ptr.dtype.element_ty
    blocks = tl.cdiv(channels, BLOCK_C)
    sample, block, split = program_index(blocks, splits, REVERSE=False, INT64=INT64)
    channel = block * BLOCK_C + tl.arange(0, BLOCK_C)
    center = per_channel(center_ptr, channel, channels, LAYOUT, BLOCK_C, BLOCK_M, PLANE)
    scale = per_channel(scale_ptr, channel, channels, LAYOUT, BLOCK_C, BLOCK_M, PLANE)
    shift = per_channel(shift_ptr, channel, channels, LAYOUT, BLOCK_C, BLOCK_M, PLANE)
    total = zeros(LAYOUT, BLOCK_C, BLOCK_M, ACC)
    if STATISTIC == "max":
        most = total + NOTHING
    for step in range(tiles_per_split):
        offset, inside = tile_offsets(
            sample, block, split * tiles_per_split + step, channels, spatial,
            LAYOUT, BLOCK_C, BLOCK_M, PLANE, ALIGN,
        )  # fmt: skip
        if STATISTIC == "max":
            x = tl.load(x_ptr + offset, inside, other=NOTHING).to(ACC)
            total += tl.where(inside, x, 0)
            most = tl.maximum(most, x, propagate_nan=tl.PropagateNan.ALL)
        elif center_ptr is None:
            total += tl.load(x_ptr + offset, inside, other=0).to(ACC)
        else:
            x = tl.load(x_ptr + offset, inside, other=0).to(ACC)
            total += tl.where(inside, act((x - center) * scale + shift, NORM_ACT), 0)
    at = (sample * splits + split) * channels + channel
    stride = tl.cast(samples, tl.int64) * splits * channels  # from one statistic to the next
    sums = channel_sums(total, LAYOUT, BLOCK_C, BLOCK_M, PLANE)
    tl.store(partial_ptr + at, sums / spatial, channel < channels)
    if STATISTIC == "max":
        if LAYOUT == "flat":
            most = unflatten_planes(most, BLOCK_C, BLOCK_M, PLANE, NOTHING)
        tl.store(partial_ptr + stride + at, largest(most, 1), channel < channels)

    if counter_ptr is not None:
        if finishes_sample(counter_ptr, sample, blocks * splits):
            if w1_ptr is not None:
                excite(
                    partial_ptr, out_ptr, g_ptr, w1_ptr, b1_ptr, w2_ptr, b2_ptr,
                    sample, channels, hidden, splits, ACT, GATE, BLOCK_R, CHUNK,
                )  # fmt: skip
            else:
                finish(
                    partial_ptr, out_ptr, sample, samples, channels, splits,
                    2 if STATISTIC == "max" else 1, 1, CHUNK,
                )  # fmt: skip


# Sums [K, N, C], q = dy where its bit of the mask is set: without a norm Σ q·x, Σ [x = maximum];
# with one Σ q·v', Σ q·v'·(x - center) and, unless v = u, Σ q·v, Σ v', Σ v'·(x - center). With
# dx_ptr also dx = dy·g; with weights dp2 = dg·gate', dp1 = (dp2 W2)·act', grad_mean = (dp1 W1) / M.
# One program: BLOCK_C channels of one sample, tiles_per_split tiles of BLOCK_M positions.
# Reads dy, x and the mask once; the last program of a sample its partial sums, z, g and weights.
# Budget: 152 registers, 16 KB of shared memory.
# Budget with dx: 208 registers, 16 KB of shared memory.
# Budget with maximum: 104 registers, 8 KB of shared memory.
# Budget with norm: 208 registers, 8 KB of shared memory.
# Budget with parts: 152 registers, 8 KB of shared memory.
@triton.jit(do_not_specialize=["samples", "splits", "tiles_per_split"])
def reduce_backward_kernel(
    dy_ptr, x_ptr, mask_ptr, center_ptr, scale_ptr, shift_ptr, max_ptr, dx_ptr,
    partial_ptr, counter_ptr, out_ptr, z_ptr, g_ptr, w1_ptr, b1_ptr, w2_ptr,
    dp1_ptr, h_ptr, dp2_ptr, grad_mean_ptr,
    samples, channels, spatial, hidden, splits, tiles_per_split,
    LAYOUT: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr, PLANE: tl.constexpr,
    ALIGN: tl.constexpr, INT64: tl.constexpr, NORM_ACT: tl.constexpr, COUNT: tl.constexpr,
    ACT: tl.constexpr, GATE: tl.constexpr, BLOCK_R: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    ACC: tl.constexpr = partial_ptr.dtype.element_ty
    blocks = tl.cdiv(channels, BLOCK_C)
    sample, block, split = program_index(blocks, splits, REVERSE=False, INT64=INT64)
    channel = block * BLOCK_C + tl.arange(0, BLOCK_C)
    of_sample = sample * channels
    center = per_channel(center_ptr, channel, channels, LAYOUT, BLOCK_C, BLOCK_M, PLANE)
    scale = per_channel(scale_ptr, channel, channels, LAYOUT, BLOCK_C, BLOCK_M, PLANE)
    shift = per_channel(shift_ptr, channel, channels, LAYOUT, BLOCK_C, BLOCK_M, PLANE)
    if max_ptr is not None:
        m = per_channel(
            max_ptr + of_sample, channel, channels, LAYOUT, BLOCK_C, BLOCK_M, PLANE
        )
    if dx_ptr is not None:
        g = per_channel(g_ptr + of_sample, channel, channels, LAYOUT, BLOCK_C, BLOCK_M, PLANE)
    if center_ptr is None:
        total = zeros(LAYOUT, BLOCK_C, BLOCK_M, ACC)
    else:
        total = folded_zeros(LAYOUT, BLOCK_C, BLOCK_M, ACC)
    second, third, slopes, slopes_centered = total, total, total, total
    for step in range(tiles_per_split):
        tile = split * tiles_per_split + step
        offset, inside = tile_offsets(
            sample, block, tile, channels, spatial, LAYOUT, BLOCK_C, BLOCK_M, PLANE, ALIGN
        )
        q = tl.load(dy_ptr + offset, inside, other=0).to(ACC)
        if COUNT == 1:  # x is not read again, dy is
            x = tl.load(x_ptr + offset, inside, other=0, eviction_policy="evict_first").to(ACC)
        else:
            x = tl.load(x_ptr + offset, inside, other=0).to(ACC)
        if mask_ptr is not None:
            bits = load_bits(
                mask_ptr, sample, block, tile, channels, spatial, LAYOUT, BLOCK_C, BLOCK_M, PLANE
            )
            q = tl.where(bits == 1, q, 0)
        if center_ptr is None:
            total += q * x
            if max_ptr is not None:
                second += tl.where(inside & (x == m), 1, 0)
        else:
            centered = x - center
            if NORM_ACT == "identity":
                total += fold(q, LAYOUT, BLOCK_C, BLOCK_M, PLANE)
                second += fold(q * centered, LAYOUT, BLOCK_C, BLOCK_M, PLANE)
            else:
                u = centered * scale + shift
                slope = tl.where(inside, act_derivative(u, NORM_ACT), 0)
                total += fold(q * slope, LAYOUT, BLOCK_C, BLOCK_M, PLANE)
                second += fold(q * slope * centered, LAYOUT, BLOCK_C, BLOCK_M, PLANE)
                third += fold(q * act(u, NORM_ACT), LAYOUT, BLOCK_C, BLOCK_M, PLANE)
                slopes += fold(slope, LAYOUT, BLOCK_C, BLOCK_M, PLANE)
                slopes_centered += fold(slope * centered, LAYOUT, BLOCK_C, BLOCK_M, PLANE)
        if dx_ptr is not None:
            tl.store(dx_ptr + offset, q * g, inside)
    at = (sample * splits + split) * channels + channel
    stride = tl.cast(samples, tl.int64) * splits * channels  # from one sum to the next
    if center_ptr is None:
        sums = channel_sums(total, LAYOUT, BLOCK_C, BLOCK_M, PLANE)
        tl.store(partial_ptr + at, sums, channel < channels)
        if max_ptr is not None:
            ties = channel_sums(second, LAYOUT, BLOCK_C, BLOCK_M, PLANE)
            tl.store(partial_ptr + stride + at, ties, channel < channels)
    else:
        tl.store(partial_ptr + at, unfold(total, LAYOUT), channel < channels)
        tl.store(partial_ptr + stride + at, unfold(second, LAYOUT), channel < channels)
        if COUNT == 5:
            at += 2 * stride
            tl.store(partial_ptr + at, unfold(third, LAYOUT), channel < channels)
            tl.store(partial_ptr + stride + at, unfold(slopes, LAYOUT), channel < channels)
            tl.store(
                partial_ptr + 2 * stride + at, unfold(slopes_centered, LAYOUT), channel < channels
            )

    if counter_ptr is not None:
        if finishes_sample(counter_ptr, sample, blocks * splits):
            if w1_ptr is not None:
                excite_backward(
                    partial_ptr, z_ptr, g_ptr, w1_ptr, b1_ptr, w2_ptr,
                    dp1_ptr, h_ptr, dp2_ptr, grad_mean_ptr,
                    sample, channels, spatial, hidden, splits, ACT, GATE, BLOCK_R, CHUNK,
                )  # fmt: skip
            else:
                finish(
                    partial_ptr, out_ptr, sample, samples, channels, splits, COUNT, -1, CHUNK
                )
