"""What writes a map in a block with BatchNorm before the squeeze, a residual and a ReLU after the
rescale: tile by tile, in the reverse order, as in apply.py.

u = (x - center) · scale + shift and v = act(u) exist in registers only.
"""

import triton
import triton.language as tl

from se_fused.backends.triton.activations import act, act_derivative, relu
from se_fused.backends.triton.bits import load_bits, store_bits
from se_fused.backends.triton.tiles import (
    normalization,
    per_channel,
    program_index,
    tile_offsets,
)


# p = v · g + residual; with mask_ptr y = max(p, 0) and the bits of p > 0, else y = p.
# One program: one tile of BLOCK_C channels × BLOCK_M positions of one sample.
# Reads x, g and the residual (None: there is none) once, writes y and the mask once.
# Budget: 104 registers, 8 KB of shared memory.
@triton.jit
def norm_rescale_kernel(
    x_ptr, residual_ptr, center_ptr, scale_ptr, shift_ptr, g_ptr, y_ptr, mask_ptr,
    channels, spatial,
    LAYOUT: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr, PLANE: tl.constexpr,
    ALIGN: tl.constexpr, INT64: tl.constexpr, ACT: tl.constexpr,
):  # fmt: skip
    ACC: tl.constexpr = g_ptr.dtype.element_ty
    blocks = tl.cdiv(channels, BLOCK_C)
    sample, block, tile = program_index(
        blocks, tl.cdiv(spatial, BLOCK_M), REVERSE=True, INT64=INT64
    )
    offset, inside = tile_offsets(
        sample, block, tile, channels, spatial, LAYOUT, BLOCK_C, BLOCK_M, PLANE, ALIGN
    )
    x = tl.load(x_ptr + offset, inside, other=0, eviction_policy="evict_first").to(ACC)
    channel = block * BLOCK_C + tl.arange(0, BLOCK_C)
    center, scale, shift = normalization(
        center_ptr, scale_ptr, shift_ptr, channel, channels, LAYOUT, BLOCK_C, BLOCK_M, PLANE
    )
    g = per_channel(g_ptr + sample * channels, channel, channels, LAYOUT, BLOCK_C, BLOCK_M, PLANE)
    p = act((x - center) * scale + shift, ACT) * g
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


# dx = (q·g + share) · scale · v' + (x - center) · slope + offset; with dr_ptr also dr = q.
# One program: one tile of BLOCK_C channels × BLOCK_M positions of one sample.
# Reads dy, the mask and x once (x_ptr None: v' = 1 and there is no slope), writes dx and dr once.
# Budget: 152 registers, 8 KB of shared memory.
@triton.jit
def norm_rescale_backward_kernel(
    dy_ptr, x_ptr, mask_ptr, center_ptr, scale_ptr, shift_ptr, g_ptr, share_ptr,
    slope_ptr, offset_ptr, dx_ptr, dr_ptr, channels, spatial,
    LAYOUT: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr, PLANE: tl.constexpr,
    ALIGN: tl.constexpr, INT64: tl.constexpr, ACT: tl.constexpr,
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
    center, scale, shift = normalization(
        center_ptr, scale_ptr, shift_ptr, channel, channels, LAYOUT, BLOCK_C, BLOCK_M, PLANE
    )
    of_sample = sample * channels
    g = per_channel(g_ptr + of_sample, channel, channels, LAYOUT, BLOCK_C, BLOCK_M, PLANE)
    share = per_channel(share_ptr + of_sample, channel, channels, LAYOUT, BLOCK_C, BLOCK_M, PLANE)
    dx = (q * g + share) * scale
    if x_ptr is not None:
        x = tl.load(x_ptr + at, inside, other=0, eviction_policy="evict_first").to(ACC)
        centered = x - center
        dx *= act_derivative(centered * scale + shift, ACT)
        if slope_ptr is not None:
            slope = per_channel(slope_ptr, channel, channels, LAYOUT, BLOCK_C, BLOCK_M, PLANE)
            offset = per_channel(offset_ptr, channel, channels, LAYOUT, BLOCK_C, BLOCK_M, PLANE)
            dx += centered * slope + offset
    tl.store(dx_ptr + at, dx, inside, eviction_policy="evict_first")
