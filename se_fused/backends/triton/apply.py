"""The second launch of each direction: what writes a map, tile by tile.

Tiles are visited in the reverse of the reduce launch's order, so that what was read last, and is
still in cache, is read first; nothing of this pass is worth keeping there. Parts without a pointer
are not compiled. u = (x - center) · scale + shift and v = act(u) exist in registers only.
"""

import triton
import triton.language as tl

from se_fused.backends.triton.activations import act, act_derivative, relu
from se_fused.backends.triton.bitmask import load_bits, store_bits
from se_fused.backends.triton.tiles import per_channel, program_index, tile_offsets


# p = v · g + residual, eq. 4 (v = x without a norm); with mask_ptr y = max(p, 0) and the bits of
# p > 0, else y = p.
# One program: one tile of BLOCK_C channels × BLOCK_M positions of one sample.
# Reads x, g and the residual once, writes y and the mask once.
# Budget: 128 registers, 2 KB of shared memory.
# Budget with parts: 104 registers, 8 KB of shared memory.
@triton.jit
def apply_forward_kernel(
    x_ptr, residual_ptr, center_ptr, scale_ptr, shift_ptr, g_ptr, y_ptr, mask_ptr,
    channels, spatial,
    LAYOUT: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr, PLANE: tl.constexpr,
    ALIGN: tl.constexpr, INT64: tl.constexpr, NORM_ACT: tl.constexpr,
):  # fmt: skip
    ACC: tl.constexpr = g_ptr.dtype.element_ty
    blocks = tl.cdiv(channels, BLOCK_C)
    sample, block, tile = program_index(
        blocks, tl.cdiv(spatial, BLOCK_M), REVERSE=True, INT64=INT64
    )
    offset, inside = tile_offsets(
        sample, block, tile, channels, spatial, LAYOUT, BLOCK_C, BLOCK_M, PLANE, ALIGN
    )
    p = tl.load(x_ptr + offset, inside, other=0, eviction_policy="evict_first").to(ACC)
    channel = block * BLOCK_C + tl.arange(0, BLOCK_C)
    if center_ptr is not None:
        center = per_channel(center_ptr, channel, channels, LAYOUT, BLOCK_C, BLOCK_M, PLANE)
        scale = per_channel(scale_ptr, channel, channels, LAYOUT, BLOCK_C, BLOCK_M, PLANE)
        shift = per_channel(shift_ptr, channel, channels, LAYOUT, BLOCK_C, BLOCK_M, PLANE)
        p = act((p - center) * scale + shift, NORM_ACT)
    p *= per_channel(
        g_ptr + sample * channels, channel, channels, LAYOUT, BLOCK_C, BLOCK_M, PLANE
    )
    if residual_ptr is not None:
        p += tl.load(residual_ptr + offset, inside, other=0, eviction_policy="evict_first").to(ACC)
    if mask_ptr is not None:
        bits = tl.where(inside & ~(p <= 0), 1, 0)
        store_bits(
            mask_ptr, bits, sample, block, tile, channels, spatial,
            LAYOUT, BLOCK_C, BLOCK_M, PLANE,
        )  # fmt: skip
        p = relu(p)
    tl.store(y_ptr + offset, p, inside, eviction_policy="evict_first")


# dx = (q·g + grad_mean + [x = maximum]·grad_max) · scale · v' + (x - center) · slope + offset, with
# q = dy where its bit of the mask is set, else 0; with dr_ptr also dr = q.
# One program: one tile of BLOCK_C channels × BLOCK_M positions of one sample.
# Reads dy, the mask and, where a part needs it, x once; writes dx and dr once.
# Budget: 128 registers, 2 KB of shared memory.
# Budget with maximum: 104 registers, 8 KB of shared memory.
# Budget with norm: 152 registers, 8 KB of shared memory.
# Budget with parts: 152 registers, 8 KB of shared memory.
@triton.jit
def apply_backward_kernel(
    dy_ptr, x_ptr, mask_ptr, center_ptr, scale_ptr, shift_ptr, g_ptr, grad_mean_ptr,
    max_ptr, grad_max_ptr, slope_ptr, offset_ptr, dx_ptr, dr_ptr, channels, spatial,
    LAYOUT: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr, PLANE: tl.constexpr,
    ALIGN: tl.constexpr, INT64: tl.constexpr, NORM_ACT: tl.constexpr,
):  # fmt: skip
    ACC: tl.constexpr = g_ptr.dtype.element_ty
    blocks = tl.cdiv(channels, BLOCK_C)
    sample, block, tile = program_index(
        blocks, tl.cdiv(spatial, BLOCK_M), REVERSE=True, INT64=INT64
    )
    at, inside = tile_offsets(
        sample, block, tile, channels, spatial, LAYOUT, BLOCK_C, BLOCK_M, PLANE, ALIGN
    )
    q = tl.load(dy_ptr + at, inside, other=0, eviction_policy="evict_first").to(ACC)
    if mask_ptr is not None:
        bits = load_bits(
            mask_ptr, sample, block, tile, channels, spatial, LAYOUT, BLOCK_C, BLOCK_M, PLANE
        )
        q = tl.where(bits == 1, q, 0)
    if dr_ptr is not None:
        tl.store(dr_ptr + at, q, inside, eviction_policy="evict_first")
    channel = block * BLOCK_C + tl.arange(0, BLOCK_C)
    row = sample * channels
    dx = q * per_channel(g_ptr + row, channel, channels, LAYOUT, BLOCK_C, BLOCK_M, PLANE)
    if grad_mean_ptr is not None:
        dx += per_channel(grad_mean_ptr + row, channel, channels, LAYOUT, BLOCK_C, BLOCK_M, PLANE)
    if x_ptr is not None:
        x = tl.load(x_ptr + at, inside, other=0, eviction_policy="evict_first").to(ACC)
    if max_ptr is not None:
        m = per_channel(max_ptr + row, channel, channels, LAYOUT, BLOCK_C, BLOCK_M, PLANE)
        grad = per_channel(grad_max_ptr + row, channel, channels, LAYOUT, BLOCK_C, BLOCK_M, PLANE)
        dx += (x == m).to(ACC) * grad
    if center_ptr is not None:
        scale = per_channel(scale_ptr, channel, channels, LAYOUT, BLOCK_C, BLOCK_M, PLANE)
        dx *= scale
        if x_ptr is not None:
            center = per_channel(center_ptr, channel, channels, LAYOUT, BLOCK_C, BLOCK_M, PLANE)
            shift = per_channel(shift_ptr, channel, channels, LAYOUT, BLOCK_C, BLOCK_M, PLANE)
            centered = x - center
            if NORM_ACT != "identity":
                dx *= act_derivative(centered * scale + shift, NORM_ACT)
            if slope_ptr is not None:
                slope = per_channel(slope_ptr, channel, channels, LAYOUT, BLOCK_C, BLOCK_M, PLANE)
                offset = per_channel(
                    offset_ptr, channel, channels, LAYOUT, BLOCK_C, BLOCK_M, PLANE
                )
                dx += centered * slope + offset
    tl.store(dx_ptr + at, dx, inside, eviction_policy="evict_first")
