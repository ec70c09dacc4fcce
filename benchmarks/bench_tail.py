"""The end of a residual block, forward and backward: fused, and what it is measured against.

    pytest benchmarks/bench_tail.py           without the compiled copies
    pytest benchmarks/bench_tail.py --full    with them

BatchNorm → SE → + residual → ReLU of SE-ResNet-50, and BatchNorm → SiLU → SE of EfficientNet-B0.
Beside the fused one take turns: eager PyTorch, the same with only SE swapped, and the same without
SE, whose time is what a block without SE takes. Each is first compared with float64.
"""

import copy
import functools
import itertools
import math

import pytest
import torch
from lib import maps
from lib.inputs import DTYPES, LAYOUTS, Inputs
from lib.tails import MBCONV, RESIDUAL
from lib.timing import beside, quartiles
from lib.verification import Exact, copy_weights, without_tf32
from torch import Tensor, nn

from se_fused import backend

# Network, channels and pixels of a side.
MAPS = {
    RESIDUAL: [("seresnet50", 256, 56), ("seresnet50", 512, 28), ("seresnet50", 2048, 7)],
    MBCONV: [("efficientnet_b0", 96, 56), ("efficientnet_b0", 144, 56),
             ("efficientnet_b0", 240, 28)],
}  # fmt: skip
SECONDS = 4


def rows():
    return [
        pytest.param(
            tail, map, dtype, layout,
            id=f"{tail.name}-{map.size}-{dtype}-{layout}".replace(" + ", "-").replace("×", "x"),
        )
        for tail, wanted in MAPS.items()
        for map in maps.load()
        if (map.network, map.shape[1], map.shape[-1]) in wanted
        for dtype, layout in itertools.product(("fp32", "bf16"), LAYOUTS)
    ]


@pytest.mark.parametrize("tail, map, dtype, layout", rows())
def test_tail(benchmark, device, fused_backend, request, tail, map, dtype, layout):
    torch.manual_seed(0)
    inputs = Inputs(map, DTYPES[dtype], layout, device, tail.add)
    blocks = contenders(tail, map, DTYPES[dtype], device)
    if request.config.getoption("--full"):
        blocks |= compiled(blocks)
    with backend(fused_backend), without_tf32():
        judge(blocks, *inputs.first)
        calls = {name: inputs.caller(block, "forward+backward") for name, block in blocks.items()}
        times = beside(benchmark, calls, "fused", SECONDS, device)
    benchmark.extra_info.update(
        tail=tail.name, network=map.network, shape=map.shape, hidden=map.hidden, dtype=dtype,
        layout=layout, backend=fused_backend, threads=torch.get_num_threads(),
        map_bytes=math.prod(map.shape) * DTYPES[dtype].itemsize,
        ms={name: quartiles(found) for name, found in times.items()},
    )


def judge(
    blocks: dict[str, nn.Module], x: Tensor, dy: Tensor, *residual: Tensor,
    attempt=lambda name, call: call(),
):  # fmt: skip
    """Each against float64, with SE or without; ``attempt`` may do otherwise than raise."""
    # PyTorch's BatchNorm adds up a batch in channels_last in one run; the fused one may not.
    added = x.numel() // x.shape[1]
    for kind in ("eager", "without SE"):
        decided = without_close_calls(blocks[kind], x, dy, *residual)
        exact = Exact(copy.deepcopy(blocks[kind]), blocks[kind], x, decided, *residual)
        for name, block in blocks.items():
            if ("without SE" in name) != (kind == "without SE"):
                continue
            longer = {"arithmetic": x.dtype, "longer": max(1, added**0.5 / 10)}
            how = {} if name == "fused" else longer
            attempt(name, functools.partial(exact.judge, block, **how))


def contenders(tail, map, dtype, device) -> dict[str, nn.Module]:
    """All with the same weights, none of BatchNorm's the 1 or 0 that it starts with."""
    blocks = {
        "eager": tail.eager(map), "without SE": tail.without_se(map),
        "swapped": tail.swapped(map), "fused": tail.fused(map),
    }
    bn = blocks["eager"].bn
    nn.init.normal_(bn.weight, 1, 0.3)
    nn.init.normal_(bn.bias)
    blocks["without SE"].bn.load_state_dict(bn.state_dict())
    for name in ("swapped", "fused"):
        copy_weights(blocks[name], blocks["eager"])
    return {name: block.to(device, dtype) for name, block in blocks.items()}


def compiled(blocks) -> dict[str, nn.Module]:
    torch._dynamo.reset()
    names = {
        "eager": "compiled", "without SE": "without SE, compiled", "fused": "fused, compiled"
    }
    return {
        name: torch.compile(copy.deepcopy(blocks[kind]), fullgraph=True, dynamic=False)
        for kind, name in names.items()
    }


def without_close_calls(block, x: Tensor, dy: Tensor, *residual: Tensor) -> Tensor:
    """dy, 0 where rounding decides on which side of 0 the ReLU finds its argument.

    There the exact gradient is all or nothing, and so is the rounded one, maybe the other.
    """
    if not residual:
        return dy
    exact, (r,) = copy.deepcopy(block).double(), residual
    with torch.no_grad():
        branch = exact.se(exact.act(exact.bn(x.double())))
        margin = 64 * torch.finfo(x.dtype).eps * (branch.abs() + r.abs() + 1)
        return dy.masked_fill((branch + r).abs() <= margin, 0)
