"""DRAM traffic of the Triton launches by the order of their tiles: a model, nothing is measured.

    python benchmarks/l2_replay.py [GPU ...]

Replays which tiles the reduce and the apply launch touch, and in which order, through an LRU cache
of the size of a GPU's L2. Out of the model: sets and slices of the cache, time, everything smaller
than a tile, weights and sums.
"""

import sys
from collections import OrderedDict, deque
from typing import NamedTuple

TILE_BYTES = 16384  # a tile of an fp32 map, see se_fused/plan.py
PROGRAMS_PER_MULTIPROCESSOR = 8  # in flight together: 128 threads of up to 64 registers each
TILES_PER_PROGRAM = 4  # of the reduce launch; a 56×56 plane in blocks of 1024 positions
MAPS = (0.5, 1, 2, 4)  # sizes of x, in multiples of the cache
ORDERS = {  # apply: in reverse order? hints?
    "ascending": (False, False),
    "reverse": (True, False),
    "reverse, evict-first": (True, True),
}
DIRECTIONS = {  # reduce reads, apply reads, apply writes; the first map is read by both
    "forward": (("x",), "x", "y"),
    "backward": (("dy", "x"), "dy", "dx"),
}


class Gpu(NamedTuple):
    cache_mib: int  # the last cache in front of DRAM
    multiprocessors: int
    hints: bool  # whether Triton's evict_first reaches that cache: compute capability 8.0 and up


# NVIDIA's whitepapers of the Turing, A100, H100 (SXM5) and Ada architectures, and its tuning
# guides for Ampere and Hopper, sections on L2; B200: chipsandcheese.com/p/
# nvidias-b200-keeping-the-cuda-juggernaut; MI300X: rocm.docs.amd.com/en/latest/reference/
# gpu-specs.html (L3; each of its 8 dies has 4 MiB of L2 for itself).
GPUS = {
    "T4": Gpu(4, 40, hints=False),
    "A100": Gpu(40, 108, hints=True),
    "H100": Gpu(50, 132, hints=True),
    "B200": Gpu(126, 148, hints=True),
    "RTX 4090": Gpu(72, 128, hints=True),
    "MI300X": Gpu(256, 304, hints=False),
}


class Access(NamedTuple):
    tile: tuple[str, int]  # map, index
    store: bool = False
    evict_first: bool = False


class Cache:
    """LRU, write-back. Tiles touched with evict_first leave before all others, oldest first."""

    def __init__(self, capacity: int):
        self.capacity = capacity
        self.reads = self.writes = 0  # of DRAM, in tiles
        self.kept, self.leaving = OrderedDict(), OrderedDict()  # tile: is it dirty?

    def touch(self, access: Access):
        held = next((q for q in (self.kept, self.leaving) if access.tile in q), None)
        if held is None:
            self.reads += not access.store  # a store covers its tile: nothing to fetch
            if len(self.kept) + len(self.leaving) == self.capacity:
                self.evict()
        dirty = access.store or (held is not None and held[access.tile])
        if held is not None:
            del held[access.tile]
        (self.leaving if access.evict_first else self.kept)[access.tile] = dirty

    def evict(self):
        _, dirty = (self.leaving or self.kept).popitem(last=False)
        self.writes += dirty

    def flush(self):
        while self.leaving or self.kept:
            self.evict()


def interleave(programs, in_flight: int):
    """The accesses of the programs, started in order, of which in_flight take turns."""
    waiting, running = iter(programs), deque()
    while True:
        while len(running) < in_flight and (program := next(waiting, None)) is not None:
            running.append(iter(program))
        if not running:
            return
        program = running.popleft()
        if (access := next(program, None)) is not None:
            yield access
            running.append(program)


def replay(direction, order, tiles, capacity, in_flight=1, tiles_per_program=1):
    """(reads, writes) of DRAM, in multiples of the map's size."""
    (again, *once), source, target = DIRECTIONS[direction]
    reverse, hints = ORDERS[order]
    reduce = (
        [
            access
            for tile in range(first, min(first + tiles_per_program, tiles))
            for access in (
                Access((again, tile)),
                *(Access((name, tile), evict_first=hints) for name in once),
            )
        ]
        for first in range(0, tiles, tiles_per_program)
    )
    apply = (
        [Access((source, tile), False, hints), Access((target, tile), True, hints)]
        for tile in (range(tiles - 1, -1, -1) if reverse else range(tiles))
    )
    cache = Cache(capacity)
    for launch in (reduce, apply):
        for access in interleave(launch, in_flight):
            cache.touch(access)
    cache.flush()
    return cache.reads / tiles, cache.writes / tiles


def table(name: str) -> str:
    gpu = GPUS[name]
    capacity = gpu.cache_mib * 2**20 // TILE_BYTES
    in_flight = gpu.multiprocessors * PROGRAMS_PER_MULTIPROCESSOR
    lines = [
        f"{name}, {gpu.cache_mib} MiB. Modelled DRAM reads + writes, in multiples of |x|, "
        "for |x| of",
        f"{'':32}" + "".join(f"{size:>8}× cache" for size in MAPS),
    ]
    for direction in DIRECTIONS:
        for order, (_, hints) in ORDERS.items():
            if hints and not gpu.hints:
                continue
            traffic = (
                replay(
                    direction, order, int(size * capacity), capacity, in_flight, TILES_PER_PROGRAM
                )
                for size in MAPS
            )
            cells = "".join(f"{reads:>8.2f} + {writes:.2f}" for reads, writes in traffic)
            lines.append(f"{direction + ', ' + order:32}{cells}")
    return "\n".join(lines)


if __name__ == "__main__":
    print("\n\n".join(table(name) for name in sys.argv[1:] or GPUS))
