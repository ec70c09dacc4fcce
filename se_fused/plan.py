"""Tiles and launches from shapes, layout and device: pure functions, run and tested on any machine.

A feature map is [N, C, M] seen through tiles of [BLOCK_C channels × BLOCK_M positions], one layout
or the other. The reduce launch gives one program a row of tiles; the apply launch one tile.
"""

from functools import lru_cache
from typing import NamedTuple

# Accumulator bytes of one tile: 32 fp32 registers in each of a program's 128 threads.
TILE_BYTES = 16384
# Bounds of the block along the contiguous axis: full 128-byte lines, several channels per tile.
MIN_RUN, MAX_RUN = 64, 1024
# Reduce programs wanted per multiprocessor before the spatial extent is no longer split.
PROGRAMS_PER_MULTIPROCESSOR = 8
# The per-sample excitation keeps all hidden units in registers, beside a chunk of channels.
MAX_HIDDEN = 256
EXCITATION_TILE_BYTES = 8192


class Plan(NamedTuple):
    block_c: int
    block_m: int
    channel_blocks: int
    spatial_tiles: int
    splits: int  # reduce programs that share the positions of one channel block
    tiles_per_split: int


@lru_cache(maxsize=1024)
def plan(
    samples: int,
    channels: int,
    spatial: int,
    channels_last: bool,
    acc_bytes: int,
    multiprocessors: int,
) -> Plan:
    """The tiles of a non-empty [N, C, M] map and how the reduce launch shares them out."""
    block_c, block_m = tile(channels, spatial, channels_last, acc_bytes)
    channel_blocks = cdiv(channels, block_c)
    spatial_tiles = cdiv(spatial, block_m)
    wanted = cdiv(PROGRAMS_PER_MULTIPROCESSOR * multiprocessors, samples * channel_blocks)
    tiles_per_split = cdiv(spatial_tiles, min(wanted, spatial_tiles))
    splits = cdiv(spatial_tiles, tiles_per_split)
    return Plan(block_c, block_m, channel_blocks, spatial_tiles, splits, tiles_per_split)


def tile(channels: int, spatial: int, channels_last: bool, acc_bytes: int) -> tuple[int, int]:
    """(BLOCK_C, BLOCK_M): the contiguous axis first, the other axis gets what the tile has left."""
    size = TILE_BYTES // acc_bytes
    if channels_last:
        block_c = _run(channels)
        return block_c, min(next_power_of_2(spatial), size // block_c)
    block_m = _run(spatial)
    return min(next_power_of_2(channels), size // block_m), block_m


def excites_in_reduce(spatial: int, hidden: int) -> bool:
    """Whether the reduce launch also computes the excitation, sample by sample.

    Each sample then reads both weight matrices, 2·R·C elements, on top of its own C·M. Where that
    is more than the sample itself, matmuls between the launches read them once for all samples.
    """
    return 2 * hidden <= spatial and hidden <= MAX_HIDDEN


def excitation_tile(channels: int, hidden: int, acc_bytes: int) -> tuple[int, int]:
    """(BLOCK_R, CHUNK): all hidden units, by the channels taken in one step."""
    block_r = next_power_of_2(hidden)
    return block_r, min(next_power_of_2(channels), EXCITATION_TILE_BYTES // acc_bytes // block_r)


def _run(extent: int) -> int:
    """The block along the contiguous axis: least padding, then the longest."""
    if extent <= MIN_RUN:
        return next_power_of_2(extent)
    blocks = [MIN_RUN]
    while blocks[-1] < MAX_RUN:
        blocks.append(2 * blocks[-1])
    return min(blocks, key=lambda block: (cdiv(extent, block) * block, -block))


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    return 1 << (n - 1).bit_length()
