"""DRAM traffic of the Triton launches by the order of their tiles: a model, nothing is measured.

    python benchmarks/traffic/l2_replay.py [GPU ...]

Replays which tiles the reduce and the apply launch touch, and in which order, through an LRU cache
of the size of a GPU's L2. Not in the model: the cache's sets and slices, time, anything smaller
than a tile, weights and sums.
"""

import argparse
from collections import OrderedDict, deque
from itertools import islice
from typing import NamedTuple

TILE_BYTES = 16384  # of an fp32 map, see se_fused/backends/triton/plan.py
PROGRAMS_PER_MULTIPROCESSOR = 8  # in flight together: 128 threads of 64 registers each
TILES_PER_PROGRAM = 4  # of the reduce launch: a 56×56 plane in blocks of 1024 positions
MAPS = (0.5, 1, 2, 4)  # |x| in multiples of the cache
ORDERS = {  # apply in reverse order?  evict-first for what is not read again?
    "ascending": (False, False),
    "reverse": (True, False),
    "reverse, evict-first": (True, True),
}
DIRECTIONS = {  # read by both launches, read by reduce alone, written by apply
    "forward": ("x", [], "y"),
    "backward": ("dy", ["x"], "dx"),
}


class Gpu(NamedTuple):
    cache_mib: int  # the last cache in front of DRAM
    multiprocessors: int
    hints: bool  # Triton's evict_first gets there: compute capability 8.0 and up, not 7.5 or AMD


# NVIDIA's whitepapers of the Turing, A100, H100 (SXM5) and Ada architectures, and its tuning guides
# for Ampere and Hopper; B200: chipsandcheese.com/p/nvidias-b200-keeping-the-cuda-juggernaut;
# MI300X: rocm.docs.amd.com/en/latest/reference/gpu-specs.html (L3; an L2 belongs to one die of 8).
GPUS = {
    "T4": Gpu(4, 40, hints=False),
    "A100": Gpu(40, 108, hints=True),
    "H100": Gpu(50, 132, hints=True),
    "B200": Gpu(126, 148, hints=True),
    "RTX 4090": Gpu(72, 128, hints=True),
    "MI300X": Gpu(256, 304, hints=False),
}


class Cache:
    """LRU and write-back, of whole tiles; what is touched evict-first is next to go."""

    def __init__(self, capacity: int):
        self.capacity = capacity
        self.reads = self.writes = 0  # of DRAM
        self.held = OrderedDict()  # tile: is it dirty?

    def touch(self, tile, store: bool, evict_first: bool):
        if tile not in self.held:
            self.reads += not store  # a store covers its tile, nothing is fetched
            if len(self.held) == self.capacity:
                self.evict()
        self.held[tile] = self.held.pop(tile, False) or store
        self.held.move_to_end(tile, last=not evict_first)

    def evict(self):
        self.writes += self.held.popitem(last=False)[1]


def interleave(programs, in_flight: int):
    """The accesses of the programs, which start in order and take turns, in_flight at a time."""
    programs = map(iter, programs)
    running = deque(islice(programs, in_flight))
    while running:
        program = running.popleft()
        access = next(program, None)
        if access is None:
            running.extendleft(islice(programs, 1))  # the next one takes over its turn
        else:
            yield access
            running.append(program)


def replay(direction, order, tiles, capacity, in_flight=1, tiles_per_program=1):
    """(reads, writes) of DRAM, in multiples of the map's size."""
    again, once, target = DIRECTIONS[direction]
    reverse, hints = ORDERS[order]

    def reduce(tile):
        yield (again, tile), False, False
        for name in once:
            yield (name, tile), False, hints

    def apply(tile):
        yield (again, tile), False, hints
        yield (target, tile), True, hints

    rows = (range(tiles)[i : i + tiles_per_program] for i in range(0, tiles, tiles_per_program))
    cache = Cache(capacity)
    for launch in (
        ((access for tile in row for access in reduce(tile)) for row in rows),
        map(apply, reversed(range(tiles)) if reverse else range(tiles)),
    ):
        for access in interleave(launch, in_flight):
            cache.touch(*access)
    while cache.held:
        cache.evict()
    return cache.reads / tiles, cache.writes / tiles


def table(name: str) -> str:
    gpu = GPUS[name]
    capacity = gpu.cache_mib * 2**20 // TILE_BYTES
    in_flight = gpu.multiprocessors * PROGRAMS_PER_MULTIPROCESSOR
    lines = [
        f"{name}, {gpu.cache_mib} MiB: modelled DRAM reads + writes in |x|",
        f"{'map / cache':32}" + "".join(f"{size:14}" for size in MAPS),
    ]
    for direction in DIRECTIONS:
        for order, (_, hints) in ORDERS.items():
            if gpu.hints or not hints:
                sizes = [int(size * capacity) for size in MAPS]
                cells = [
                    replay(direction, order, size, capacity, in_flight, TILES_PER_PROGRAM)
                    for size in sizes
                ]
                lines.append(
                    f"{direction + ', ' + order:32}"
                    + "".join(f"{reads:7.2f} + {writes:.2f}" for reads, writes in cells)
                )
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("gpu", nargs="*", help=", ".join(GPUS))
    names = parser.parse_args().gpu
    if unknown := set(names) - set(GPUS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(GPUS)}")
    print("\n\n".join(map(table, names or GPUS)))
