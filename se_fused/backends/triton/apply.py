"""The second launch of each direction."""

import triton
import triton.language as tl

from se_fused.backends.triton.tiles import per_element, program_index, tile_offsets


# y = x · g, eq. 4; backward dx = dy · g + share, with share = dz / M [N, C] (None forward).
# One program: one tile of BLOCK_C channels × BLOCK_M positions of one sample.
# Tiles are visited in the reverse of the reduce launch's order, so that what was read last, and is
# still in cache, is read first; nothing of this pass is worth keeping there.
# Reads x and g once, writes y once.
# Budget: 128 registers, 2 KB of shared memory.
@triton.jit
def rescale_kernel(
    x_ptr, g_ptr, share_ptr, y_ptr, channels, spatial,
    LAYOUT: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr, PLANE: tl.constexpr,
    ALIGN: tl.constexpr, INT64: tl.constexpr,
):  # fmt: skip
    ACC: tl.constexpr = g_ptr.dtype.element_ty
    blocks = tl.cdiv(channels, BLOCK_C)
    sample, block, tile = program_index(
        blocks, tl.cdiv(spatial, BLOCK_M), REVERSE=True, INT64=INT64
    )
    offset, mask = tile_offsets(
        sample, block, tile, channels, spatial, LAYOUT, BLOCK_C, BLOCK_M, PLANE, ALIGN
    )
    x = tl.load(x_ptr + offset, mask, other=0, eviction_policy="evict_first").to(ACC)
    channel = block * BLOCK_C + tl.arange(0, BLOCK_C)
    index = sample * channels + channel
    g = tl.load(g_ptr + index, channel < channels, other=0)
    y = x * per_element(g, LAYOUT, BLOCK_C, BLOCK_M, PLANE)
    if share_ptr is not None:
        share = tl.load(share_ptr + index, channel < channels, other=0)
        y += per_element(share, LAYOUT, BLOCK_C, BLOCK_M, PLANE)
    tl.store(y_ptr + offset, y, mask, eviction_policy="evict_first")
