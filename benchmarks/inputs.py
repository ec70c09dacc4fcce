"""What the blocks are measured on."""

import itertools
import math

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LAYOUTS = ("contiguous", "channels_last")


class Inputs:
    """x and dy, and a residual if there is one; on a GPU as many of them in turn as it takes to
    pass its L2 cache."""

    def __init__(self, map, dtype, layout, device, add=False):
        self.map_bytes = math.prod(map.shape) * dtype.itemsize
        copies = 1
        if device.type == "cuda":
            l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size
            copies = 1 + math.ceil(2 * l2_bytes / self.map_bytes)
        format = torch.contiguous_format
        if layout == "channels_last":
            format = {4: torch.channels_last, 5: torch.channels_last_3d}[len(map.shape)]

        def make():
            return torch.randn(map.shape, device=device).to(dtype).contiguous(memory_format=format)

        self.sets = [
            (make().requires_grad_(), make(), *(make().requires_grad_() for _ in range(add)))
            for _ in range(copies)
        ]
        self.first = self.sets[0]

    def caller(self, block, direction):
        turns = itertools.cycle(self.sets)
        wanted = list(block.parameters())

        def forward():
            x, _, *residual = next(turns)
            with torch.no_grad():
                block(x, *residual)

        def forward_backward():
            x, dy, *residual = next(turns)
            torch.autograd.grad(block(x, *residual), [x, *residual, *wanted], dy)

        return forward if direction == "forward" else forward_backward
