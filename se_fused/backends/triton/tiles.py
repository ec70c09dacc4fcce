"""Where a tile of a feature map lies in memory, in either layout."""

import triton
import triton.language as tl


@triton.jit
def program_index(blocks_per_sample, tiles_per_block, REVERSE: tl.constexpr):
    """(sample, channel block, tile of the block) of this program, int64; the last runs fastest."""
    program = tl.program_id(0)
    if REVERSE:
        program = tl.num_programs(0) - 1 - program
    block = program // tiles_per_block
    return (
        (block // blocks_per_sample).to(tl.int64),
        (block % blocks_per_sample).to(tl.int64),
        (program % tiles_per_block).to(tl.int64),
    )


@triton.jit
def tile_offsets(sample, channel, position, channels, spatial, CHANNELS_LAST: tl.constexpr):
    """Offsets and mask, [BLOCK_C, BLOCK_M], of int64 channels and positions of a sample."""
    if CHANNELS_LAST:
        offset = position[None, :] * channels + channel[:, None]
    else:
        offset = channel[:, None] * spatial + position[None, :]
    mask = (channel[:, None] < channels) & (position[None, :] < spatial)
    return sample * channels * spatial + offset, mask
