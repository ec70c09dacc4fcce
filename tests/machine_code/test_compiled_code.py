"""The machine code of every kernel, compiled ahead of time for GPUs that need not be there.

The compiling and the reading of the code are in ``compiled.py`` and ``machine_code.py``, the rules
in ``rules.py``. ``python tests/machine_code/compiled.py --all`` holds all kernels to them, the
tests a selection: one process for each target, whose rows the processes of the tests share.
"""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from filelock import FileLock

import se_fused

WHY = "triton is not installed, there are no kernels to compile; eager and cpp are tested"
compiled = pytest.importorskip("compiled", reason=WHY)
cases = pytest.importorskip("compiled_cases", reason=WHY)
triton = pytest.importorskip("triton", reason=WHY)
tl = pytest.importorskip("triton.language", reason=WHY)
plan = pytest.importorskip("se_fused.backends.triton.plan", reason=WHY)
problems = pytest.importorskip("rules", reason=WHY).problems

HERE = Path(__file__).parent


def fresh_process(*arguments):
    """Kernels compile only where Triton is not interpreted, as it is in the other tests."""
    environment = {name: v for name, v in os.environ.items() if name != "TRITON_INTERPRET"}
    root = Path(se_fused.__file__).parents[1]
    environment |= {"PYTHONPATH": f"{root}:{HERE}"}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def rows(tmp_path_factory):
    """The rows that this file prints as a script: of a selection, for a target."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent

    @cache
    def compile_once(selection: str, target: str) -> list:
        kept = folder / f"{selection}-{target}.jsonl"
        with FileLock(f"{kept}.lock"):
            if not kept.exists():
                script = str(HERE / "test_compiled_code.py")
                kept.write_text(fresh_process(script, selection, target))
        return [compiled.Row(**json.loads(line)) for line in kept.read_text().splitlines()]

    return compile_once


SELECTIONS = {"everyday": cases.EVERYDAY, "thorough": cases.THOROUGH}
thorough = pytest.mark.thorough
# (operation, kernel): what is new in each operation, in this order.
KERNELS = [
    ("squeeze_excite inside", "reduce_forward_kernel"),
    ("squeeze_excite inside", "apply_forward_kernel"),
    ("squeeze_excite_backward inside", "reduce_backward_kernel"),
    ("squeeze_excite_backward inside", "apply_backward_kernel"),
    ("squeeze_excite between", "reduce_forward_kernel"),
    ("squeeze_excite_backward between", "reduce_backward_kernel"),
    ("rescale_backward", "reduce_backward_kernel"),
]
MAX_KERNELS = [
    ("squeeze_max", "reduce_forward_kernel"),
    ("gate_gradient_max", "reduce_backward_kernel"),
    ("gradient_max", "apply_backward_kernel"),
]
NORM_KERNELS = [
    ("moments", "moments_kernel"),
    ("squeeze with norm", "reduce_forward_kernel"),
    ("rescale with norm", "apply_forward_kernel"),
    ("sums with norm", "reduce_backward_kernel"),
    ("gradient with norm", "apply_backward_kernel"),
    ("rescale with ReLU", "apply_forward_kernel"),
    ("sums with ReLU", "reduce_backward_kernel"),
    ("gradient with ReLU", "apply_backward_kernel"),
    ("squeeze_excite_backward with ReLU", "reduce_backward_kernel"),
]


@pytest.mark.parametrize(
    "selection, part",
    [
        pytest.param(name, part, id="-".join(part), marks=[thorough] * (name == "thorough"))
        for name, parts in SELECTIONS.items()
        for part in parts
    ],
)
def test_machine_code(rows, selection, part):
    found = [row for row in rows(selection, part[0]) if row[:3] == part]
    found = [row for row in found if row.operation not in FAULTS]
    case = compiled.CASES[part[2]]
    expected = KERNELS + (MAX_KERNELS if case.maximum else []) + (NORM_KERNELS if case.norm else [])
    assert [(row.operation, row.kernel) for row in found] == expected
    broken = [row for row in found if problems(row)]
    assert not broken, "\n".join([compiled.table(broken), *map(str, map(problems, broken))])


# Planted faults, compiled as the package's kernels are: each must break the rule that is named.


@triton.jit
def strided_kernel(x_ptr, y_ptr, stride, SIZE: tl.constexpr):
    index = tl.arange(0, SIZE)
    tl.store(y_ptr + index, tl.load(x_ptr + index * stride))


@triton.jit
def unaligned_kernel(x_ptr, y_ptr, start, SIZE: tl.constexpr):
    index = tl.arange(0, SIZE)
    tl.store(y_ptr + start + index, tl.load(x_ptr + index))


@triton.jit
def spilling_kernel(x_ptr, y_ptr, steps, SIZE: tl.constexpr):
    index = tl.arange(0, SIZE)
    total = tl.zeros([SIZE], tl.float32)
    for step in range(steps):
        total = total * total + tl.load(x_ptr + step * SIZE + index)
    tl.store(y_ptr + index, total)


# Without flat tiles, a tile of 7×7 planes is read row by row.
ROWS = "row tiles"
FAULTS = {
    "strided_kernel": "load x is 32 bits wide",
    "unaligned_kernel": "store y is 32 bits wide",
    "spilling_kernel": "spills in loops",
    ROWS: "is 32 bits wide",
}


def planted(target: str):
    """Rows of the faults in kernels of their own, float32."""
    gpu, _ = compiled.TARGETS[target]
    # As many elements a thread as it may have registers.
    size = gpu.warp_size * {"cuda": 256, "hip": 512}[gpu.backend]
    x, y = torch.empty(size), torch.empty(size)
    with compiled.compiling(target) as launches:
        strided_kernel[(1,)](x, y, 3, SIZE=size, num_warps=4)
        unaligned_kernel[(1,)](x, y, 3, SIZE=size, num_warps=4)
        spilling_kernel[(1,)](x, y, 7, SIZE=size, num_warps=1)
    for launch in launches:
        yield compiled.row(launch, x.shape, target, "fp32", "contiguous-7x7", launch.kernel)


def in_row_tiles(target: str):
    """Rows of the fault in the package's own kernels."""
    name = "contiguous-7x7"
    of_the_block = compiled.CASES[name]._replace(norm=None)
    plan.plan.cache_clear()
    with patch.object(plan, "ACCESS_BYTES", 1), patch.dict(compiled.CASES, {name: of_the_block}):
        for row in compiled.rows(target, "fp32", name):
            yield row._replace(operation=ROWS)
    plan.plan.cache_clear()


# (selection, target, faults): one that both kinds of machine code show is enough for make test.
PLANTED = [
    ("everyday", "sm_90", list(FAULTS)),
    ("everyday", "gfx942", [fault for fault in FAULTS if fault != ROWS]),
    ("thorough", "gfx942", [ROWS]),
]


@pytest.mark.parametrize(
    "selection, target, fault",
    [
        pytest.param(name, target, fault, marks=[thorough] * (name == "thorough"))
        for name, target, faults in PLANTED
        for fault in faults
    ],
)
def test_planted_faults_are_found(rows, selection, target, fault):
    found = [row for row in rows(selection, target) if row.operation == fault]
    assert found
    for row in found:
        assert any(FAULTS[fault] in problem for problem in problems(row)), problems(row)


def test_flat_tiles_take_a_quarter_of_the_accesses(rows, target="sm_90"):
    """Of a row tile of the same planes, in float32. (For AMD, loops are unrolled unlike one
    another; the width of the accesses, in ``test_machine_code``, says as much.)"""

    def instructions(found):
        return [sum(sum(widths.values()) for widths in row.map.values()) for row in found]

    found = [row for row in rows("everyday", target) if row[1:3] == ("fp32", "contiguous-7x7")]
    flat = [row for row in found if (row.operation, row.kernel) in KERNELS]
    by_row = [row for row in found if row.operation == ROWS]
    assert [row.kernel for row in flat] == [row.kernel for row in by_row]
    for few, many in zip(instructions(flat), instructions(by_row)):
        assert few <= many / 4


def launches_of_batches(target: str):
    """(batch size, kernel, hash of the code) of a training step of the block and of a squeeze."""
    from se_fused.backends import triton as backend

    weights = torch.zeros(16, 256), torch.zeros(16), torch.zeros(256, 16), torch.zeros(256)
    for batch in BATCHES:
        x = torch.empty(batch, 256, 28, 28)
        z = torch.zeros(batch, 256)
        with compiled.compiling(target) as launches:
            backend.squeeze_excite(x, None, *weights, "relu", "sigmoid", False)
            backend.squeeze_excite_backward(
                x, x, None, z, z, *weights, "relu", "sigmoid", False
            )
        yield from ([batch, launch.kernel, launch.compiled.hash] for launch in launches)


BATCHES = [1, 2, 3, 4, 5, 7, 8, 11, 12, 16, 19, 24, 31, 32, 33, 48, 57, 63, 64, 128]


def test_other_batch_sizes_compile_nothing():
    code = "import json, test_compiled_code as t\n" \
        "print(*(json.dumps(found) for found in t.launches_of_batches('sm_90')), sep='\\n')"
    found = [json.loads(line) for line in fresh_process("-c", code).splitlines()]
    assert sorted({batch for batch, _, _ in found}) == BATCHES
    codes = {(kernel, code) for _, kernel, code in found}
    assert sorted(kernel for kernel, _ in codes) == [
        "apply_backward_kernel", "apply_forward_kernel", "reduce_backward_kernel",
        "reduce_forward_kernel",
    ]  # fmt: skip


def main(selection: str, target: str):
    for part in SELECTIONS[selection]:
        if part[0] == target:
            yield from compiled.rows(*part)
    for name, of, faults in PLANTED:
        if (name, of) == (selection, target):
            yield from planted(target) if set(faults) - {ROWS} else ()
            yield from in_row_tiles(target) if ROWS in faults else ()


if __name__ == "__main__":
    for _row in main(*sys.argv[1:]):
        print(json.dumps(_row._asdict()))
