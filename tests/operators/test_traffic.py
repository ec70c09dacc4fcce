"""Bytes and launches of the Triton kernels, counted in the interpreter, against closed forms.

What loads and stores ask for, before any cache, is the same on a GPU. The order of programs, which
a GPU is free to choose, is reversed and shuffled.
"""

from math import ceil

import numpy as np
import pytest
import torch
from interpreted_kernels import kernels
from pairwise import each_pair
from shapes import DENSE, DTYPES, SHAPES, make_inputs

from se_fused import backends

# isort: split
import counting
from byte_meter import Meter

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
        y, z, g = kernels.squeeze_excite(*inputs.block)
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
    _, z, g = backends.load("eager").squeeze_excite(*inputs.block)
    with Meter() as meter:
        dx, dp1, h, dp2 = kernels.squeeze_excite_backward(
            inputs.dy, inputs.x, z, g, *inputs.block[1:]
        )
    sums = share = per_program(meter, dp2)
    weights = [inputs.w1, inputs.w1, inputs.b1, inputs.w2]  # W1 for h and for dz
    weights = len(z) * sum(w.nbytes for w in weights) * bool(meter.operands(inputs.w1))
    check_traffic(
        meter, 2, [(inputs.dy, 2), (inputs.x, 1)], dx,
        beside_read=sums + z.nbytes + g.nbytes + weights + per_program(meter, g) + share,
        beside_written=sums + 2 * dp2.nbytes + dp1.nbytes + h.nbytes,  # dp2 and its like, dz / M
    )  # fmt: skip


@each(*CASES, dtype=WIDTHS)
def test_squeeze_and_rescale(case, layout, dtype):
    inputs = inputs_of(case, layout, dtype)
    x, dy = inputs.x, inputs.dy
    with Meter() as meter:
        z = kernels.squeeze(x)
    sums = per_program(meter, z)
    check_traffic(meter, 1, [(x, 1)], z, beside_read=sums, beside_written=sums)
    with Meter() as meter:
        y = kernels.rescale(x, z)
    check_traffic(meter, 1, [(x, 1)], y, beside_read=per_program(meter, z), beside_written=0)
    with Meter() as meter:
        dg = kernels.gate_gradient(dy, x)
    check_traffic(meter, 1, [(dy, 1), (x, 1)], dg, beside_read=sums, beside_written=sums)
    with Meter() as meter:
        dx, dg = kernels.rescale_backward(dy, x, z)
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
        mean, m = kernels.squeeze_max(x)
    sums = 2 * per_program(meter, m)
    check_traffic(meter, 1, [(x, 1)], m, beside_read=sums, beside_written=sums + mean.nbytes)
    with Meter() as meter:
        dg, ties = kernels.gate_gradient_max(dy, x, m)
    check_traffic(
        meter, 1, [(dy, 1), (x, 1)], ties,
        beside_read=2 * sums, beside_written=sums + dg.nbytes,
    )  # fmt: skip
    with Meter() as meter:
        dx = kernels.rescale_backward_max(dy, x, dg, mean, m, ties)
    beside = 4 * per_program(meter, m)
    check_traffic(meter, 1, [(dy, 1), (x, 1)], dx, beside_read=beside, beside_written=0)


@pytest.mark.parametrize("layout", DENSE)
def test_small_tensors_add_less_than_a_tenth_of_a_pass(layout):
    """Float32 at 56 × 56; their share grows with fewer positions or narrower elements. Planes are
    split there among programs, so the closed forms are tested with that, too."""
    inputs = make_inputs((1, 16, 56, 56), 4, "cpu", layout=layout)
    x = inputs.x.nbytes
    with Meter() as forward:
        _, z, g = kernels.squeeze_excite(*inputs.block)
    with Meter() as backward:
        kernels.squeeze_excite_backward(inputs.dy, inputs.x, z, g, *inputs.block[1:])
    assert 3 * x < forward.read() + forward.written() < 3.1 * x
    assert 4 * x < backward.read() + backward.written() < 4.1 * x
    assert forward.launches[0].programs > 1 and backward.launches[0].programs > 1


@pytest.mark.parametrize("name", CASES)
def test_launches_of_the_block(name):
    """Triton's are two and two. PyTorch's: zeroed counters, or the excitation in between."""
    inputs = inputs_of(CASES[name], "contiguous")
    with Meter() as triton_forward, counting.Operators(inputs.x.shape) as forward:
        _, z, g = kernels.squeeze_excite(*inputs.block)
    with Meter() as triton_backward, counting.Operators(inputs.x.shape) as backward:
        kernels.squeeze_excite_backward(inputs.dy, inputs.x, z, g, *inputs.block[1:])
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
    x, dy = inputs.x, inputs.dy
    _, z, g = backends.load("eager").squeeze_excite(*inputs.block)

    def results(order):
        with Meter(order) as meter:
            found = [
                *kernels.squeeze_excite(*inputs.block),
                *kernels.squeeze_excite_backward(dy, x, z, g, *inputs.block[1:]),
                kernels.squeeze(x),
                kernels.rescale(x, g),
                kernels.gate_gradient(dy, x),
                *kernels.rescale_backward(dy, x, g),
            ]
        assert not meter.faults
        return found

    expected = results("ascending")
    assert len(expected) == 12
    for order in ("reversed", "shuffled"):
        assert all(map(torch.equal, results(order), expected))


@each("split-planes")
@pytest.mark.usefixtures("poisoned_allocations")
def test_maximum_does_not_depend_on_the_order_of_programs(case, layout):
    inputs = inputs_of(case, layout)
    x, dy = inputs.x, inputs.dy
    mean, m = kernels.squeeze_max(x)
    expected = mean, m, *kernels.gate_gradient_max(dy, x, m)
    for order in ("reversed", "shuffled"):
        with Meter(order) as meter:
            found = *kernels.squeeze_max(x), *kernels.gate_gradient_max(dy, x, m)
        assert not meter.faults
        assert all(map(torch.equal, found, expected))


def test_passes_of_a_training_step():
    found = counting.count_fused((2, 64, 14, 14), 4, "channels_last")
    assert [found[direction]["passes"] for direction in counting.DIRECTIONS] == [3, 4]
