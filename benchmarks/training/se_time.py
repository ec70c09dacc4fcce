"""Time inside the SE blocks, or the blocks fused around them: each alone, on the network's maps."""

from typing import NamedTuple

import torch
from lib.timing import medians

SECONDS_PER_BLOCK = 1.0
FEWEST, MOST = 5, 50


class BlockTime(NamedTuple):
    """Median milliseconds of one forward and backward."""

    name: str
    shape: tuple[int, ...]
    eager_ms: float
    fused_ms: float


def se_block_times(eager, fused, names, batch, compiled) -> list[BlockTime]:
    """Forward + backward of each of these blocks of two runs, eager and fused taking turns.

    Not measured inside the training steps, so that these are timed without hooks. On a GPU it is
    the time on the device, launches excluded; elsewhere the wall time.
    """
    times = []
    for name, x in _se_inputs(eager, names, batch).items():
        steps = []
        for run in (eager, fused):
            block = run.network.get_submodule(name)
            steps.append(_forward_backward(run, block, x, compiled))
        found = medians(
            dict(zip(("eager", "fused"), steps)),
            seconds=SECONDS_PER_BLOCK, fewest=FEWEST, most=MOST, device=eager.device,
        )
        times.append(BlockTime(name, tuple(x.shape), found["eager"], found["fused"]))
    return times


def _se_inputs(run, names, batch):
    """What enters each block for this batch: its real shape, dtype and layout."""
    inputs = {}

    def keep(name):
        def hook(_, args):
            inputs[name] = args[0].detach()

        return hook

    hooks = [
        run.network.get_submodule(name).register_forward_pre_hook(keep(name)) for name in names
    ]
    images, _ = run.to_device(batch)
    run.network.train()
    with torch.no_grad(), run.autocast():
        run.network.forward(images)  # .forward: not the compiled graph, which has no hooks
    for hook in hooks:
        hook.remove()
    return inputs


def _forward_backward(run, block, x, compiled):
    block.train()
    x = x.clone().requires_grad_()
    wanted = [x, *block.parameters()]
    with torch.no_grad(), run.autocast():
        dy = torch.randn_like(block(x))
    if compiled:
        torch._dynamo.reset()  # else the blocks before count towards the limit of recompilations
        block = torch.compile(block, dynamic=False)

    def step():
        with run.autocast():
            y = block(x)
        torch.autograd.grad(y, wanted, dy)

    return step
