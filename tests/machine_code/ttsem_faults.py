"""Planted faults: what the checks of ttsem_kernels.py must not let through."""

import pytest
import torch
import triton
import triton.language as tl
from rounding import assert_right
from ttsem import sanitize

pytest_plugins = ["ttsem_session"]


@triton.jit
def off_by_one_kernel(x_ptr, y_ptr, size, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + index, index <= size, other=0)
    tl.store(y_ptr + index, x, index < size)


@triton.jit
def accumulate_kernel(x_ptr, y_ptr, size, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    y = tl.load(y_ptr + index, index < size, other=0)
    tl.store(y_ptr + index, y + tl.load(x_ptr + index, index < size, other=0), index < size)


@triton.jit
def overlap_kernel(y_ptr, BLOCK: tl.constexpr):
    program = tl.program_id(0)
    tl.store(y_ptr + program * (BLOCK - 1) + tl.arange(0, BLOCK), program)


@triton.jit
def last_program_kernel(
    partial_ptr, counter_ptr, y_ptr, PARTIALS: tl.constexpr,
    SEM: tl.constexpr, LATE: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """Each program stores a slot, and the last to count itself adds them all. Wrong if SEM does
    not order that, if the slot is stored LATE, or if LAST is not the number of the last."""
    program = tl.program_id(0)
    if not LATE:
        tl.store(partial_ptr + program, program + 1.0)
    done = tl.atomic_add(counter_ptr, 1, sem=SEM)
    if LATE:
        tl.store(partial_ptr + program, program + 1.0)
    if done == LAST:
        total = 0.0
        for slot in range(PARTIALS):
            total += tl.load(partial_ptr + slot)
        tl.store(y_ptr, total)


@pytest.mark.parametrize("size", [96, 100], ids=["whole-blocks", "ragged"])
def test_out_of_bounds_read_is_reported(size):
    x = torch.randn(size, device="cuda")
    with pytest.raises(sanitize.KernelFault, match="index <= size.* reads 1 element") as found:
        off_by_one_kernel[(4,)](x, torch.empty_like(x), size, 32)
    assert found.value.fault.kind == "oob_read"


def test_uninitialised_read_fails_the_values():
    x = torch.randn(100, device="cuda")
    y = torch.zeros_like(x)
    accumulate_kernel[(4,)](x, y, 100, 32)
    assert_right("y", y, x.double(), x.double().abs(), x.dtype)
    y = torch.empty_like(x)
    accumulate_kernel[(4,)](x, y, 100, 32)
    assert y.isnan().all()
    with pytest.raises(AssertionError, match="y: error inf"):
        assert_right("y", y, x.double(), x.double().abs(), x.dtype)


def test_race_is_reported():
    with pytest.raises(sanitize.KernelFault, match="write-write") as found:
        overlap_kernel[(4,)](torch.empty(128, device="cuda"), 32)
    assert found.value.fault.kind == "race"


HANDOVERS = {  # SEM, LATE, LAST; right?
    "counted": ("acq_rel", False, 3, True),
    "relaxed": ("relaxed", False, 3, False),
    "release-only": ("release", False, 3, False),
    "stored-after-the-counter": ("acq_rel", True, 3, False),
    "last-but-one": ("acq_rel", False, 2, False),
}


@pytest.mark.parametrize("sem, late, last, right", HANDOVERS.values(), ids=HANDOVERS)
@pytest.mark.parametrize("order", ["", "shuffle:0"], ids=["in-order", "shuffled"])
def test_only_a_counted_handover_is_excused(monkeypatch, races, sem, late, last, right, order):
    monkeypatch.setenv("TTSEM_GRID_ORDER", order)
    slots, y = (torch.empty(size, device="cuda") for size in (4, 1))
    counter = torch.zeros(1, dtype=torch.int32, device="cuda")
    if right:
        last_program_kernel[(4,)](slots, counter, y, 4, sem, late, last)
        assert y.item() == 10 and races.excused == 3
    else:
        with pytest.raises(sanitize.KernelFault, match="`partial_ptr`.*read-write"):
            last_program_kernel[(4,)](slots, counter, y, 4, sem, late, last)
