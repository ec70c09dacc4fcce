"""What the stages of gpu.py share: the device, the lines they write, and how they measure."""

import collections
import contextlib
import gc
import itertools
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from gpu_stages import lines as gpu_lines
from lib import devices
from lib.timing import Graphed, in_turn, launch_milliseconds, quartiles

from se_fused import backends
from se_fused.backends.triton import plan

# Of turns: at least so many seconds and rounds, at most so many.
ROUNDS = {"seconds": 0.25, "fewest": 7, "most": 40}
DRY_ROUNDS = {"seconds": 0, "fewest": 3}
# Of the GPU's memory, what a process has that warms caches: a network's, and any other.
MEMORY, LITTLE_MEMORY = {"network": 0.2}, 0.04


class Side(NamedTuple):
    """What is timed beside others: a call for each set of inputs, and what they run in."""

    calls: list
    context: Callable = contextlib.nullcontext


class Stage:
    """A stage of a run: on the GPU; dry: on the CPU and on tiny maps.

    warming: everything is compiled and run once, so that the caches of Triton and Inductor have it,
    and nothing is measured or written.
    """

    def __init__(self, name: str, folder: Path, dry: bool, warming: bool = False):
        self.name, self.folder, self.dry, self.warming = name, folder, dry, warming
        self.device = torch.device("cpu" if dry else "cuda")
        self.why_not = {
            name: backends.why_not(name, self.device)
            for name in backends.preferred(self.device.type) if name != "eager"
        }
        self.backends = [name for name, reason in self.why_not.items() if reason is None]
        if dry:  # needs no extension
            self.backends = self.backends or ["eager"]
        if not self.backends:
            raise RuntimeError(f"no backend to measure: {self.why_not}")
        if warming and not dry:  # many are on the GPU at once
            share = MEMORY.get(name, LITTLE_MEMORY)
            torch.cuda.set_per_process_memory_fraction(share)
        torch.manual_seed(0)
        if not warming:
            self.write("device", **devices.facts(self.device))

    def write(self, section: str, **row):
        if not self.warming:
            gpu_lines.write(self.folder, section, **row)

    def plans(self, section: str, count: int):
        """How many rows there will be."""
        self.write("planned", of=section, count=count)

    def attempt(self, what: str, call, *args):
        """What the call returns. An exception becomes a line, and the stage goes on."""
        try:
            return call(*args)
        except Exception as error:
            traceback.print_exc()
            message = f"{type(error).__name__}: {error}"[:300]
            self.write("errors", of=self.name, what=what, error=message)

    def measure(self, sides: dict[str, Side]) -> dict[str, dict]:
        """{side: {what: quartiles of milliseconds, "kernels": how many}}, of one call.

        ms: the device's time, launched one by one; graph_ms: in a CUDA graph; launch_ms: the
        CPU's until all is queued. The sides take turns. Without a graph, its figures are missing.
        """
        graphs, turns, found = {}, {}, {}
        gc.collect()
        gc.freeze()  # each graph collects garbage again: only what has come since
        for name, (calls, context) in sides.items():
            with context():
                for call in (*calls, calls[0]):
                    call()
                if self.warming:
                    continue
                turn = itertools.islice(itertools.cycle(calls), 20)
                launches = [launch_milliseconds(call, self.device) for call in turn]
                found[name] = {"launch_ms": quartiles(launches)}
                graph = self.attempt(f"a graph of {name}", Graphed, calls, self.device)
                if graph is not None:
                    graphs[name] = graph
                    found[name]["kernels"] = graph.kernels()
            turns[name] = _in_context(calls, context)
        rounds = (DRY_ROUNDS if self.dry else ROUNDS) | {"device": self.device}
        for name, times in in_turn(turns, **rounds).items():
            found[name]["ms"] = quartiles(times)
        for name, times in in_turn(graphs, **rounds).items():
            count = len(sides[name].calls)
            found[name]["graph_ms"] = quartiles([passed / count for passed in times])
        return found


def _in_context(calls, context):
    turns = itertools.cycle(calls)
    kept = collections.deque(maxlen=len(calls) - 1)  # outputs pass the cache as well

    def call():
        with context():
            kept.append(next(turns)())

    return call


@contextlib.contextmanager
def chosen(backend: str, warps: int | None = None, inside: bool | None = None):
    """A backend, the number of warps of Triton's kernels, and whether the excitation runs inside
    the reduce launch; None: as the plan has it. SE_FUSED_AUTOTUNE=0, or the tuner chooses."""
    kept = plan.WARPS, plan.excites_in_reduce
    if warps is not None:
        plan.WARPS = warps
    if inside is not None:
        plan.excites_in_reduce = lambda *_, **__: inside
    plan.plan.cache_clear()
    try:
        with backends.backend(backend):
            yield
    finally:
        plan.WARPS, plan.excites_in_reduce = kept
        plan.plan.cache_clear()
