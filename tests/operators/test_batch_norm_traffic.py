"""Bytes and launches of the passes of a block with BatchNorm, residual and ReLU, counted as in
test_traffic.py: each pass is one launch, over each of its maps once and an eighth of a byte an
element of the mask, in whatever order its programs run."""

from functools import partial

import numpy as np
import pytest
import torch
from interpreted_kernels import kernels
from pairwise import each_pair
from passes_reference import OPERATORS, make_norm_inputs
from shapes import DENSE, SHAPES

# isort: split
from byte_meter import ORDERS, Meter

CASES = {name: SHAPES[name][0] for name in ("7x7", "1x1", "14x14", "5x157", "3d")} | {
    "aligned-7x7": (2, 72, 7, 7),
    "split-planes": (1, 5, 40, 41),
    "ragged-channels": (2, 70, 5, 7),
}
# Maps read and written, by what is asked for: 1 to 5 passes, and a mask of a 16th or 32nd of one.
PASSES = {
    "moments": ("moments", {}, ("x",), ()),
    "squeeze": ("squeeze", dict(act="silu"), ("x",), ()),
    "rescale": ("rescale", dict(residual=False), ("x",), ("y", "mask")),
    "rescale-residual": ("rescale", {}, ("x", "residual"), ("y", "mask")),
    "rescale-no-relu": ("rescale", dict(relu=False), ("x", "residual"), ("y",)),
    "sums": ("sums", {}, ("dy", "x", "mask"), ()),
    "sums-silu": ("sums", dict(act="silu"), ("dy", "x", "mask"), ()),
    "sums-no-relu": ("sums", dict(masked=False), ("dy", "x"), ()),
    "backward": ("gradient", {}, ("dy", "x", "mask"), ("dx", "dr")),
    "backward-eval": (
        "gradient", dict(train=False, add=False), ("dy", "mask"), ("dx",)
    ),
    "backward-eval-silu": (
        "gradient", dict(train=False, add=False, act="silu"), ("dy", "x", "mask"),
        ("dx",),
    ),
}  # fmt: skip


def each(*names, **factors):
    """Parametrises by these cases in every layout they have, pair by pair of values."""
    return each_pair(
        lambda row: row["layout"] != "contiguous" and len(row["shape"]) < 4,
        shape={name: CASES[name] for name in names},
        layout=DENSE,
        **factors,
    )


@pytest.mark.usefixtures("poisoned_allocations")
@each(*CASES, asked=PASSES)
def test_every_pass(shape, layout, asked):
    operator, options, read, written = asked
    inputs, found, meter = metered((shape, layout), torch.bfloat16, operator, options)
    [launch] = meter.launches
    maps = [getattr(inputs, name) for name in read]
    for tensor in maps:
        [operand] = meter.operands(tensor)
        assert np.array_equal(operand.loads, operand.inside)
    for name in written:
        [operand] = meter.operands(found[name])
        assert np.array_equal(operand.stores, operand.inside)
    # Beside the maps: up to 7 values a channel and 5 slots for each program, and up to 5 results.
    values = launch.programs * min(inputs.g.shape[1], 64) * inputs.g.itemsize
    assert meter.read() - meter.read(*maps) <= (7 + 5) * values
    results = sum(found[name].nbytes for name in written)
    assert meter.written() - results <= 5 * (values + inputs.g.nbytes)
    assert meter.updated() <= 4 * launch.programs


# A tile of several planes, of a part of one, and one with channels left over.
TILES = ("aligned-7x7", "split-planes", "ragged-channels")


@each(*TILES)
def test_results_do_not_depend_on_the_order_of_programs(shape, layout):
    check_orders(shape, layout)


@pytest.mark.thorough
@each(*(name for name in CASES if name not in TILES))
def test_results_of_other_shapes_neither(shape, layout):
    check_orders(shape, layout)


def check_orders(shape, layout):
    call = partial(metered, (shape, layout), torch.float32, options=dict(act="silu"))
    for operator in OPERATORS:
        _, expected, _ = call(operator)
        for order in set(ORDERS) - {"ascending"}:
            _, found, _ = call(operator, order=order)
            assert all(torch.equal(found[name], expected[name]) for name in expected)


def metered(case, dtype, operator, options, order="ascending"):
    """Inputs, results and the meter of one call."""
    shape, layout = case
    torch.manual_seed(0)
    inputs = make_norm_inputs(shape, dtype=dtype, layout=layout, **options)
    with Meter(order) as meter:
        found = OPERATORS[operator].call(OPERATORS[operator].arguments(inputs), kernels)
    assert not meter.faults
    return inputs, found, meter


@pytest.mark.parametrize("layout", DENSE)
def test_small_tensors_add_less_than_a_sixth_of_a_pass(layout):
    """Float32 at 56 × 56, beside whole passes over the map and 1/32 of one for the mask: 7 values a
    channel for tiles of 64 positions are a ninth."""
    case = (2, 16, 56, 56), layout
    expected = {
        "moments": 1, "squeeze": 1, "rescale-residual": 3, "rescale": 2, "sums": 2,
        "backward": 4, "backward-eval": 2,
    }  # fmt: skip
    for name, passes in expected.items():
        operator, options, read, written = PASSES[name]
        inputs, _, meter = metered(case, torch.float32, operator, options)
        masks = ("mask" in read + written) / 32
        found = (meter.read() + meter.written()) / inputs.x.nbytes
        assert passes + masks <= found < passes + masks + 1 / 6, name
