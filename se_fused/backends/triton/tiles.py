"""Where a tile of a feature map lies in memory, and what it knows of its channels.

LAYOUT is one of
    contiguous      [BLOCK_C, BLOCK_M], positions run fastest
    channels_last   [BLOCK_C, BLOCK_M], channels run fastest
    flat            [BLOCK_C · BLOCK_M]: BLOCK_C whole planes of PLANE ≤ BLOCK_M positions as one
                    run of memory, contiguous layout; its wide accesses need no aligned planes
"""

import triton
import triton.language as tl


@triton.jit
def program_index(blocks_per_sample, tiles_per_block, REVERSE: tl.constexpr, INT64: tl.constexpr):
    """(sample, channel block, tile of the block) of this program; the last runs fastest."""
    program = tl.program_id(0)
    if REVERSE:
        program = tl.num_programs(0) - 1 - program
    block = program // tiles_per_block
    sample, block, tile = (
        block // blocks_per_sample,
        block % blocks_per_sample,
        program % tiles_per_block,
    )
    if INT64:  # offsets are of the type of these
        sample, block, tile = sample.to(tl.int64), block.to(tl.int64), tile.to(tl.int64)
    return sample, block, tile


@triton.jit
def tile_offsets(
    sample, block, tile, channels, spatial,
    LAYOUT: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr, PLANE: tl.constexpr,
    ALIGN: tl.constexpr,
):  # fmt: skip
    """Offsets into the map and mask of a tile.

    ALIGN divides the extent that runs fastest (flat: the channels). Dividing and multiplying by it
    shows that to the compiler, which makes accesses as wide as it can prove them aligned.
    """
    if LAYOUT == "flat":
        channels = channels // ALIGN * ALIGN
        element = tl.arange(0, BLOCK_C * BLOCK_M)
        offset = block * (BLOCK_C * PLANE) + element
        mask = (element < BLOCK_C * PLANE) & (offset < channels * PLANE)
        return sample * channels * PLANE + offset, mask
    else:
        channel = block * BLOCK_C + tl.arange(0, BLOCK_C)[:, None]
        position = tile * BLOCK_M + tl.arange(0, BLOCK_M)[None, :]
        if LAYOUT == "channels_last":
            channels = channels // ALIGN * ALIGN
            offset = position * channels + channel
        else:
            spatial = spatial // ALIGN * ALIGN
            offset = channel * spatial + position
        mask = (channel < channels) & (position < spatial)
        return sample * channels * spatial + offset, mask


@triton.jit
def zeros(LAYOUT: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr, ACC: tl.constexpr):
    """An accumulator for tiles."""
    if LAYOUT == "flat":
        return tl.zeros([BLOCK_C * BLOCK_M], ACC)
    else:
        return tl.zeros([BLOCK_C, BLOCK_M], ACC)


@triton.jit
def channel_sums(
    tile,
    LAYOUT: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr, PLANE: tl.constexpr,
):  # fmt: skip
    """A tile, zero where it is masked, summed over positions, [BLOCK_C]."""
    if LAYOUT == "flat":
        tile = planes(tile, BLOCK_C, BLOCK_M, PLANE)
    return tl.sum(tile, 1)


@triton.jit
def planes(tile, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr, PLANE: tl.constexpr, other=0):
    """A flat tile by planes, [BLOCK_C, BLOCK_M], ``other`` beyond PLANE."""
    position = tl.arange(0, BLOCK_M)[None, :]
    inside = position < PLANE
    element = tl.arange(0, BLOCK_C)[:, None] * PLANE + tl.where(inside, position, 0)
    gathered = tl.gather(tile, tl.reshape(element, [BLOCK_C * BLOCK_M]), 0)
    return tl.where(inside, tl.reshape(gathered, [BLOCK_C, BLOCK_M]), other)


@triton.jit
def per_element(
    values,
    LAYOUT: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr, PLANE: tl.constexpr,
):  # fmt: skip
    """Values of the channels, [BLOCK_C], for each element of a tile."""
    if LAYOUT == "flat":
        channel = tl.arange(0, BLOCK_C * BLOCK_M) // PLANE
        return tl.gather(values, tl.minimum(channel, BLOCK_C - 1), 0)
    else:
        return values[:, None]


@triton.jit
def normalization(
    center_ptr, scale_ptr, shift_ptr, channel, channels,
    LAYOUT: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr, PLANE: tl.constexpr,
):  # fmt: skip
    """center, scale and shift for each element of a tile; those of u = x without pointers."""
    if center_ptr is None:
        return 0.0, 1.0, 0.0
    else:
        center = per_channel(center_ptr, channel, channels, LAYOUT, BLOCK_C, BLOCK_M, PLANE)
        scale = per_channel(scale_ptr, channel, channels, LAYOUT, BLOCK_C, BLOCK_M, PLANE)
        shift = per_channel(shift_ptr, channel, channels, LAYOUT, BLOCK_C, BLOCK_M, PLANE)
        return center, scale, shift


@triton.jit
def per_channel(
    value_ptr, channel, channels,
    LAYOUT: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr, PLANE: tl.constexpr,
):  # fmt: skip
    values = tl.load(value_ptr + channel, channel < channels, other=0)
    return per_element(values, LAYOUT, BLOCK_C, BLOCK_M, PLANE)
