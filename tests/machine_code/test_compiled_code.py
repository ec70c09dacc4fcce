"""The machine code of every kernel, compiled ahead of time for GPUs that need not be there.

The compiling and the reading of the code are in ``compiled.py`` and ``machine_code.py``, the rules
in ``rules.py``. ``python tests/machine_code/compiled.py --all`` holds all kernels to them, the
tests a selection.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import se_fused
from se_fused import plan

WHY = "triton is not installed, there are no kernels to compile; eager and cpp are tested"
compiled = pytest.importorskip("compiled", reason=WHY)
triton = pytest.importorskip("triton", reason=WHY)
tl = pytest.importorskip("triton.language", reason=WHY)
problems = pytest.importorskip("rules", reason=WHY).problems

HERE = Path(__file__).parent


def fresh_process(*arguments):
    """Kernels compile only where Triton is not interpreted, as it is in the other tests."""
    environment = {name: v for name, v in os.environ.items() if name != "TRITON_INTERPRET"}
    root = Path(se_fused.__file__).parents[1]
    environment |= {"PYTHONPATH": f"{root}:{HERE}", "SE_FUSED_AUTOTUNE": "0"}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, done.stderr
    return done


def compile_in_a_fresh_process(script: str, *arguments) -> list:
    """The rows that a script prints."""
    done = fresh_process(str(HERE / script), *arguments)
    return [compiled.Row(**json.loads(line)) for line in done.stdout.splitlines()]


EVERYDAY = compiled.EVERYDAY
# (operation, kernel): what is new in each operation, in this order.
KERNELS = [
    ("squeeze_excite inside", "squeeze_kernel"),
    ("squeeze_excite inside", "rescale_kernel"),
    ("squeeze_excite_backward inside", "gate_gradient_kernel"),
    ("squeeze_excite_backward inside", "rescale_kernel"),
    ("squeeze_excite between", "squeeze_kernel"),
    ("squeeze_excite_backward between", "gate_gradient_kernel"),
    ("rescale_backward", "gate_gradient_kernel"),
]
MAX_KERNELS = [
    (operation, f"{operation}_kernel")
    for operation in ("squeeze_max", "gate_gradient_max", "rescale_backward_max")
]
NORM_KERNELS = [
    (operation, f"{operation}_kernel")
    for operation in (
        "moments", "norm_squeeze", "norm_rescale", "norm_sums", "norm_rescale_backward"
    )
]  # fmt: skip


@pytest.fixture(scope="module")
def everyday():
    return compile_in_a_fresh_process("compiled.py", "--json")


@pytest.mark.parametrize("case", EVERYDAY["cases"])
@pytest.mark.parametrize("dtype", EVERYDAY["dtypes"])
@pytest.mark.parametrize("target", EVERYDAY["targets"])
def test_machine_code(everyday, target, dtype, case):
    rows = [row for row in everyday if row[:3] == (target, dtype, case)]
    expected = KERNELS + (MAX_KERNELS if compiled.CASES[case].maximum else [])
    expected += NORM_KERNELS if compiled.CASES[case].norm else []
    assert [(row.operation, row.kernel) for row in rows] == expected
    broken = [row for row in rows if problems(row)]
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
    ROWS: "load x is 32 bits wide",
}


def planted(target: str):
    """Rows of the faults, float32."""
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
    plan.ACCESS_BYTES = 1
    for row in compiled.rows([target], ["fp32"], ["contiguous-7x7"]):
        yield row._replace(operation=ROWS)


@pytest.fixture(scope="module")
def faults():
    return compile_in_a_fresh_process("test_compiled_code.py", *EVERYDAY["targets"])


@pytest.mark.parametrize("target", EVERYDAY["targets"])
@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_found(faults, fault, target):
    rows = [row for row in faults if (row.operation, row.target) == (fault, target)]
    assert rows
    for row in rows:
        assert any(FAULTS[fault] in problem for problem in problems(row)), problems(row)


def test_flat_tiles_take_a_quarter_of_the_accesses(everyday, faults, target="sm_90"):
    """Of a row tile of the same planes, in float32. (For AMD, loops are unrolled unlike one
    another; the width of the accesses, in ``test_machine_code``, says as much.)"""

    def instructions(rows):
        return [sum(sum(widths.values()) for widths in row.map.values()) for row in rows]

    def without_norm(rows):
        others = {kernel for _, kernel in MAX_KERNELS + NORM_KERNELS}
        return [row for row in rows if row.kernel not in others]

    flat = [row for row in everyday if row[:3] == (target, "fp32", "contiguous-7x7")]
    by_row = [row for row in faults if (row.operation, row.target) == (ROWS, target)]
    flat, by_row = without_norm(flat), without_norm(by_row)
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
            backend.squeeze_excite(x, *weights, "relu", "sigmoid")
            backend.squeeze_excite_backward(x, x, z, z, *weights, "relu", "sigmoid")
        yield from ([batch, launch.kernel, launch.compiled.hash] for launch in launches)


BATCHES = [1, 2, 3, 4, 5, 7, 8, 11, 12, 16, 19, 24, 31, 32, 33, 48, 57, 63, 64, 128]


def test_other_batch_sizes_compile_nothing():
    code = "import json, test_compiled_code as t\n" \
        "print(*(json.dumps(found) for found in t.launches_of_batches('sm_90')), sep='\\n')"
    done = fresh_process("-c", code)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert sorted({batch for batch, _, _ in found}) == BATCHES
    codes = {(kernel, code) for _, kernel, code in found}
    assert sorted(kernel for kernel, _ in codes) == [
        "gate_gradient_kernel", "rescale_kernel", "rescale_kernel", "squeeze_kernel"
    ]  # fmt: skip


if __name__ == "__main__":
    for _target in sys.argv[1:]:
        for _row in planted(_target):
            print(json.dumps(_row._asdict()))
