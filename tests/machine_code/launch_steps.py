"""One step: a public function, forward or backward, over the stub driver. What it launched, what
the plan says, and the machine code of the kernels that it compiled."""

import json
import traceback
from collections.abc import Iterator
from contextlib import nullcontext
from typing import NamedTuple
from unittest.mock import patch

import stub_driver
import torch
from compiled import Row, part_of, row
from machine_code import lines_of_loads
from public_calls import ALL_CASES, Call, public_calls
from rules import problems

from se_fused.backends.triton import plan

# (dtype of the map, of the parameters)
DTYPES = {
    "fp32": (torch.float32, torch.float32),
    "bf16": (torch.bfloat16, torch.float32),
    "bf16-parameters": (torch.bfloat16, torch.bfloat16),
}


class Part(NamedTuple):
    case: str
    dtype: str
    warps: int
    reads_code: bool = True  # which takes as long as compiling


class Launched(NamedTuple):
    kernel: str  # without "_kernel"
    grid: list[int]
    planned: list[int]
    threads: int
    splits: int | None  # of a reduce launch
    excites: bool


class Step(NamedTuple):
    case: str
    dtype: str
    warps: int
    call: str
    direction: str  # forward or backward
    expected: list[str]  # kernels
    launches: list[Launched]
    error: str | None
    rows: list[Row]  # of kernels that no step before had

    @property
    def name(self) -> str:
        return f"{self.case} {self.dtype} {self.warps} warps, {self.call} {self.direction}"

    def faults(self) -> list[str]:
        """In what is launched."""
        if self.error:
            return [self.error]
        found, names = [], [launch.kernel for launch in self.launches]
        if names != self.expected:
            found.append(f"launched {names}, expected {self.expected}")
        for launch in self.launches:
            if launch.grid != launch.planned:
                found.append(f"{launch.kernel}: the grid is {launch.grid}, not {launch.planned}")
            if launch.threads != 32 * self.warps:
                found.append(f"{launch.kernel}: a program has {launch.threads} threads")
        return found

    def broken(self) -> list[tuple[Row, list[str]]]:
        """The kernels that break a rule, and how."""
        found = ((row, problems(_without_lost_lines(row), ALL_CASES)) for row in self.rows)
        return [(row, broken) for row, broken in found if broken]


def _without_lost_lines(row: Row) -> Row:
    """ptxas may move a load to where no line, or another, is told of it: as long as it is 16 bytes
    wide, it may be the map's. Where no width is asked for, it does not matter which it is."""
    lost = [set(widths) for access, widths in row.other.items() if set(access) & set("?|")]
    if ALL_CASES[row.case].wide and (not lost or any(widths != {"128"} for widths in lost)):
        return row
    return row._replace(other={}, unseen=[])


def steps(library: stub_driver.Library, parts: list[Part]) -> Iterator[Step]:
    seen = set()
    for part in parts:
        readable = lines_of_loads() if part.reads_code else nullcontext()
        with patch.object(plan, "WARPS", part.warps), readable:
            for call in public_calls(ALL_CASES[part.case], *DTYPES[part.dtype]):
                yield from both_ways(library, part, call, seen)


def both_ways(library, part: Part, call: Call, seen: set) -> Iterator[Step]:
    """``seen``: hashes of kernels that have been read."""
    results = []
    forward = lambda: results.append(call.run())
    yield _step(library, part, call, "forward", call.forward, forward, seen)
    if results and call.backward is not None:
        [y] = results
        dy = torch.empty_like(y)
        backward = lambda: torch.autograd.grad(y, call.wanted, dy)
        yield _step(library, part, call, "backward", call.backward, backward, seen)


def _step(library, part: Part, call: Call, direction, expected, run, seen) -> Step:
    shape = torch.Size(ALL_CASES[part.case].shape)
    operation = call.name if direction == "forward" else f"{call.name}_backward"
    error, rows = None, []
    library.forget()
    with stub_driver.recording(library) as launches:
        try:
            run()
        except Exception:
            error = traceback.format_exc()
    for launch in launches if part.reads_code else ():
        if launch.compiled.hash not in seen:
            seen.add(launch.compiled.hash)
            rows.append(row(launch, shape, "sm_90", part.dtype, part.case, operation))
    expected = list(expected) if shape.numel() else []
    found = list(map(_launched, launches))
    return Step(*part[:3], call.name, direction, expected, found, error, rows)


def _launched(launch: stub_driver.Launch) -> Launched:
    arguments = launch.arguments
    return Launched(
        launch.kernel.removesuffix("_kernel"), launch.grid, [_planned_programs(launch), 1, 1],
        launch.threads, arguments.get("splits"), arguments.get("w1_ptr") is not None,
    )  # fmt: skip


PARTS = {"": "mean", "dx": "mean", "maximum": "max", "norm": "norm", "parts": "norm"}


def _planned_programs(launch: stub_driver.Launch) -> int:
    """A sample's channel blocks, times the tiles of a block where the map is written by tiles (the
    apply launches) or the splits where it is summed (the reduce launches)."""
    from se_fused.backends.triton.feature_map import FeatureMap

    maps = launch.arguments.get("x_ptr"), launch.arguments.get("dy_ptr")
    x = next(t for t in maps if t is not None)
    parts = "norm" if "moments" in launch.kernel else PARTS[part_of(launch.arguments)]
    planned = FeatureMap(x, parts).plan
    tiles = planned.spatial_tiles if "apply" in launch.kernel else planned.splits
    return len(x) * planned.channel_blocks * tiles


def to_json(step: Step) -> str:
    return json.dumps(step)


def from_json(line: str) -> Step:
    step = Step(*json.loads(line))
    launches = [Launched(*values) for values in step.launches]
    return step._replace(launches=launches, rows=[Row(*values) for values in step.rows])
