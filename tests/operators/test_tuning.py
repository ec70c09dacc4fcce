"""The choice of a number of warps: off unless asked for, made once, never where it may not be."""

import threading
import time

import pytest
import torch
from block_functions import forward_backward
from interpreters import python
from reference import check
from shapes import make_inputs

WHY = "triton is not installed; eager and cpp are tested"
tuning = pytest.importorskip("se_fused.backends.triton.tuning", reason=WHY)
backend = pytest.importorskip("se_fused.backends.triton", reason=WHY)

PLANNED = 4


class Kernel:
    """What Triton calls a kernel, of which each launch is written down."""

    arg_names = ("x_ptr", "counter_ptr", "channels", "spatial")

    def __init__(self):
        self.warps = []

    def __getitem__(self, grid):
        return lambda *args, num_warps, **options: self.warps.append(num_warps)


@pytest.fixture
def kernel(monkeypatch):
    """It is fastest with 8 warps; what is timed is written down in ``kernel.timed``."""
    kernel = Kernel()
    kernel.timed, kernel.times = [], {2: 3.0, 4: 2.0, 8: 1.0}

    def milliseconds(call):
        call()
        kernel.timed.append(kernel.warps.pop())
        return kernel.times[kernel.timed[-1]]

    monkeypatch.setattr(tuning, "milliseconds", milliseconds)
    monkeypatch.setattr(tuning, "_can_time", lambda: True)
    return kernel


def run(tuned, channels=64, spatial=49, counter=None, dtype=torch.float32):
    x = torch.empty(0, dtype=dtype)
    tuned[(1,)](x, counter, channels, spatial, LAYOUT="contiguous", num_warps=PLANNED)


def test_nothing_is_tuned_unless_asked_for():
    code = """
from se_fused.backends import triton as backend
kernels = [kernel for name, kernel in vars(backend).items() if name.endswith("_kernel")]
print(*(type(kernel).__name__ for kernel in kernels))
"""
    for asked, kind in (("", "JITFunction"), ("0", "JITFunction"), ("1", "Tuned")):
        found = python(code, TRITON_INTERPRET="0", SE_FUSED_AUTOTUNE=asked)
        assert found.stdout.split() == [kind] * 5, found.stderr


def test_the_fastest_is_chosen_once_for_maps_of_a_kind(kernel):
    tuned = tuning.Tuned(kernel)
    run(tuned)
    assert sorted(kernel.timed) == [2, 4, 8] and kernel.warps == [8]
    run(tuned, channels=50, spatial=60)  # within the same powers of two
    assert len(kernel.timed) == 3 and kernel.warps == [8, 8]
    for other in ({"channels": 65}, {"spatial": 65}, {"dtype": torch.float64}):
        timed = len(kernel.timed)
        run(tuned, **other)
        assert len(kernel.timed) == timed + 3


def test_a_small_gain_is_none(kernel):
    tuned = tuning.Tuned(kernel)
    kernel.times = {2: 3.0, 4: 2.0, 8: 1.95}
    run(tuned)
    assert kernel.warps == [PLANNED]
    kernel.times = {2: 3.0, 4: 2.0, 8: 1.90}
    run(tuned, channels=1000)
    assert kernel.warps == [PLANNED, 8]


def test_deterministic_algorithms_have_the_planned_number(kernel):
    tuned = tuning.Tuned(kernel)
    run(tuned)
    torch.use_deterministic_algorithms(True)
    try:
        run(tuned)
        run(tuned, channels=1000)
    finally:
        torch.use_deterministic_algorithms(False)
    assert kernel.warps == [8, PLANNED, PLANNED] and len(kernel.timed) == 3


def test_nothing_is_timed_while_a_graph_is_captured(kernel, monkeypatch):
    tuned = tuning.Tuned(kernel)
    run(tuned)
    monkeypatch.setattr(tuning, "_can_time", lambda: False)
    run(tuned)  # known: as outside of the capture
    run(tuned, channels=1000)
    assert kernel.warps == [8, 8, PLANNED] and len(kernel.timed) == 3


def test_counters_are_zero_before_each_trial_and_after_the_last(kernel, monkeypatch):
    counter, seen = torch.ones(3, dtype=torch.int32), []

    def __getitem__(self, grid):
        def launched(x, counter, *sizes, num_warps, **options):
            seen.append(counter.sum().item())
            counter.fill_(5)
            self.warps.append(num_warps)

        return launched

    monkeypatch.setattr(Kernel, "__getitem__", __getitem__)
    run(tuning.Tuned(kernel), counter=counter)
    assert seen == [0, 0, 0, 0]


def test_threads_tune_one_after_another(kernel, monkeypatch):
    """autograd runs the backward pass of each GPU in a thread of its own."""
    inside, most = [], []

    def milliseconds(call):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.02)
        inside.pop()
        return 1.0

    monkeypatch.setattr(tuning, "milliseconds", milliseconds)
    tuned = tuning.Tuned(kernel)
    threads = [threading.Thread(target=run, args=(tuned,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1] and kernel.warps == [PLANNED] * 4


def test_values_of_tuned_kernels(triton_place, monkeypatch):
    """Kernels that count their finished programs are launched several times for one result."""
    def milliseconds(call):
        call(), call()
        return 1.0

    monkeypatch.setattr(tuning, "milliseconds", milliseconds)
    monkeypatch.setattr(tuning, "_can_time", lambda: True)
    for name in [name for name in vars(backend) if name.endswith("_kernel")]:
        monkeypatch.setattr(backend, name, tuning.Tuned(getattr(backend, name)))
    inputs = make_inputs((2, 9, 40, 41), 3, triton_place.device)
    check(forward_backward(inputs), inputs)
    assert backend._reduce_forward_kernel.chosen and backend._reduce_backward_kernel.chosen
