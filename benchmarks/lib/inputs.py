"""What the blocks are measured on."""

import collections
import functools
import itertools
import math

import torch
from lib.devices import sets_past_cache

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LAYOUTS = ("contiguous", "channels_last")


class Inputs:
    """x and dy, and a residual if there is one; on a GPU as many of them in turn as it takes to
    pass its L2 cache, if it is not said how many."""

    def __init__(self, map, dtype, layout, device, add=False, sets=None):
        self.map_bytes = math.prod(map.shape) * dtype.itemsize
        format = torch.contiguous_format
        if layout == "channels_last":
            format = {4: torch.channels_last, 5: torch.channels_last_3d}[len(map.shape)]

        def make():
            return torch.randn(map.shape, device=device).to(dtype).contiguous(memory_format=format)

        self.sets = [
            (make().requires_grad_(), make(), *(make().requires_grad_() for _ in range(add)))
            for _ in range(sets or sets_past_cache(self.map_bytes, device))
        ]
        self.first = self.sets[0]

    def caller(self, block, direction):
        """A call of the block, on the next set each time."""
        turns = itertools.cycle(self.callers(block, direction))
        # So that outputs pass the cache too; with one set nothing is kept.
        kept = collections.deque(maxlen=len(self.sets) - 1)
        return lambda: kept.append(next(turns)())

    def callers(self, block, direction) -> list:
        """A call of the block for each set."""
        wanted = list(block.parameters())

        def forward(x, _, *residual):
            with torch.no_grad():
                return block(x, *residual)

        def forward_backward(x, dy, *residual):
            return torch.autograd.grad(block(x, *residual), [x, *residual, *wanted], dy)

        call = forward if direction == "forward" else forward_backward
        return [functools.partial(call, *tensors) for tensors in self.sets]
