"""Bytes and launches of the Triton kernels, counted in the interpreter, against closed forms.

What loads and stores ask for, before any cache, is the same on a GPU. The order of programs, which
a GPU is free to choose, is reversed and shuffled.
"""

from math import ceil

import numpy as np
import pytest
import torch
from block_operators import NO_NORM, OPERATORS, PLAIN
from interpreted_kernels import kernels
from pairwise import each_pair
from shapes import DENSE, DTYPES, SHAPES, make_inputs

from se_fused import backends

# isort: split
from byte_meter import Meter
from traffic import counting

# Where the excitation runs between the launches, and where inside the first one.
BETWEEN, INSIDE = "weights-outweigh-the-samples", ("aligned-7x7", "split-planes")
# (shape of x, hidden width)
CASES = SHAPES | {
    "aligned-7x7": ((2, 72, 7, 7), 8),
    "split-planes": ((1, 5, 40, 40), 2),
    "ragged-channels": ((2, 67, 5, 7), 9),
    BETWEEN: ((2, 24, 3, 3), 264),
}
MATMULS = ("linear", "addmm", "matmul", "mm")
WIDTHS = {name: DTYPES[name] for name in ("fp64", "fp32", "bf16")}  # fp16 moves what bf16 does


def each(*names, **factors):
    """Parametrises by these cases in every layout they have, pair by pair of values."""
    return each_pair(
        lambda row: row["layout"] != "contiguous" and len(row["case"][0]) < 4,
        case={name: CASES[name] for name in names},
        layout=DENSE,
        **factors,
    )


def inputs_of(case, layout, dtype=torch.float32):
    shape, hidden = case
    return make_inputs(shape, hidden, "cpu", dtype, layout=layout)


def forward_of(inputs):
    return kernels.squeeze_excite(inputs.x, None, *inputs.block[1:], False)


def saved_of(inputs):
    """z and g"""
    block = inputs.x, None, *inputs.block[1:], False
    return backends.load("eager").squeeze_excite(*block)[2:]


def backward_of(inputs, z, g):
    saved = inputs.dy, inputs.x, None, z, g
    return kernels.squeeze_excite_backward(*saved, *inputs.block[1:], False)


def check_traffic(meter, launches, read, written, beside_read, beside_written):
    """``read``: tensors of which so many launches read each element once and the others nothing.
    ``written``: the tensor of which one launch writes each element once. Beside them at most so
    many bytes, and one counter for each program of the first launch."""
    assert not meter.faults
    assert len(meter.launches) == launches
    for tensor, times in read:
        reading = [operand for operand in meter.operands(tensor) if operand.loads.any()]
        assert len(reading) == times
        assert all(np.array_equal(operand.loads, operand.inside) for operand in reading)
        assert meter.read(tensor) == times * tensor.nbytes
    [writing] = [operand for operand in meter.operands(written) if operand.stores.any()]
    assert np.array_equal(writing.stores, writing.inside)
    assert meter.written(written) == written.nbytes and meter.read(written) == 0
    assert meter.read() - meter.read(*(tensor for tensor, _ in read)) <= beside_read
    assert meter.written() - written.nbytes <= beside_written
    assert meter.updated() <= 4 * meter.launches[0].programs


def per_program(meter, t) -> int:
    """Bytes of [N, C] in t's dtype, for each of a sample's programs: a program needs no more of it
    than its sample's channels."""
    return max(ceil(launch.programs / t.shape[0]) for launch in meter.launches) * t.nbytes


@each(*CASES, dtype=WIDTHS)
def test_squeeze_excite(case, layout, dtype):
    inputs = inputs_of(case, layout, dtype)
    with Meter() as meter:
        y, _, z, g = forward_of(inputs)
    sums = per_program(meter, z)
    weights = len(z) * sum(w.nbytes for w in inputs.tensors[1:]) * bool(meter.operands(inputs.w1))
    check_traffic(
        meter, 2, [(inputs.x, 2)], y,
        beside_read=sums + weights + per_program(meter, g),
        beside_written=sums + z.nbytes + g.nbytes,
    )  # fmt: skip


@each(*CASES, dtype=WIDTHS)
def test_squeeze_excite_backward(case, layout, dtype):
    inputs = inputs_of(case, layout, dtype)
    z, g = saved_of(inputs)
    with Meter() as meter:
        dx, _, dp1, h, dp2 = backward_of(inputs, z, g)
    sums = grad_mean = per_program(meter, dp2)
    weights = [inputs.w1, inputs.w1, inputs.b1, inputs.w2]  # W1 for h and for dz
    weights = len(z) * sum(w.nbytes for w in weights) * bool(meter.operands(inputs.w1))
    check_traffic(
        meter, 2, [(inputs.dy, 2), (inputs.x, 1)], dx,
        beside_read=sums + z.nbytes + g.nbytes + weights + per_program(meter, g) + grad_mean,
        beside_written=sums + 2 * dp2.nbytes + dp1.nbytes + h.nbytes,  # dp2 and its like, dz / M
    )  # fmt: skip


@each(*CASES, dtype=WIDTHS)
def test_squeeze_and_rescale(case, layout, dtype):
    inputs = inputs_of(case, layout, dtype)
    x, dy = inputs.x, inputs.dy
    with Meter() as meter:
        (z,) = kernels.reduce_forward(x, *PLAIN, "mean")
    sums = per_program(meter, z)
    check_traffic(meter, 1, [(x, 1)], z, beside_read=sums, beside_written=sums)
    with Meter() as meter:
        y, _ = kernels.apply_forward(x, None, *NO_NORM, z, "identity", False)
    check_traffic(meter, 1, [(x, 1)], y, beside_read=per_program(meter, z), beside_written=0)
    with Meter() as meter:
        (dg,), _ = kernels.reduce_backward(dy, x, None, *NO_NORM, None, None, "identity")
    check_traffic(meter, 1, [(dy, 1), (x, 1)], dg, beside_read=sums, beside_written=sums)
    with Meter() as meter:
        (dg,), dx = kernels.reduce_backward(dy, x, None, *NO_NORM, None, z, "identity")
    sums = per_program(meter, dg)
    check_traffic(
        meter, 1, [(dy, 1), (x, 1)], dx,
        beside_read=sums + per_program(meter, z), beside_written=sums + dg.nbytes,
    )  # fmt: skip


@each("3d", "aligned-7x7", "split-planes", "ragged-channels")
def test_squeeze_with_the_maximum(case, layout):
    """One read of x; backward one of dy and x, then of dy and x with the write of dx."""
    inputs = inputs_of(case, layout, torch.bfloat16)
    x, dy = inputs.x, inputs.dy
    with Meter() as meter:
        statistics = kernels.reduce_forward(x, *PLAIN, "max")
    mean, m = statistics
    read = 2 * per_program(meter, m)
    check_traffic(meter, 1, [(x, 1)], statistics, beside_read=read, beside_written=read)
    with Meter() as meter:
        sums, _ = kernels.reduce_backward(dy, x, None, *NO_NORM, m, None, "identity")
    check_traffic(
        meter, 1, [(dy, 1), (x, 1)], sums, beside_read=2 * read, beside_written=read
    )
    with Meter() as meter:
        dx, _ = kernels.apply_backward(
            dy, x, None, *NO_NORM, mean, mean, m, sums[1], None, None, "identity", False
        )
    beside = 4 * per_program(meter, m)
    check_traffic(meter, 1, [(dy, 1), (x, 1)], dx, beside_read=beside, beside_written=0)


@pytest.mark.parametrize("layout", DENSE)
def test_small_tensors_add_less_than_a_tenth_of_a_pass(layout):
    """Float32 at 56 × 56; their share grows with fewer positions or narrower elements. Planes are
    split there among programs, so the closed forms are tested with that, too."""
    inputs = make_inputs((1, 16, 56, 56), 4, "cpu", layout=layout)
    x = inputs.x.nbytes
    with Meter() as forward:
        _, _, z, g = forward_of(inputs)
    with Meter() as backward:
        backward_of(inputs, z, g)
    assert 3 * x < forward.read() + forward.written() < 3.1 * x
    assert 4 * x < backward.read() + backward.written() < 4.1 * x
    assert forward.launches[0].programs > 1 and backward.launches[0].programs > 1


@pytest.mark.parametrize("name", CASES)
def test_launches_of_the_block(name):
    """Triton's are two and two. PyTorch's: zeroed counters, or the excitation in between."""
    inputs = inputs_of(CASES[name], "contiguous")
    with Meter() as triton_forward, counting.Operators(inputs.x.shape) as forward:
        _, _, z, g = forward_of(inputs)
    with Meter() as triton_backward, counting.Operators(inputs.x.shape) as backward:
        backward_of(inputs, z, g)
    assert len(triton_forward.launches) == len(triton_backward.launches) == 2
    matmuls = [sum(name in MATMULS for name in found.names) for found in (forward, backward)]
    if any(matmuls):
        assert name not in INSIDE
        assert matmuls == [2, 3]
    else:
        assert name != BETWEEN
        assert forward.names in ([], ["zeros"]) and backward.names in ([], ["zeros"])


@each("aligned-7x7", "split-planes", "many-samples", "ragged-channels", "3d", BETWEEN)
@pytest.mark.usefixtures("poisoned_allocations")
def test_results_do_not_depend_on_the_order_of_programs(case, layout):
    inputs = inputs_of(case, layout)
    arguments = [operator.arguments(inputs) for operator in OPERATORS.values()]

    def results(order):
        with Meter(order) as meter:
            found = [
                operator.call(row, kernels) for operator, row in zip(OPERATORS.values(), arguments)
            ]
        assert not meter.faults
        return [result for row in found for result in row.values()]

    expected = results("ascending")
    assert len(expected) == 17
    for order in ("reversed", "shuffled"):
        assert all(map(torch.equal, results(order), expected))


def test_passes_of_a_training_step():
    found = counting.count_fused((2, 64, 14, 14), 4, "channels_last")
    assert [found[direction]["passes"] for direction in counting.DIRECTIONS] == [3, 4]
