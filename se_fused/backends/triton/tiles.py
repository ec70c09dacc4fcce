"""Where a tile of a feature map lies in memory, and what it knows of its channels.

LAYOUT is one of
    contiguous      [BLOCK_C, BLOCK_M], positions run fastest
    channels_last   [BLOCK_C, BLOCK_M], channels run fastest
    flat            [BLOCK_C · BLOCK_M]: BLOCK_C whole planes of PLANE ≤ BLOCK_M positions as one
                    run of memory, contiguous layout; its wide accesses need no aligned planes
"""

import triton
import triton.language as tl

# As many of a thread's elements as lie along positions, in either layout, with up to 4 warps.
FOLD = tl.constexpr(2)


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
        tile = unflatten_planes(tile, BLOCK_C, BLOCK_M, PLANE)
    return tl.sum(tile, 1)


@triton.jit
def unflatten_planes(tile, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr, PLANE: tl.constexpr, other=0):
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
def per_channel(
    value_ptr, channel, channels,
    LAYOUT: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr, PLANE: tl.constexpr,
):  # fmt: skip
    """Values of the channels from memory, for each element of a tile; 0 without a pointer."""
    if value_ptr is None:
        return 0.0
    else:
        values = tl.load(value_ptr + channel, channel < channels, other=0)
        return per_element(values, LAYOUT, BLOCK_C, BLOCK_M, PLANE)


@triton.jit
def fold(
    tile,
    LAYOUT: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr, PLANE: tl.constexpr,
):  # fmt: skip
    """A tile, zero where it is masked, with FOLD positions summed that one thread holds: so that
    the accumulators of five sums fit in registers. A flat tile is alone: all of it."""
    if LAYOUT == "flat":
        return channel_sums(tile, LAYOUT, BLOCK_C, BLOCK_M, PLANE)
    else:
        GROUP: tl.constexpr = min(BLOCK_M, FOLD)
        if LAYOUT == "channels_last":
            return tl.sum(tl.reshape(tile, [BLOCK_C, GROUP, BLOCK_M // GROUP]), 1)
        else:
            return tl.sum(tl.reshape(tile, [BLOCK_C, BLOCK_M // GROUP, GROUP]), 2)


@triton.jit
def folded_zeros(
    LAYOUT: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr, ACC: tl.constexpr
):
    if LAYOUT == "flat":
        return tl.zeros([BLOCK_C], ACC)
    else:
        return tl.zeros([BLOCK_C, BLOCK_M // min(BLOCK_M, FOLD)], ACC)


@triton.jit
def unfold(sums, LAYOUT: tl.constexpr):
    """Folded tiles summed over positions, [BLOCK_C]."""
    if LAYOUT == "flat":
        return sums
    else:
        return tl.sum(sums, 1)
