"""Tiles and launches from shapes, layout and device: pure functions, run and tested on any machine.

A feature map is [N, C, M] seen through tiles of [BLOCK_C channels × BLOCK_M positions]. The reduce
launch gives one program a row of tiles; the apply launch one tile.
"""

from functools import lru_cache
from typing import NamedTuple

# Accumulator bytes of one tile: 32 fp32 registers in each of a program's 128 threads.
TILE_BYTES = 16384
# Bounds of the block along the contiguous axis: full 128-byte lines; not so many positions that few
# channels are left to a tile, nor so many channels that a sample has few programs or many splits.
MIN_RUN, MAX_POSITIONS, MAX_CHANNELS = 64, 1024, 64
# Reduce programs wanted per multiprocessor before the spatial extent is no longer split.
PROGRAMS_PER_MULTIPROCESSOR = 8
# The last program of a sample loads so many of its partial sums at once. There is one such round, but for
# few samples: there as many splits, up to MAX_SPLITS, as give each multiprocessor BUSY_PROGRAMS.
PARTIALS_PER_ROUND = 8
BUSY_PROGRAMS, MAX_SPLITS = 4, 32
WARPS = 4
# The widest access of a GPU, in bytes.
ACCESS_BYTES = 16
# The per-sample excitation keeps all hidden units in registers, beside a chunk of channels and a
# round of their partial sums.
MAX_HIDDEN = 256
EXCITATION_TILE_BYTES = 8192
MAX_CHUNK = 512
# The cost model of excites_in_reduce, in bytes per nanosecond and nanoseconds.
PROGRAM_RATE = 16
MULTIPROCESSOR_RATE = 32
LAUNCHES_BETWEEN, LAUNCH_TIME = 6, 2000


class Device(NamedTuple):
    multiprocessors: int
    l2_bytes: int
    shared_bytes: int  # that one program may have


class Plan(NamedTuple):
    layout: str  # contiguous, channels_last or flat: see tiles.py
    block_c: int
    block_m: int
    align: int
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
    itemsize: int,
    device: Device,
    tile_bytes: int = TILE_BYTES,
) -> Plan:
    """The tiles of a non-empty [N, C, M] map and how the reduce launch shares them out."""
    layout, block_c, block_m, align = tile(
        channels, spatial, channels_last, itemsize, device, tile_bytes
    )
    channel_blocks = cdiv(channels, block_c)
    spatial_tiles = cdiv(spatial, block_m)
    most = most_splits(samples * channel_blocks, device)
    tiles_per_split = cdiv(spatial_tiles, min(most, spatial_tiles))
    splits = cdiv(spatial_tiles, tiles_per_split)
    return Plan(
        layout, block_c, block_m, align, channel_blocks, spatial_tiles, splits, tiles_per_split
    )


def most_splits(programs: int, device: Device) -> int:
    """How many programs at most share the positions of a channel block, where so many programs
    would have all of them."""
    wanted = cdiv(PROGRAMS_PER_MULTIPROCESSOR * device.multiprocessors, programs)
    busy = cdiv(BUSY_PROGRAMS * device.multiprocessors, programs)
    return max(1, min(wanted, max(PARTIALS_PER_ROUND, min(busy, MAX_SPLITS))))


def tile(
    channels: int,
    spatial: int,
    channels_last: bool,
    itemsize: int,
    device: Device,
    tile_bytes: int = TILE_BYTES,
) -> tuple[str, int, int, int]:
    """(layout, BLOCK_C, BLOCK_M, ALIGN): the contiguous axis first, the other has the rest.

    Planes that are not aligned for the widest access and fit in a tile several at a time are taken
    flat, if that aligns them better. A flat tile passes through shared memory; two programs share
    a multiprocessor's.
    """
    elements = tile_bytes // max(itemsize, 4)
    if channels_last or spatial == 1:
        block_c = _run(channels, MAX_CHANNELS)
        block_m = min(next_power_of_2(spatial), elements // block_c)
        return "channels_last", block_c, block_m, alignment(channels)
    align = alignment(spatial)
    block_m = next_power_of_2(spatial)
    block_c = min(next_power_of_2(channels), elements // block_m)
    staged = block_c * block_m * max(itemsize, 4)
    if align * itemsize < ACCESS_BYTES and block_c > 0 and 2 * staged <= device.shared_bytes:
        if alignment(min(alignment(channels), block_c) * spatial) > align:
            return "flat", block_c, block_m, alignment(channels)
    block_m = _run(spatial, MAX_POSITIONS)
    return "contiguous", min(next_power_of_2(channels), elements // block_m), block_m, align


def excites_in_reduce(
    samples: int,
    channels: int,
    hidden: int,
    weight_itemsize: int,
    splits: int,
    acc_itemsize: int,
    device: Device,
) -> bool:
    """Whether the reduce launch also computes the excitation, sample by sample.

    Each sample's last program then reads its partial sums, splits·C·acc_itemsize bytes, and both weight
    matrices from L2, 2·R·C·weight_itemsize. Costs, in ns:
        the last of them, alone and bound by latency       (partials + weights) / PROGRAM_RATE
        all of them, beside the map's own traffic          N·weights / (MULTIPROCESSOR_RATE·P)
    The other way, the partial sums are read only where there are several splits, and
        small kernels between the launches                 LAUNCHES_BETWEEN · LAUNCH_TIME
        that read the weights once                         weights / (MULTIPROCESSOR_RATE·P)
    Weights beyond half of L2 would come from memory for every sample, and hidden units beyond
    MAX_HIDDEN do not fit in registers: never in the launch. The rates are those of current GPUs
    within a factor of two; the costs differ by more where it matters.
    """
    weight_bytes = 2 * channels * hidden * weight_itemsize
    if hidden > MAX_HIDDEN or 2 * weight_bytes > device.l2_bytes:
        return False
    partials = splits * channels * acc_itemsize / PROGRAM_RATE
    all_together = MULTIPROCESSOR_RATE * device.multiprocessors
    inside = partials + weight_bytes / PROGRAM_RATE + samples * weight_bytes / all_together
    between = LAUNCHES_BETWEEN * LAUNCH_TIME + weight_bytes / all_together
    return inside <= between + (partials if splits > 1 else 0)


def excitation_tile(channels: int, hidden: int, acc_bytes: int) -> tuple[int, int]:
    """(BLOCK_R, CHUNK): all hidden units, by the channels taken in one step."""
    block_r = next_power_of_2(hidden)
    chunk = min(MAX_CHUNK, EXCITATION_TILE_BYTES // acc_bytes // block_r)
    return block_r, min(next_power_of_2(channels), chunk)


def alignment(extent: int) -> int:
    """The largest power of two, up to 16, that divides the extent."""
    return min(extent & -extent, 16)


def _run(extent: int, longest: int) -> int:
    """The block along the contiguous axis: least padding, then the longest."""
    if extent <= MIN_RUN:
        return next_power_of_2(extent)
    blocks = [MIN_RUN]
    while blocks[-1] < longest:
        blocks.append(2 * blocks[-1])
    return min(blocks, key=lambda block: (cdiv(extent, block) * block, -block))


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    return 1 << (n - 1).bit_length()
