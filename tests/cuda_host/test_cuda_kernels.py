"""The CUDA kernels, compiled for the host by g++: values of every operator against float64.

A CUDA thread is a fiber (cuda_host.h); launchers and kernels are the shipped ones. Here
they run as built; `make sanitize` runs the same program under sanitizers.
"""

import os
from pathlib import Path

import host_build
import pytest
import torch
from block_operators import OPERATORS, call
from reference import Inputs, check
from shapes import DTYPES, make_inputs

from se_fused.activations import ACTS, GATES
from se_fused.backends import eager

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [host_build.HERE / "run_block.cpp", *sorted(ROOT.glob("csrc/cuda/launch_*.cu"))]
SANITIZER = os.environ.get("SE_FUSED_SANITIZER", "plain")
ORDERS = ("ascending", "shuffled", "interleaved")
TYPES = {dtype: name for name, dtype in DTYPES.items()}
# The passes of a maximum are PyTorch's on a GPU.
WITH_KERNELS = [operator for operator in OPERATORS if not operator.endswith("_max")]
# Sanitizers look at accesses: one dtype a size, and the order that lets blocks meet.
DTYPES_HERE = list(TYPES) if SANITIZER == "plain" else [torch.float32, torch.bfloat16]
ORDERS_HERE = ORDERS if SANITIZER == "plain" else ("interleaved",)

pytestmark = pytest.mark.skipif(
    host_build.why_not() is not None,
    reason=f"{host_build.why_not()}; the Triton kernels are tested by the interpreter",
)

# samples, channels and positions, hidden width; multiprocessors, which decide how planes are split.
SHAPES = {
    "rows": ((2, 11, 27, 21), 5, 1),
    "rows-split": ((2, 5, 57, 41), 9, 40),
    "planes": ((2, 90, 7, 7), 9, 1),
    "planes-3x5": ((3, 5, 3, 5), 40, 1),
    "no-positions": ((9, 20), 7, 1),
    "wide": ((1, 300, 2, 2), 33, 1),
}


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    target = tmp_path_factory.mktemp("cuda_kernels") / "run_block"
    return host_build.build(SOURCES, SANITIZER, target, ["-O2"] if SANITIZER == "plain" else [])


def memory(t: torch.Tensor) -> bytes:
    """The elements in the order of memory."""
    flat = t.detach().as_strided((t.numel(),), (1,), t.storage_offset())
    return flat.view(torch.uint8).numpy().tobytes()


class Case:
    """One operator with its arguments, as a line of cases.txt and its files."""

    def __init__(self, operator, inputs: Inputs, multiprocessors, l2_bytes, offsets, order, seed):
        self.operator, self.inputs = operator, inputs
        self.arguments = OPERATORS[operator][0](inputs)
        x = inputs.x
        channels_last = not x.is_contiguous() or x.shape[2:].numel() == 1
        fields = (
            operator, TYPES[x.dtype], *x.shape[:2], x.shape[2:].numel(), int(channels_last),
            inputs.w1.shape[0], ACTS.index(inputs.act), GATES.index(inputs.gate),
            int(inputs.b1 is not None), int(inputs.w1.dtype != x.dtype or x.itemsize > 2),
            *offsets, multiprocessors, l2_bytes, seed, ORDERS.index(order),
        )
        self.line = " ".join(map(str, fields))

    def write(self, folder, name):
        # x, dy, weights, z, g: the operators take dy first.
        tensors = [t for t in self.arguments if isinstance(t, torch.Tensor)]
        if tensors[0] is self.inputs.dy:
            dy, x, *rest = tensors
            block = self.operator == "squeeze_excite_backward"
            tensors = [x, dy, *rest[2:], *rest[:2]] if block else [x, dy, *rest]
        (folder / f"{name}.in").write_bytes(b"".join(map(memory, tensors)))

    def read(self, folder, name) -> dict[str, torch.Tensor]:
        """What the program returned, in the shapes and layouts of the eager operator's results."""
        data = (folder / f"{name}.out").read_bytes()
        found = {}
        for key, like in call(self.operator, self.arguments, eager).items():
            size = like.numel() * like.itemsize
            flat = torch.frombuffer(bytearray(data[:size]), dtype=like.dtype)
            found[key] = flat.as_strided(like.shape, like.stride())
            data = data[size:]
        assert not data
        return found


def run(program, folder, cases: dict[str, Case]):
    for name, case in cases.items():
        case.write(folder, name)
    (folder / "cases.txt").write_text("".join(f"{n} {c.line}\n" for n, c in cases.items()))
    done = host_build.run(program, folder, timeout=900)
    assert done.returncode == 0, done.stderr[-6000:]
    for name, case in cases.items():
        try:
            check(case.read(folder, name), case.inputs)
        except AssertionError as error:
            raise AssertionError(f"{name}: {case.line}: {error}") from None


each_dtype = pytest.mark.parametrize("dtype", DTYPES_HERE, ids=TYPES.get)


@each_dtype
@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
@pytest.mark.parametrize("order", ORDERS_HERE)
def test_every_operator_and_walk(program, tmp_path, dtype, layout, order):
    cases = {}
    for shape_name, (shape, hidden, multiprocessors) in SHAPES.items():
        if layout == "channels-last" and len(shape) < 4:
            continue
        inputs = make_inputs(shape, hidden, "cpu", dtype, layout=layout, act="silu")
        for place, l2_bytes in {"between": 0, "in-reduce": 1 << 30}.items():
            for operator in WITH_KERNELS:
                if place == "between" and not operator.startswith("squeeze_excite"):
                    continue
                cases[f"{operator}-{shape_name}-{place}"] = Case(
                    operator, inputs, multiprocessors, l2_bytes, (0, 0), order, seed=len(cases)
                )
    run(program, tmp_path, cases)


@each_dtype
@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
def test_maps_at_any_alignment(program, tmp_path, dtype, layout):
    cases = {}
    for shape_name in ("rows", "planes", "wide"):
        shape, hidden, multiprocessors = SHAPES[shape_name]
        inputs = make_inputs(shape, hidden, "cpu", dtype, layout=layout)
        for offsets in ((1, 1), (3, 3), (0, 1), (5, 2)):
            for operator in WITH_KERNELS:
                cases[f"{operator}-{shape_name}-{offsets[0]}-{offsets[1]}"] = Case(
                    operator, inputs, multiprocessors, 1 << 30, offsets, "shuffled", seed=1
                )
    run(program, tmp_path, cases)


@pytest.mark.parametrize("l2_bytes", [0, 1 << 30], ids=["between", "in-reduce"])
def test_every_act_and_gate(program, tmp_path, l2_bytes):
    cases = {}
    for number in range(max(len(ACTS), len(GATES))):
        act, gate = ACTS[number % len(ACTS)], GATES[number % len(GATES)]
        inputs = make_inputs((2, 9, 3, 3), 6, "cpu", act=act, gate=gate, biases=number % 2 == 0)
        for operator in ("squeeze_excite", "squeeze_excite_backward"):
            cases[f"{operator}-{act}-{gate}"] = Case(
                operator, inputs, 1, l2_bytes, (0, 0), "shuffled", seed=number
            )
    run(program, tmp_path, cases)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=TYPES.get)
def test_float32_weights_beside_a_16_bit_map(program, tmp_path, dtype):
    inputs = make_inputs((2, 24, 5, 5), 6, "cpu", dtype, weight_dtype=torch.float32)
    cases = {
        operator: Case(operator, inputs, 1, l2_bytes, (0, 0), "interleaved", seed=3)
        for operator in ("squeeze_excite", "squeeze_excite_backward")
        for l2_bytes in (0, 1 << 30)
    }
    run(program, tmp_path, cases)


def test_results_do_not_depend_on_the_order_of_blocks(program, tmp_path):
    inputs = make_inputs((2, 11, 27, 21), 5, "cpu")
    cases = {
        f"{operator}-{order}": Case(operator, inputs, 40, 1 << 30, (0, 0), order, seed)
        for operator in WITH_KERNELS
        for seed, order in enumerate(ORDERS)
    }
    run(program, tmp_path, cases)
    for operator in WITH_KERNELS:
        first, *others = ((tmp_path / f"{operator}-{order}.out").read_bytes() for order in ORDERS)
        assert all(other == first for other in others), operator


def test_the_oracle_is_not_the_kernels(program, tmp_path):
    """A case judged by the inputs of another fails."""
    inputs = make_inputs((2, 9, 3, 3), 6, "cpu")
    case = Case("squeeze", inputs, 1, 0, (0, 0), "ascending", seed=0)
    case.inputs = make_inputs((2, 9, 3, 3), 6, "cpu")
    with pytest.raises(AssertionError, match="z: error"):
        run(program, tmp_path, {"squeeze": case})
