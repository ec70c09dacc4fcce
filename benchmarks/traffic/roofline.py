"""Floating-point operations and bytes of one SE block, for the roofline.

With N samples, C channels, M positions and R hidden units, forward: the squeeze adds N·C·M numbers,
the rescale multiplies as many, the excitation's two layers take 4·N·C·R. Backward: dy · x and its
sum, dy · g and what is added to it are 4·N·C·M, and each layer's two gradients 8·N·C·R.

These count for every side, however it computes. The bytes are each side's own: the passes over the
map counted for it (results/traffic.json for compiled blocks) × the bytes of the map.
"""

import functools
import json
import math
from pathlib import Path

FORMULAS = {
    "forward": "2·N·C·M + 4·N·C·R",
    "forward+backward": "6·N·C·M + 12·N·C·R",
}
TRAFFIC = Path(__file__).parents[1] / "results" / "traffic.json"
# How count_traffic.py calls the compiled blocks.
COMPILED = {
    "timm, compiled": "compiled, 1 × 1 convolutions",
    "torchvision, compiled": "compiled, 1 × 1 convolutions",
    "functional, compiled": "compiled, linear layers",
}


def flops(row) -> int:
    samples, channels, *spatial = row["shape"]
    positions, hidden = math.prod(spatial), row["hidden"]
    forward = 2 * samples * channels * positions + 4 * samples * channels * hidden
    return forward if row["direction"] == "forward" else 3 * forward


def passes(row, side: str) -> float:
    """Of a side, eager, compiled or fused, over the map."""
    if side != "compiled":
        return row["passes"][side]
    counted = compiled_passes()[COMPILED[row["contender"]], row["layout"]]
    return counted["forward"] + counted["backward"] * (row["direction"] != "forward")


def intensity(row, side: str) -> float:
    """FLOP per byte."""
    return flops(row) / (passes(row, side) * row["map_bytes"])


def gigaflops(row, milliseconds: float) -> float:
    """Per second."""
    return flops(row) / milliseconds / 1e6


@functools.cache
def compiled_passes() -> dict[tuple[str, str], dict[str, float]]:
    """{(block, layout): {direction: passes}}; the same for every map that is counted."""
    found = {}
    for row in json.loads(TRAFFIC.read_text())["rows"]:
        found.setdefault((row["block"], row["layout"]), []).append(
            {direction: row[direction]["passes"] for direction in ("forward", "backward")}
        )
    for block, counts in found.items():
        assert all(count == counts[0] for count in counts), f"{block}: maps differ"
    return {block: counts[0] for block, counts in found.items()}
