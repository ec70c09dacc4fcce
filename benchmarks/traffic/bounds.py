"""The time that a GPU's memory needs for the passes of one SE block: a bound, not a measurement.

Passes counted by count_traffic.py (results/traffic.json) × bytes of the map / published bandwidth.
"""

import math
from typing import NamedTuple

from traffic.l2_replay import GPUS

PLAIN, FUSED = "plain PyTorch", "FusedSE"
RESIDUAL = "BN + SE + add + ReLU"  # the end of a block, with what tails.py makes of it
MAP = 32, 256, 56, 56  # the first stage of SE-ResNet-50 at batch 32
BYTES = 2 * math.prod(MAP)  # in float16 or bfloat16
# Forward x is read and y written, backward x and dy are read and dx is written.
FLOOR = 2 + 3


class Memory(NamedTuple):
    bandwidth: int  # GB/s
    source: str


MEMORIES = {
    "T4": Memory(320, "NVIDIA T4 data sheet: 320+ GB/s"),
    "A100": Memory(2039, "NVIDIA A100 data sheet, 80 GB SXM: 2,039 GB/s"),
    "H100": Memory(3350, "NVIDIA H100 data sheet, SXM: 3.35 TB/s"),
    "B200": Memory(8000, "NVIDIA DGX B200 data sheet: 64 TB/s for eight"),
    "RTX 4090": Memory(1008, "NVIDIA Ada GPU architecture whitepaper: 1008 GB/s"),
    "MI300X": Memory(5300, "AMD Instinct MI300X data sheet: 5.3 TB/s"),
}


def microseconds(passes: float, bandwidth: int) -> float:
    return passes * BYTES / bandwidth / 1e3


def totals(rows) -> dict[str, dict[str, float]]:
    """Passes forward and backward together, {block: {layout: passes}}, the same for every map."""
    found = {}
    for row in rows:
        passes = row["forward"]["passes"] + row["backward"]["passes"]
        layouts = found.setdefault(row["block"], {})
        assert layouts.setdefault(row["layout"], passes) == passes, "maps differ"
    return found


def columns(totals, floor: int | None = FLOOR) -> dict[float, list[str]]:
    """Who makes so many passes, the most first."""
    found = {}
    for block, layouts in totals.items():
        for layout, passes in layouts.items():
            same = len(set(layouts.values())) == 1
            names = found.setdefault(passes, {})
            names[block if same else f"{block}, {layout}"] = None
    if floor is not None:
        found.setdefault(floor, {})["floor"] = None
    return {passes: list(found[passes]) for passes in sorted(found, reverse=True)}


def table(result) -> str:
    passes = totals(result["rows"])
    (plain,), (fused,) = (set(passes[block].values()) for block in (PLAIN, FUSED))
    sides = columns(passes)
    lines = [
        "Bound, computed, measured on no GPU: microseconds that the passes of the table above, "
        "forward and backward together, take at the memory bandwidth that the vendor publishes, "
        f"for a map of {' × '.join(map(str, MAP))} in 16 bit ({BYTES / 1e6:.0f} MB; others in "
        "proportion). Compiled code is what Inductor plans for the CPU; for a GPU its plan may "
        "differ.",
        "",
        *by_gpu(sides),
        "",
        f"Plain PyTorch's bound is {plain / fused:.2f} times FusedSE's and {plain / FLOOR:.2f} "
        "times the floor: x read and y written, x and dy read and dx written. FusedSE gets there "
        "where its second launch finds in the cache what the first one has read. No pass that goes "
        "to memory is faster than its bound; one that finds the map in the cache may be, and a map "
        f"of this size fits the last cache of {', '.join(fitting())}.",
    ]
    return "\n".join(lines)


def by_gpu(sides: dict[float, list[str]]) -> list[str]:
    head = ["GPU", "GB/s", *(f"{count:.4g} passes: {'; '.join(sides[count])}" for count in sides)]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, memory in MEMORIES.items():
        times = [f"{microseconds(count, memory.bandwidth):.0f}" for count in sides]
        lines.append("| " + " | ".join([name, str(memory.bandwidth), *times]) + " |")
    return lines


def fitting() -> list[str]:
    """The GPUs whose last cache a map fits."""
    return [name for name in MEMORIES if BYTES <= GPUS[name].cache_mib * 2**20]


def tail_table(result) -> str:
    """The end of a block of SE-ResNet against that of ResNet."""
    found = {}
    for row in result["tails"]["rows"]:
        if (row["tail"], row["dtype"]) == (RESIDUAL, "bf16"):
            both = row["forward"], row["backward"]
            passes = sum(of["passes"] + of.get("mask", 0) for of in both)
            found.setdefault(row["side"], {})[row["layout"]] = passes
    eager, without, fused = (
        max(found[side].values()) for side in (PLAIN, f"{PLAIN}, without SE", "fused")
    )
    return "\n".join([
        "Bound, computed, measured on no GPU, as above: microseconds that the passes of the end of "
        f"a residual block ({RESIDUAL}) and of the same block without SE take, forward and "
        f"backward together, for maps of {' × '.join(map(str, MAP))} in 16 bit. In 16 bit the mask "
        "is twice the share of a pass that it is in float32.",
        "",
        *by_gpu(columns(found, floor=None)),
        "",
        f"SE costs plain PyTorch {eager / without:.2f} times the bound of the block without it. "
        f"Fused, the block with SE has {fused / without:.2f} times the bound of plain PyTorch's "
        f"without: {eager / fused:.2f} times less than with it.",
    ])
