"""What ncu and compute-sanitizer look at: each kernel once, forward and backward."""

import torch
from gpu_stages.stage import chosen
from lib import contenders
from lib.inputs import DTYPES, Inputs
from lib.maps import Map
from lib.tails import MBCONV, RESIDUAL
from lib.verification import gradients

# Bytes in bfloat16: three times an H200's L2, and a few tiles with edges.
SIZES = {"large": ((128, 256, 56, 56), 16), "small": ((2, 72, 7, 7), 8)}


def target(stage, size: str):
    shape, hidden = SIZES["small" if stage.dry else size]
    map = Map("", shape, hidden, "relu", "sigmoid", 1)
    blocks = {"SE": (contenders.fused(map), False)}
    if stage.backends[0] == "triton" or stage.dry:
        blocks |= {end.name: (end.fused(map), end.add) for end in (RESIDUAL, MBCONV)}
    for backend in stage.backends:
        for name, (block, add) in blocks.items():
            stage.attempt(f"{backend}, {name}", _once, stage, backend, block, map, add)


def _once(stage, backend, block, map, add):
    inputs = Inputs(map, DTYPES["bf16"], "channels_last", stage.device, add, sets=1)
    x, dy, *residual = inputs.first
    with chosen(backend):
        gradients(block.to(stage.device), dy, x, *residual)
    if stage.device.type == "cuda":
        torch.cuda.synchronize()
