"""The number of warps of a launch: the plan's, or the fastest of a few, timed at first use.

It decides in which order a program adds, so that processes which chose differently differ in their
last bits. So nothing is timed unless SE_FUSED_AUTOTUNE=1 asks for it.
"""

import os
import threading
from functools import partial

import torch
import triton

from se_fused.backends.triton import plan

ENABLED = os.environ.get("SE_FUSED_AUTOTUNE", "0") == "1"
# 2 warps hold 64 registers of a tile of 16 KB a thread, about as many as leave room for a second
# program; with 8 a thread still has a 16-byte access of a 16-bit map.
WARPS = (2, 4, 8)
# What changes the winner: the shape and layout of the map, not the number of samples.
KEY = ("channels", "spatial", "hidden", "LAYOUT", "ACT", "NORM_ACT", "STATISTIC")
# Of the time with the plan's number, from which another is taken.
GAIN = 1.05


def tuned(kernel):
    """The kernel, to be launched as ``kernel[grid](*arguments, num_warps=…, …)``; where tuning is
    enabled, num_warps is what is taken when nothing may be timed."""
    return Tuned(kernel) if ENABLED else kernel


class Tuned:
    """A kernel whose number of warps is chosen once for each kind of map: sizes in powers of two.

    Under ``torch.use_deterministic_algorithms`` it is the caller's; so it is while a CUDA graph is
    captured, where nothing can be timed, unless it has been chosen before.
    """

    def __init__(self, kernel):
        self.kernel = kernel
        self.chosen = {}
        self.lock = threading.Lock()  # autograd has a thread for each GPU

    def __getitem__(self, grid):
        return partial(self.launch, grid)

    def launch(self, grid, *args, num_warps: int, **options):
        if not torch.are_deterministic_algorithms_enabled():
            arguments = dict(zip(self.kernel.arg_names, args)) | options
            key = kind(arguments)
            if key not in self.chosen and _can_time():
                with self.lock:
                    if key not in self.chosen:
                        run = partial(self.kernel[grid], *args, **options)
                        self.chosen[key] = fastest(run, arguments.get("counter_ptr"), num_warps)
            num_warps = self.chosen.get(key, num_warps)
        return self.kernel[grid](*args, num_warps=num_warps, **options)


def kind(arguments: dict) -> tuple:
    """What launches share that share a choice."""
    tensors = [value for value in arguments.values() if isinstance(value, torch.Tensor)]
    sizes = (arguments.get(name) for name in KEY)
    return (
        tensors[0].device,
        *(name for name, value in arguments.items() if value is None),
        *(tensor.dtype for tensor in tensors),
        *(plan.next_power_of_2(size) if isinstance(size, int) else size for size in sizes),
    )


def fastest(run, counter: torch.Tensor | None, planned: int) -> int:
    """The number of warps with which a launch is fastest, the planned one unless it loses GAIN."""

    def launch(warps):
        if counter is not None:  # of finished programs: none
            counter.zero_()
        run(num_warps=warps)

    times = {warps: milliseconds(partial(launch, warps)) for warps in {planned, *WARPS}}
    if counter is not None:
        counter.zero_()
    best = min(times, key=times.get)
    return best if times[planned] >= GAIN * times[best] else planned


def milliseconds(call) -> float:
    return triton.testing.do_bench(call, warmup=5, rep=20, return_mode="median")


def _can_time() -> bool:
    return torch.cuda.is_available() and not torch.cuda.is_current_stream_capturing()
