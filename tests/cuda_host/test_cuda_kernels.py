"""The CUDA kernels, compiled for the host by g++: values of every operator against float64.

A CUDA thread is a fiber (cuda_host.h); launchers and kernels are the shipped ones. Here
they run as built; `make sanitize` runs the same program under sanitizers, which look at accesses:
of two types with the same size one is enough, and nothing is asked of the values.
"""

import os
from functools import cache, partial
from itertools import product
from pathlib import Path

import host_build
import pytest
import torch
from block_operators import OPERATORS
from pairwise import pairwise
from reference import Inputs, check
from shapes import DENSE, DTYPES, REDUCED, make_inputs

from se_fused.activations import ACTS, GATES
from se_fused.backends import reference

ROOT = Path(__file__).resolve().parents[2]
SANITIZER = os.environ.get("SE_FUSED_SANITIZER", "plain")
SANITIZED = SANITIZER != "plain"
NAMES = ("fp32", "bf16") if SANITIZED else tuple(DTYPES)
SOURCES = [
    host_build.HERE / "run_block.cpp",
    *(ROOT / "csrc" / "cuda" / f"launch_{name}.cu" for name in NAMES),
]
ORDERS = ("ascending", "shuffled", "interleaved")
TYPES = {dtype: name for name, dtype in DTYPES.items()}
# The passes of a maximum are PyTorch's on a GPU.
WITH_KERNELS = [operator for operator in OPERATORS if not operator.endswith("_max")]
BLOCK = ("squeeze_excite", "squeeze_excite_backward")
PLACES = {"between": 0, "in-reduce": 1 << 30}  # of the excitation, by the bytes of the cache

pytestmark = pytest.mark.skipif(
    host_build.why_not() is not None,
    reason=f"{host_build.why_not()}; the Triton kernels are tested by the interpreter",
)
judges_values = pytest.mark.skipif(
    SANITIZED, reason="judges values; make test has it, and sanitizers see the same launches"
)
in_the_thorough = pytest.mark.skipif(
    SANITIZED, reason="a part of the thorough tests, which run under sanitizers, too"
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
def program():
    return host_build.build(SOURCES, SANITIZER, ["-DCUDA_HOST_TWO_TYPES"] if SANITIZED else [])


def memory(t: torch.Tensor) -> bytes:
    """The elements in the order of memory."""
    flat = t.detach().as_strided((t.numel(),), (1,), t.storage_offset())
    return flat.view(torch.uint8).numpy().tobytes()


class Case:
    """One operator with its arguments, as a line of cases.txt and its files."""

    def __init__(self, operator, inputs: Inputs, multiprocessors, l2_bytes, offsets, order, seed):
        self.operator, self.inputs = operator, inputs
        self.arguments = OPERATORS[operator].arguments(inputs)
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
        results = OPERATORS[self.operator].call(self.arguments, reference)
        maps_first = sorted(results, key=lambda key: key not in ("y", "dx", "dy_times_g"))
        for key, like in ((key, results[key]) for key in maps_first):
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
    for name, case in cases.items() if not SANITIZED else ():
        try:
            check(case.read(folder, name), case.inputs)
        except AssertionError as error:
            raise AssertionError(f"{name}: {case.line}: {error}") from None


each_type = pytest.mark.parametrize("name", NAMES)
# A kernel is a type, a walk (of layout and shape), and what is summed and done then (of operator
# and place): in make test every pair, in the thorough tests every one. The order and the offsets
# are no part of it.
WALKS = {
    "name": NAMES, "layout": DENSE, "shape": SHAPES, "operator": WITH_KERNELS, "place": PLACES,
    "order": ORDERS,
}  # fmt: skip
OFFSETS = {
    "name": NAMES, "layout": DENSE, "shape": ("rows", "planes", "wide"), "operator": WITH_KERNELS,
    "offsets": ((1, 1), (3, 3), (0, 1), (5, 2)),
}  # fmt: skip


def is_none(row):
    """A case that does not exist: a layout of no positions, a place without an excitation."""
    without_layout = row["layout"] == "channels-last" and len(SHAPES[row["shape"]][0]) < 4
    return without_layout or (row.get("place") == "between" and row["operator"] not in BLOCK)


def run_rows(program, folder, rows):
    """Cases that are rows of WALKS or OFFSETS, all of one type."""
    make = cache(partial(make_inputs_of, act="silu"))
    cases = {}
    for row in rows:
        inputs, (*_, multiprocessors) = make(row["name"], row["layout"], row["shape"])
        l2_bytes, order = PLACES[row.get("place", "in-reduce")], row.get("order", "shuffled")
        cases["-".join(map(str, row.values())).replace(" ", "")] = Case(
            row["operator"], inputs, multiprocessors, l2_bytes, row.get("offsets", (0, 0)),
            "interleaved" if SANITIZED else order, seed=len(cases),
        )  # fmt: skip
    assert len(cases) == len(rows)
    run(program, folder, cases)


def make_inputs_of(name, layout, shape_name, act):
    shape, hidden, _ = case = SHAPES[shape_name]
    return make_inputs(shape, hidden, "cpu", DTYPES[name], layout=layout, act=act), case


def pairs_of(factors, name):
    rows = (dict(zip(factors, row)) for row in pairwise(factors, is_none))
    return [row for row in rows if row["name"] == name]


def all_of(factors, name, rotating):
    """Every combination, with the values of one factor in turn."""
    others = {key: [name] if key == "name" else values for key, values in factors.items()}
    turns = list(others.pop(rotating))
    rows = [dict(zip(others, row)) for row in product(*others.values())]
    rows = [row | {rotating: turns[at % len(turns)]} for at, row in enumerate(rows)]
    return [row for row in rows if not is_none(row)]


@in_the_thorough
@each_type
def test_every_operator_and_walk(program, tmp_path, name):
    run_rows(program, tmp_path, pairs_of(WALKS, name))


@each_type
@pytest.mark.thorough
def test_every_kernel(program, tmp_path, name):
    run_rows(program, tmp_path, all_of(WALKS, name, rotating="order"))


@in_the_thorough
@each_type
def test_maps_at_any_alignment(program, tmp_path, name):
    run_rows(program, tmp_path, pairs_of(OFFSETS, name))


@each_type
@pytest.mark.thorough
def test_every_operator_at_every_alignment(program, tmp_path, name):
    run_rows(program, tmp_path, all_of(OFFSETS, name, rotating="shape"))


@pytest.mark.parametrize("l2_bytes", PLACES.values(), ids=PLACES)
def test_every_act_and_gate(program, tmp_path, l2_bytes):
    cases = {}
    for number in range(max(len(ACTS), len(GATES))):
        act, gate = ACTS[number % len(ACTS)], GATES[number % len(GATES)]
        inputs = make_inputs((2, 9, 3, 3), 6, "cpu", act=act, gate=gate, biases=number % 2 == 0)
        for operator in BLOCK:
            cases[f"{operator}-{act}-{gate}"] = Case(
                operator, inputs, 1, l2_bytes, (0, 0), "shuffled", seed=number
            )
    run(program, tmp_path, cases)


@pytest.mark.parametrize("name", [name for name in NAMES if name in REDUCED])
def test_float32_weights_beside_a_16_bit_map(program, tmp_path, name):
    inputs = make_inputs((2, 24, 5, 5), 6, "cpu", REDUCED[name], weight_dtype=torch.float32)
    cases = {
        f"{operator}-{place}": Case(operator, inputs, 1, l2_bytes, (0, 0), "interleaved", seed=3)
        for operator in BLOCK
        for place, l2_bytes in PLACES.items()
    }
    run(program, tmp_path, cases)


@judges_values
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


@judges_values
def test_the_oracle_is_not_the_kernels(program, tmp_path):
    """A case judged by the inputs of another fails."""
    inputs = make_inputs((2, 9, 3, 3), 6, "cpu")
    case = Case("squeeze", inputs, 1, 0, (0, 0), "ascending", seed=0)
    case.inputs = make_inputs((2, 9, 3, 3), 6, "cpu")
    with pytest.raises(AssertionError, match="z: error"):
        run(program, tmp_path, {"squeeze": case})
