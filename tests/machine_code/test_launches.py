"""Real launches, without a GPU: Triton's own JIT, driver and C launcher over a stub libcuda.

What is launched, by how many programs, with arguments that fit the signatures; the machine code of
what these launches compile. ``launches.py`` is the same as a script, with every case.
"""

import ctypes
import json
import os
import shutil
from functools import cache

import pytest
from filelock import FileLock

pytest.importorskip(
    "triton", reason="triton is not installed, there is nothing to launch; eager and cpp are tested"
)
if shutil.which("gcc") is None:
    pytest.skip(
        "no gcc for the stub driver; test_compiled_code.py compiles the kernels",
        allow_module_level=True,
    )

import launches  # noqa: E402
import stub_driver  # noqa: E402
from compiled_cases import CASES, EVERY_KERNEL  # noqa: E402
from launch_faults import FAULTS  # noqa: E402
from launch_steps import Part, from_json  # noqa: E402
from public_calls import EMPTY, ODD  # noqa: E402
from rules import BUDGETS  # noqa: E402

from se_fused.backends.triton import plan  # noqa: E402

BY_ALL_WARPS = (EVERY_KERNEL, "contiguous-56x56", "contiguous-7x7")
INT64 = [case for case in CASES if "int64" in case]
SELECTIONS = {
    "everyday": launches.EVERYDAY,
    **{case: launches.chosen([case], ("fp32", "bf16")) for case in BY_ALL_WARPS},
    "int64": [Part(case, "bf16", 4) for case in INT64],
    "odd": launches.chosen([*ODD, *EMPTY], ("fp32", "bf16-parameters"), [4]),
}
thorough, slow = pytest.mark.thorough, pytest.mark.slow
MARKS = {"everyday": (), EVERY_KERNEL: thorough, "odd": thorough}
of_selections = pytest.mark.parametrize(
    "selection", [pytest.param(name, marks=MARKS.get(name, slow)) for name in SELECTIONS]
)


@pytest.fixture(scope="session")
def printed(tmp_path_factory):
    """What one process prints of a selection, the planted faults after the everyday one; the tests'
    processes share it."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent

    @cache
    def launch_once(selection: str) -> list:
        kept = folder / f"launches-{selection}.jsonl"
        with FileLock(f"{kept}.lock"):
            if not kept.exists():
                code = "import launches, launch_faults; launches.print_steps()"
                if selection == "everyday":
                    code += "; launch_faults.print_faults()"
                parts = json.dumps(SELECTIONS[selection])
                kept.write_text(stub_driver.fresh_process("-c", code, parts))
        return kept.read_text().splitlines()

    return launch_once


@pytest.fixture(scope="session")
def steps(printed):
    """The steps of a selection."""

    @cache
    def of(selection: str) -> list:
        return [from_json(line) for line in printed(selection) if line.startswith("[")]

    return of


@of_selections
def test_every_step_launches_what_is_planned(steps, selection):
    faults = [f"{step.name}: {fault}" for step in steps(selection) for fault in step.faults()]
    assert not faults, "\n".join(faults)


@of_selections
def test_machine_code_of_what_was_launched(steps, selection):
    found = steps(selection)
    assert any(step.rows for step in found)
    faults = [f"{step.name}: {fault}" for step in found for fault in launches.faults(step)]
    assert not faults, "\n".join(faults)


def test_launches_per_call(steps):
    """As the README says: two forward, two backward; one more where an activation stands between
    BatchNorm and SE."""
    counts = {
        (step.case, step.call, step.direction): len(step.launches) for step in steps("everyday")
    }

    def of(call, case):
        return [counts[case, call, direction] for direction in ("forward", "backward")]

    for case in (EVERY_KERNEL, "odd-5x7"):
        for call in ("FusedSE inside", "FusedSE between", "squeeze_excite", "squeeze_excite max",
                     "squeeze_excite concat", "squeeze_excite_add_act"):  # fmt: skip
            assert of(call, case) == [2, 2]
        assert of("rescale", case) == [1, 1]
    linear, silu = EVERY_KERNEL, "odd-5x7"
    for end in ("", ", residual and ReLU"):
        assert of(f"FusedBatchNormSE training{end}", linear) == [2, 2]
        assert of(f"FusedBatchNormSE eval{end}", linear) == [2, 2]
        assert of(f"FusedBatchNormSE training{end}", silu) == [3, 2]
        assert of(f"FusedBatchNormSE eval{end}", silu) == [2, 2]


def test_an_empty_map_launches_nothing(steps):
    found = [step for step in steps("everyday") if step.case in EMPTY]
    assert {step.call for step in found} >= {"FusedSE inside", "squeeze", "rescale"}
    assert not any(step.launches for step in found)


def test_the_selection_has_every_kernel_and_way(steps):
    found = [launch for step in steps("everyday") for launch in step.launches]
    assert {f"{launch.kernel}_kernel" for launch in found} == set(BUDGETS)
    assert {launch.splits > 1 for launch in found if launch.splits} == {True, False}
    for where, excites in (("inside", True), ("between", False)):
        of_block = [step for step in steps("everyday") if step.call == f"FusedSE {where}"]
        assert {step.launches[0].excites for step in of_block if step.launches} == {excites}


@thorough
def test_tuning_launches_each_number_of_warps_once():
    """And then the planned one, which no other beats."""
    code = "import launches; launches.print_tuned()"
    warps, first, second = json.loads(
        stub_driver.fresh_process("-c", code, SE_FUSED_AUTOTUNE="1")
    )
    planned = 32 * plan.WARPS
    assert sorted(first[:-1]) == [32 * number for number in sorted(warps)]
    assert first[-1] == planned and second == [planned]


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_found(printed, fault):
    said = json.loads(printed("everyday")[-1])[fault]
    assert any(FAULTS[fault].says in text for text in said), said


class Config(ctypes.Structure):
    """CUlaunchConfig"""

    _fields_ = [
        *((f"{of}_{axis}", ctypes.c_uint) for of in ("grid", "block") for axis in "xyz"),
        ("shared", ctypes.c_uint), ("stream", ctypes.c_void_p), ("attributes", ctypes.c_void_p),
        ("number_of_attributes", ctypes.c_uint),
    ]  # fmt: skip


LARGEST = dict(grid_x=2**31 - 1, grid_y=65535, grid_z=65535, block_x=1024, shared=48 << 10)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return stub_driver.Library(stub_driver.build(tmp_path_factory.mktemp("stub")))


@pytest.fixture
def launch(library):
    """Launches with this configuration, one of each dimension that is not given."""
    function = ctypes.c_void_p()
    assert library.functions.cuModuleGetFunction(ctypes.byref(function), None, b"kernel") == 0
    library.forget()

    def launched(**sizes) -> bool:
        ones = {f"{of}_{axis}": 1 for of in ("grid", "block") for axis in "xyz"}
        config = Config(**ones | sizes)
        return library.functions.cuLaunchKernelEx(ctypes.byref(config), function, None, None) == 0

    return launched, function


def test_the_stub_records_launches(library, launch):
    launched, _ = launch
    assert launched() and launched(**LARGEST)
    assert library.count() == 2
    record = library.record(1)
    assert list(record.grid) == [2**31 - 1, 65535, 65535] and list(record.block) == [1024, 1, 1]
    assert record.shared == 48 << 10 and record.function == b"kernel"


@pytest.mark.parametrize(
    "sizes",
    [
        dict(grid_x=0), dict(grid_y=0), dict(grid_x=2**31), dict(grid_y=65536), dict(grid_z=65536),
        dict(block_x=0), dict(block_x=1056), dict(block_x=64, block_y=32),
        dict(shared=(48 << 10) + 1),
    ],
    ids=str,
)  # fmt: skip
def test_the_stub_refuses_what_a_driver_refuses(library, launch, sizes):
    launched, _ = launch
    assert not launched(**sizes)
    assert library.count() == 0


def test_shared_memory_that_was_asked_for(library, launch):
    (launched, function), dynamic_shared = launch, 8
    ask = lambda size: library.functions.cuFuncSetAttribute(function, dynamic_shared, size)
    assert ask((227 << 10) + 1) != 0
    assert ask(227 << 10) == 0
    assert launched(shared=227 << 10) and not launched(shared=(227 << 10) + 1)
