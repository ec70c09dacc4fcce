"""What counts bytes and launches in Triton's interpreter, on kernels with known traffic."""

import interpreted_kernels  # noqa: F401  (skips this file where nothing is interpreted)
import pytest
import torch

# isort: split
import triton
import triton.language as tl
from byte_meter import ORDERS, Meter


@triton.jit
def copy_kernel(x_ptr, y_ptr, size, FROM: tl.constexpr, TO: tl.constexpr, STEP: tl.constexpr):
    """y = x of a size up to 32, with FROM = TO = 0 and STEP = 16, the elements of a program."""
    element = tl.program_id(0) * STEP + tl.arange(0, 16)
    x = tl.load(x_ptr + element + FROM, element < size)
    tl.store(y_ptr + element + TO, x, element < size)


@triton.jit
def turn_kernel(turn_ptr, counter_ptr):
    """turn[i, j]: how many programs ran before program (i, j)."""
    program = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    tl.store(turn_ptr + program, tl.atomic_add(counter_ptr, 1))


PLANTED = {
    "none": ((30, 0, 0, 16), []),
    "load-before": ((30, -1, 0, 16), ["x_ptr: loads outside, 1 times, first at byte -4 of 120"]),
    "load-after": ((30, 2, 0, 16), ["x_ptr: loads outside, 2 times, first at byte 120 of 120"]),
    "store-after": (
        (30, 0, 1, 16),
        ["y_ptr: stores outside, 1 times, first at byte 120 of 120",
         "y_ptr: never stored, 1 elements, first at byte 0 of 120"],
    ),
    "missed": ((29, 0, 0, 16), ["y_ptr: never stored, 1 elements, first at byte 116 of 120"]),
    "twice": ((30, 0, 0, 14), ["y_ptr: stored twice, 2 elements, first at byte 56 of 120"]),
}  # fmt: skip


@pytest.mark.parametrize("constants, faults", PLANTED.values(), ids=PLANTED)
@pytest.mark.parametrize("order", ORDERS)
def test_meter_tells_planted_faults(constants, faults, order):
    # x and y lie side by side in a larger storage: what is outside of them is memory all the same.
    storage = torch.arange(70.0)
    x, y = storage[5:35], storage[35:65]
    with Meter(order) as meter:
        copy_kernel[(2,)](x, y, *constants)
    assert meter.faults == [f"copy_kernel: {fault}" for fault in faults]
    around = [*range(35), *range(65, 70)]
    assert storage[around].tolist() == around


def test_meter_tells_accesses_between_the_elements_of_a_view():
    x, y = torch.zeros(10, 3)[:, 0], torch.zeros(28)
    with Meter() as meter:
        copy_kernel[(2,)](x, y, 28, 0, 0, 16)
    assert meter.faults == ["copy_kernel: x_ptr: loads outside, 18 times, first at byte 4 of 112"]


def test_meter_counts_bytes_and_launches():
    x, y = torch.zeros(2, 30, dtype=torch.float16)
    turn, counter = torch.zeros(2, 3, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    with Meter() as meter:
        copy_kernel[(2,)](x, y, 30, 0, 0, 14)
        turn_kernel[(2, 3)](turn, counter)
    copy_kernel[(2,)](x, y, 30, 0, 0, 16)  # after the meter
    found = [(launch.kernel, launch.programs) for launch in meter.launches]
    assert found == [("copy_kernel", 2), ("turn_kernel", 6)]
    assert (meter.read(x), meter.read(y), meter.read()) == (64, 0, 64)
    assert (meter.written(x), meter.written(y), meter.written()) == (0, 64, 64 + 24)
    assert (meter.updated(counter), meter.updated()) == (24, 24)
    assert meter.read(unique=True) == 60 and meter.written(y, unique=True) == 60
    assert meter.updated(unique=True) == 4


def test_meter_runs_programs_in_the_order_asked_for():
    def turns(order):
        turn = torch.zeros(5, 3, dtype=torch.int32)
        with Meter(order):
            turn_kernel[(5, 3)](turn, torch.zeros(1, dtype=torch.int32))
        return turn.flatten().tolist()

    assert turns("ascending") == list(range(15))
    assert turns("reversed") == list(range(14, -1, -1))
    assert turns("shuffled") not in (turns("ascending"), turns("reversed"))
    assert turns("shuffled") == turns("shuffled")
    assert sorted(turns("shuffled")) == turns("ascending")
