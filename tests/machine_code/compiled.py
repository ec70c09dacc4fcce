"""Compiles what the package launches, for GPUs that need not be there, and reads the machine code.

    python tests/machine_code/compiled.py                       the test suite's selection, a table
    python tests/machine_code/compiled.py --all                 every case and dtype, every target
    python tests/machine_code/compiled.py --cover               of those what covers each by itself
    python tests/machine_code/compiled.py sm_90 --dtypes bf16   a part whole; --json: one row a line

One number of warps a kernel, the plan's; with SE_FUSED_AUTOTUNE=1 all that tuning tries.
Exit status 1 where a kernel breaks a rule of ``rules.py``.

The functions of the Triton backend run on CPU tensors whose memory nobody touches. Triton sees a
driver that names the target, and a launch stops once the kernel is compiled: so each kernel is
compiled for just the arguments that a launch on that GPU would pass.
"""

import argparse
import inspect
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from statistics import median
from typing import NamedTuple
from unittest.mock import patch

import torch
import triton
from compiled_cases import CASES, DTYPES, EVERYDAY, TARGETS, covering, everything, operations
from machine_code import lines_of_loads, machine_code
from rules import problems
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime import JITFunction, driver

Accesses = dict[str, dict[str, int]]  # {"load x": {"128": 4}}: instructions by width in bits


class Row(NamedTuple):
    """One kernel, compiled for one launch."""

    target: str
    dtype: str
    case: str
    operation: str
    kernel: str
    part: str
    warps: int
    seconds: float  # of processor time, to compile
    registers: int
    spills: int
    spills_in_loops: int
    scratch: int
    shared: int
    map: Accesses  # of the feature maps
    other: Accesses  # of everything else
    unseen: list[str]  # feature maps without an access


def rows(target: str, dtype: str, name: str) -> Iterator[Row]:
    """Every kernel that the operations launch on a case, once each."""
    case, seen = CASES[name], set()
    for operation, call in operations(case, DTYPES[dtype]):
        with compiling(target) as launches:
            call()
        for launch in launches:
            if launch.compiled.hash not in seen:
                seen.add(launch.compiled.hash)
                yield row(launch, torch.Size(case.shape), target, dtype, name, operation)


class Launch(NamedTuple):
    kernel: str
    arguments: dict
    compiled: CompiledKernel
    seconds: float


@contextmanager
def compiling(target: str) -> Iterator[list[Launch]]:
    """Inside, launches end when the kernel is compiled for the target and join the list. A kernel
    that would be tuned is compiled for each number of warps."""
    from se_fused.backends.triton import feature_map, tuning

    launches = []
    gpu, device = TARGETS[target]
    run = JITFunction.run

    def compile_only(self, *args, grid, warmup, **kwargs):
        start = processor_seconds()
        compiled = run(self, *args, grid=grid, warmup=True, **kwargs)
        seconds = processor_seconds() - start
        arguments = bound_arguments(self, args, kwargs)
        launches.append(Launch(self.fn.__name__, arguments, compiled, seconds))

    def compile_each(self, grid, *args, num_warps, **options):
        for warps in tuning.WARPS:
            self.kernel[grid](*args, num_warps=warps, **options)

    driver.set_active(_Driver(gpu))
    with (
        tempfile.TemporaryDirectory() as cache,  # nothing compiled before, and nothing kept
        patch.dict(os.environ, TRITON_CACHE_DIR=cache),
        patch.object(JITFunction, "run", compile_only),
        patch.object(tuning.Tuned, "launch", compile_each),
        lines_of_loads(),
        patch.object(feature_map, "device_of", lambda x: device),
    ):
        yield launches


def bound_arguments(kernel: JITFunction, args, kwargs) -> dict:
    """What a launch passes to the kernel itself."""
    named = {name: value for name, value in kwargs.items() if name in kernel.arg_names}
    return inspect.signature(kernel.fn).bind(*args, **named).arguments


def part_of(arguments: dict) -> str:
    """The part of a kernel that decides on its budget."""
    given = {name for name, value in arguments.items() if value is not None}
    if "center_ptr" in given:
        return "norm"
    if given & {"mask_ptr", "residual_ptr", "dr_ptr"}:
        return "parts"
    if "max_ptr" in given or arguments.get("STATISTIC") == "max":
        return "maximum"
    return "dx" if {"partial_ptr", "dx_ptr"} <= given else ""


class _Driver:
    """What Triton asks of a driver before a launch."""

    def __init__(self, target: GPUTarget):
        self.target = target

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return str(self.target)  # a key of Triton's caches

    def get_current_stream(self, device):
        return 0


def processor_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def row(launch: Launch, shape: torch.Size, *labels: str) -> Row:
    """Labels: target, dtype, case, operation."""
    code = machine_code(launch.compiled)
    maps = {
        name
        for name, value in launch.arguments.items()
        if isinstance(value, torch.Tensor) and value.numel() == shape.numel()
    }
    of_map, other = {}, {}
    for (kind, argument, bits), count in sorted(code.accesses.items()):
        kept = of_map if argument in maps else other
        kept.setdefault(f"{kind} {argument.replace('_ptr', '')}", {})[str(bits)] = count
    unseen = sorted(maps - {access.argument for access in code.accesses})
    warps = launch.compiled.metadata.num_warps
    seconds = round(launch.seconds, 2)
    part = part_of(launch.arguments)
    return Row(
        *labels, launch.kernel, part, warps, seconds, *code[:-1], of_map, other, unseen
    )


def table(found: list[Row]) -> str:
    """The rows as text; accesses as instructions × bits, those of feature maps first."""
    columns = ("target", "dtype", "case", "operation", "kernel", "part", "warps", "seconds")
    columns += ("registers", "spills", "scratch", "shared")
    lines = [(*columns, "accesses: feature maps; others")]
    for row in found:
        cells = (str(getattr(row, column)) for column in columns)
        lines.append((*cells, f"{_text(row.map)}; {_text(row.other)}"))
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines
    )


def _text(accesses: Accesses) -> str:
    return ", ".join(
        f"{name} " + "+".join(f"{count}×{bits}" for bits, count in by_width.items())
        for name, by_width in accesses.items()
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("targets", nargs="*", metavar="target", help=", ".join(TARGETS))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES)
    parser.add_argument("--cases", nargs="+", choices=CASES)
    parser.add_argument("--all", action="store_true", help="every target, dtype and case")
    parser.add_argument("--cover", action="store_true", help="a part in which all of it occurs")
    parser.add_argument("--json", action="store_true", help="rows alone, one a line, not judged")
    parser.add_argument("--jobs", type=int, default=1, help="processes, 1 if not given")
    options = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 leaves nothing to compile: unset it")
    if unknown := set(options.targets) - set(TARGETS):
        parser.error(f"unknown target {', '.join(sorted(unknown))}; known are {', '.join(TARGETS)}")
    if options.all or options.cover or options.targets or options.dtypes or options.cases:
        choose = covering if options.cover else everything
        known = {"targets": TARGETS, "dtypes": DTYPES, "cases": CASES}
        parts = choose(*(getattr(options, name) or list(known[name]) for name in known))
    else:
        parts = EVERYDAY
    found = _in_processes(options.jobs, parts)
    if not options.json:
        return report(list(found))
    for row in found:
        print(json.dumps(row._asdict()), flush=True)
    return 0


def _in_processes(jobs: int, parts) -> Iterator[Row]:
    if jobs == 1:
        yield from (row for part in parts for row in rows(*part))
        return
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        for found in pool.map(_listed, *zip(*parts)):
            yield from found


def _listed(*part) -> list[Row]:
    return list(rows(*part))


# What breaks a rule in a version of Triton and keeps it in another: reported, and counted
# apart. Triton 3.9 compiled it within the rules.
KNOWN = {
    "3.8": ("sm_100 fp32 contiguous-56x56 sums with norm reduce_backward_kernel",),
}


def report(found: list[Row]) -> int:
    print(table(found))
    version = triton.__version__.rpartition(".")[0]
    broken = 0
    for row in found:
        name = " ".join(row[:5])
        is_known = name in KNOWN.get(version, ())
        for problem in problems(row):
            broken += not is_known
            note = f"; known of Triton {version}" if is_known else ""
            print(f"{name}, {row.warps} warps: {problem}{note}")
    seconds = [row.seconds for row in found]
    print(f"{len(found)} kernels, {broken} broken rules; ", end="")
    print(f"a kernel compiles in {median(seconds):.2f} s (median), {max(seconds)} s (longest)")
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main())
