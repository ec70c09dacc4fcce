"""The stages of gpu.py that time one SE block and the end of a residual block, in bfloat16.

Nothing is timed that has not been compared with float64, variants of the launches included.
"""

import functools
import math

import bench_tail
import torch
from bench_block import DIRECTIONS, PASSES
from gpu_stages.stage import Side, chosen
from lib import contenders, maps
from lib.inputs import Inputs
from lib.tails import MBCONV, RESIDUAL
from lib.timing import copy_bandwidth
from lib.verification import Exact, copy_weights

DTYPE, DTYPE_NAME = torch.bfloat16, "bf16"
CONTENDERS = ("timm", "functional, compiled")
# Of the first backend, beside what the plan chooses.
VARIANTS = {
    "2 warps": {"warps": 2},
    "4 warps": {"warps": 4},
    "8 warps": {"warps": 8},
    "excitation inside": {"inside": True},
    "excitation between": {"inside": False},
}
TAILS = [
    (RESIDUAL, ("seresnet50", 256)), (RESIDUAL, ("seresnet50", 2048)),
    (MBCONV, ("efficientnet_b0", 96)), (RESIDUAL, ("seresnet50", 512)),
    (RESIDUAL, ("seresnet50", 1024)),
]  # fmt: skip


def cases(dry: bool) -> list[tuple[maps.Map, str]]:
    """Maps and layouts, most wanted first."""
    early, *middle, late = maps.load("seresnet50")
    if dry:
        return [(tiny(early), "channels_last"), (tiny(late), "contiguous")]
    thin = _map("efficientnet_b0", 96)
    many, single = (early._replace(shape=(n, *early.shape[1:])) for n in (256, 1))
    last = [early, late, *middle, thin, many, single]
    return [(map, "channels_last") for map in last] + [(early, "contiguous"), (late, "contiguous")]


def ends(dry: bool):
    found = [(tail, _map(*which)) for tail, which in TAILS]
    return [(tail, tiny(map)) for tail, map in found[1:3]] if dry else found


def tiny(map: maps.Map) -> maps.Map:
    return map._replace(shape=(2, map.shape[1] // 16, 8, 8), hidden=max(map.hidden // 8, 1))


def _map(network: str, channels: int) -> maps.Map:
    return next(map for map in maps.load(network) if map.shape[1] == channels)


def block(stage, part=slice(None)):
    """part: of the cases, for processes that share the warming."""
    wanted = cases(stage.dry)[part]
    stage.plans("block", len(wanted) * len(DIRECTIONS) * len(CONTENDERS) * len(stage.backends))
    stage.plans("variants", len(wanted) * len(DIRECTIONS) * len(VARIANTS))
    for map, layout in wanted:
        stage.attempt(f"{map.size} {layout}", _block, stage, map, layout)


def _block(stage, map, layout):
    inputs = Inputs(map, DTYPE, layout, stage.device)
    ours = contenders.fused(map).to(stage.device, DTYPE)
    exact = None if stage.warming else Exact(contenders.functional(map), ours, *inputs.first)
    contexts = {backend: functools.partial(chosen, backend) for backend in stage.backends}
    variants = {
        name: functools.partial(chosen, stage.backends[0], **how) for name, how in VARIANTS.items()
    }

    def judge(block, **how):
        if exact is not None:
            exact.judge(block, **how)

    def verified(context):
        with context():
            judge(ours)
        return context

    def contender(name):
        theirs, _ = contenders.pair(name, map, DTYPE, stage.device)
        copy_weights(theirs, ours)
        judge(theirs, arithmetic=DTYPE)
        return theirs

    contexts, variants = (
        {name: context for name, context in of.items()
         if stage.attempt(f"{map.size} {layout}: {name}", verified, context)}
        for of in (contexts, variants)
    )  # fmt: skip
    theirs = {name: stage.attempt(f"{map.size} {layout}: {name}", contender, name)
              for name in CONTENDERS}  # fmt: skip
    theirs = {name: found for name, found in theirs.items() if found is not None}
    copy_gbs = None if stage.warming else copy_bandwidth(math.prod(map.shape), DTYPE, stage.device)
    for direction in DIRECTIONS:
        row = {
            "network": map.network, "shape": map.shape, "hidden": map.hidden, "act": map.act,
            "gate": map.gate, "blocks": map.blocks, "dtype": DTYPE_NAME, "layout": layout,
            "direction": direction, "map_bytes": inputs.map_bytes,
        }  # fmt: skip
        calls = inputs.callers(ours, direction)
        sides = {name: Side(calls, context) for name, context in contexts.items()}
        sides |= {name: Side(inputs.callers(of, direction)) for name, of in theirs.items()}
        found = stage.measure(sides)
        beside = {"threads": torch.get_num_threads(), "copy_gbs": copy_gbs,
                  "passes": PASSES[direction]}
        for backend in contexts if found else ():
            for name in theirs:
                pair = {"this": found[name], "fused": found[backend]}
                times = {f"{who}_{what}": value for who, of in pair.items()
                         for what, value in of.items()}
                stage.write("block", **row, **beside, contender=name, backend=backend, **times)
        found = stage.measure({name: Side(calls, context) for name, context in variants.items()})
        for name, times in found.items():
            stage.write("variants", of="SE", **row, variant=name, **times)


def tail(stage, part=slice(None)):
    """First what needs no compiler, then all beside each other again."""
    wanted = ends(stage.dry)[part]
    stage.plans("tail", len(wanted))
    for compiled in (False, True):
        for end, map in wanted:
            stage.attempt(f"{end.name}, {map.size}", _tail, stage, end, map, compiled)


def _tail(stage, end, map, compiled: bool):
    inputs = Inputs(map, DTYPE, "channels_last", stage.device, end.add)
    blocks = bench_tail.contenders(end, map, DTYPE, stage.device)
    if compiled:
        blocks |= bench_tail.compiled(blocks)
    backend = stage.backends[0]
    context = functools.partial(chosen, backend)
    right = {*blocks}

    def attempt(name, call):
        if stage.attempt(f"{end.name}, {map.size}: {name}", call) is None:
            right.remove(name)

    if not stage.warming:
        with context():
            bench_tail.judge(blocks, *inputs.first, attempt=attempt)
        assert "fused" in right, "the fused block is wrong: nothing to compare"
    blocks = {name: block for name, block in blocks.items() if name in right}
    calls = {name: inputs.callers(block, "forward+backward") for name, block in blocks.items()}
    row = {
        "network": map.network, "shape": map.shape, "hidden": map.hidden, "dtype": DTYPE_NAME,
        "layout": "channels_last", "map_bytes": inputs.map_bytes,
    }  # fmt: skip
    found = stage.measure({name: Side(of, context) for name, of in calls.items()})
    if found:
        by_figure = {
            what: {name: times[what] for name, times in found.items() if what in times}
            for what in ("ms", "graph_ms", "launch_ms", "kernels")
        }
        threads = torch.get_num_threads()
        stage.write("tail", tail=end.name, **row, backend=backend, threads=threads, **by_figure)
    if compiled:
        return
    warps = {name: how for name, how in VARIANTS.items() if "warps" in how}
    found = stage.measure({
        name: Side(calls["fused"], functools.partial(chosen, backend, **how))
        for name, how in warps.items()
    })
    for name, times in found.items():
        direction = "forward+backward"
        stage.write("variants", of=end.name, **row, direction=direction, variant=name, **times)
