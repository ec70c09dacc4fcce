"""One SE block: FusedSE against what users would use instead, on maps of real networks.

    pytest benchmarks/bench_block.py            a quick selection
    pytest benchmarks/bench_block.py --full     every map, block, dtype and layout

A row times one contender; FusedSE has its turn before each of its rounds, so that both meet the
same disturbances. Each is first compared with float64. pytest-benchmark's JSON gets, as
``extra_info``, FusedSE's own times and what `report.py` needs for its tables.
"""

import itertools
import math

import pytest
import torch
from lib import contenders, maps
from lib.inputs import DTYPES, LAYOUTS, Inputs
from lib.timing import (
    Graphed,
    copy_bandwidth,
    in_turn,
    launch_milliseconds,
    quartiles,
    stopwatch,
)  # fmt: skip
from lib.verification import Exact, without_tf32

from se_fused import backend

DIRECTIONS = ("forward", "forward+backward")
# Passes over the map, counted by `count_traffic.py`. Compiled blocks fuse differently from map to
# map.
PASSES = {
    "forward": {"eager": 3, "fused": 3},
    "forward+backward": {"eager": 13, "fused": 7},
}
SECONDS = 1.0
# Network and channels.
QUICK_MAPS = [
    ("seresnet50", 256), ("seresnet50", 2048), ("efficientnet_b0", 96),
    ("mobilenetv3_large_100", 960),
]
QUICK_CONTENDERS = ("timm", "functional, compiled")
CONTENDERS = (*contenders.EAGER, *contenders.COMPILED)


def rows():
    """All rows, those that are not quick marked ``full``."""
    quick = [map for map in maps.load() if (map.network, map.shape[1]) in QUICK_MAPS]
    found = []
    for map, dtype, layout, name in itertools.product(maps.load(), DTYPES, LAYOUTS, CONTENDERS):
        if not contenders.takes(name, map):
            continue
        is_quick = map in quick and dtype != "fp16" and name in QUICK_CONTENDERS
        marks = [] if is_quick else [pytest.mark.full]
        label = f"{map.network}-{map.size}-{dtype}-{layout}-{name}"
        label = label.replace(", ", "-").replace("×", "x")
        found.append(pytest.param(map, dtype, layout, name, id=label, marks=marks))
    return found


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("map, dtype, layout, name", rows())
def test_block(benchmark, device, fused_backend, map, dtype, layout, name, direction):
    inputs = Inputs(map, DTYPES[dtype], layout, device)
    theirs, ours = contenders.pair(name, map, DTYPES[dtype], device)
    with backend(fused_backend), without_tf32():
        exact = Exact(contenders.functional(map), ours, *inputs.first)
        exact.judge(ours)
        exact.judge(theirs, arithmetic=DTYPES[dtype])
        sides = {"this": theirs, "fused": ours}
        benchmark.group = f"{map.network} {map.size} {dtype} {layout} {direction}"
        benchmark.extra_info.update(
            network=map.network, shape=map.shape, hidden=map.hidden, act=map.act, gate=map.gate,
            blocks=map.blocks, dtype=dtype, layout=layout, direction=direction, contender=name,
            backend=fused_backend, threads=torch.get_num_threads(),
            map_bytes=inputs.map_bytes,
            passes=PASSES[direction],
            copy_gbs=copy_bandwidth(math.prod(map.shape), DTYPES[dtype], device),
            **measure(benchmark, sides, inputs, direction, device),
        )


def measure(benchmark, sides, inputs, direction, device) -> dict:
    """Times the contender with pytest-benchmark, FusedSE in between; the times of both in ms."""
    calls = {name: inputs.caller(block, direction) for name, block in sides.items()}
    turns = {name: stopwatch(call, device) for name, call in calls.items()}
    estimate = sum(measured() for measured in turns.values()) / 1e3
    rounds = min(max(int(SECONDS / max(estimate, 1e-9)), 7), 200)
    times = {"this": [], "fused": []}

    def turn(name):
        times[name].append(turns[name]())

    benchmark.pedantic(
        turn, args=("this",), setup=lambda: turn("fused"), rounds=rounds, warmup_rounds=2
    )
    found = {f"{name}_ms": quartiles(of[2:]) for name, of in times.items()}
    if device.type == "cuda":
        count = len(inputs.sets)
        graphs = {
            name: Graphed(inputs.callers(block, direction), device)
            for name, block in sides.items()
        }
        for name, of in in_turn(graphs, seconds=0, fewest=20, device=device).items():
            found[f"{name}_graph_ms"] = quartiles([passed / count for passed in of])
            found[f"{name}_launch_ms"] = quartiles(
                [launch_milliseconds(calls[name], device) for _ in range(20)]
            )
    return found
