"""The first stages of gpu.py: what the device is, and whether the kernels are right on it."""

import copy
import itertools

import torch
from bench_tail import contenders as ends_of_blocks
from bench_tail import without_close_calls
from gpu_stages.stage import chosen
from lib import contenders
from lib.inputs import DTYPES, LAYOUTS, Inputs
from lib.maps import Map
from lib.tails import MBCONV, RESIDUAL
from lib.timing import copy_bandwidth
from lib.verification import Exact, gradients

COPIES = (1 << 30, 51 << 20)  # bytes; the second is the largest map of SE-ResNet-50 at 32 samples
# Shape, hidden width and dtype: one tile, a plane of several, a flat layout, odd sizes.
SHAPES = [
    ((4, 64, 14, 14), 8, "bf16"), ((2, 256, 56, 56), 16, "bf16"), ((8, 512, 7, 7), 32, "fp16"),
    ((3, 33, 5, 5), 4, "fp32"),
]  # fmt: skip
KINDS = {"SE": None, RESIDUAL.name: RESIDUAL, MBCONV.name: MBCONV}


def device(stage):
    """Facts, and the GB/s of copies: the ceiling. Nobody else is on the GPU."""
    stage.plans("copy", len(COPIES))
    for backend, reason in stage.why_not.items():
        stage.write("backends", backend=backend, why_not=reason)
    for size in COPIES:
        size = size >> 10 if stage.dry else size
        gbs = copy_bandwidth(size // 2, torch.bfloat16, stage.device)
        stage.write("copy", bytes=size, gbs=gbs)


def smoke(stage, part=slice(None)):
    """Each backend, block, layout and shape against float64, by the rule of errors; and whether it
    finds the same bits twice. part: of the cases, for processes that share them."""
    cases = list(itertools.product(stage.backends, KINDS, LAYOUTS, SHAPES))
    stage.plans("smoke", len(cases))
    for backend, kind, layout, (shape, hidden, dtype) in cases[part]:
        case = {"backend": backend, "kind": kind, "shape": shape, "layout": layout, "dtype": dtype}
        map = Map("", shape, hidden, "relu", "sigmoid", 1)
        try:
            used = compare(backend, KINDS[kind], map, layout, dtype, stage.device)
            stage.write("smoke", **case, ok=True, used=used)
        except Exception as error:  # of the kernels, of the driver, of the compiler: all are wrong
            stage.write("smoke", **case, ok=False, error=f"{type(error).__name__}: {error}"[:300])


def compare(backend, tail, map, layout, dtype, device) -> float:
    """The share that is used of the error that rounding may leave."""
    inputs = Inputs(map, DTYPES[dtype], layout, device, bool(tail and tail.add), sets=1)
    x, dy, *residual = inputs.first
    if tail is None:
        plain = contenders.functional(map)
        block = contenders.fused(map).to(device, x.dtype)
        exact = Exact(plain, block, x, dy)
    else:
        ends = ends_of_blocks(tail, map, x.dtype, device)
        plain, block = ends["eager"], ends["fused"]
        dy = without_close_calls(plain, x, dy, *residual)
        exact = Exact(copy.deepcopy(plain), plain, x, dy, *residual)
    with chosen(backend):
        used = exact.judge(block)
        once, again = (gradients(block, dy, x, *residual) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, again)), "not the same bits twice"
    return used
