"""The second launch of each direction."""

import triton
import triton.language as tl

from se_fused.backends.triton.tiles import program_index, tile_offsets


# y = x · g, eq. 4; backward dx = dy · g + share, with share = dz / M [N, C] (None forward).
# One program: one tile of BLOCK_C channels × BLOCK_M positions of one sample.
# Tiles are visited in the reverse of the reduce launch's order, so that what was read last, and is
# still in cache, is read first; nothing of this pass is worth keeping there.
# Reads x and g once, writes y once.
@triton.jit
def rescale_kernel(
    x_ptr, g_ptr, share_ptr, y_ptr, channels, spatial,
    CHANNELS_LAST: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    ACC: tl.constexpr = g_ptr.dtype.element_ty
    blocks = tl.cdiv(channels, BLOCK_C)
    sample, block, tile = program_index(blocks, tl.cdiv(spatial, BLOCK_M), REVERSE=True)
    channel = block * BLOCK_C + tl.arange(0, BLOCK_C)
    position = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    offset, mask = tile_offsets(sample, channel, position, channels, spatial, CHANNELS_LAST)
    x = tl.load(x_ptr + offset, mask, other=0, eviction_policy="evict_first").to(ACC)
    index = sample * channels + channel
    y = x * tl.load(g_ptr + index, channel < channels, other=0)[:, None]
    if share_ptr is not None:
        y += tl.load(share_ptr + index, channel < channels, other=0)[:, None]
    tl.store(y_ptr + offset, y, mask, eviction_policy="evict_first")
