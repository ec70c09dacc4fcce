"""What writes the map's gradient where the maximum is in the squeeze; see apply.py."""

import triton
import triton.language as tl

from se_fused.backends.triton.tiles import per_channel, program_index, tile_offsets


# dx = dy·g + share + [x = m]·peak, with share = dmean / M and peak = dm / ties, each [N, C].
# One program: one tile of BLOCK_C channels × BLOCK_M positions of one sample.
# Reads dy, x and four values a channel once, writes dx once.
# Budget: 104 registers, 8 KB of shared memory.
@triton.jit
def rescale_backward_max_kernel(
    dy_ptr, x_ptr, g_ptr, share_ptr, max_ptr, peak_ptr, dx_ptr, channels, spatial,
    LAYOUT: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr, PLANE: tl.constexpr,
    ALIGN: tl.constexpr, INT64: tl.constexpr,
):  # fmt: skip
    ACC: tl.constexpr = g_ptr.dtype.element_ty
    blocks = tl.cdiv(channels, BLOCK_C)
    sample, block, tile = program_index(
        blocks, tl.cdiv(spatial, BLOCK_M), REVERSE=True, INT64=INT64
    )
    offset, inside = tile_offsets(
        sample, block, tile, channels, spatial, LAYOUT, BLOCK_C, BLOCK_M, PLANE, ALIGN
    )
    dy = tl.load(dy_ptr + offset, inside, other=0, eviction_policy="evict_first").to(ACC)
    x = tl.load(x_ptr + offset, inside, other=0, eviction_policy="evict_first").to(ACC)
    channel = block * BLOCK_C + tl.arange(0, BLOCK_C)
    of_sample = sample * channels
    g = per_channel(g_ptr + of_sample, channel, channels, LAYOUT, BLOCK_C, BLOCK_M, PLANE)
    share = per_channel(share_ptr + of_sample, channel, channels, LAYOUT, BLOCK_C, BLOCK_M, PLANE)
    m = per_channel(max_ptr + of_sample, channel, channels, LAYOUT, BLOCK_C, BLOCK_M, PLANE)
    peak = per_channel(peak_ptr + of_sample, channel, channels, LAYOUT, BLOCK_C, BLOCK_M, PLANE)
    dx = dy * g + share + (x == m).to(ACC) * peak
    tl.store(dx_ptr + offset, dx, inside, eviction_policy="evict_first")
