"""How a GPU is timed, on one that is made up: its clock, its queue and its graphs."""

import contextlib

import pytest
import torch
from lib import timing
from lib.inputs import Inputs
from lib.maps import Map

DEVICE = torch.device("cuda")


class Clock:
    """2 cycles a nanosecond; a sleep is the only work, and events see it."""

    def __init__(self):
        self.ms, self.slept, self.graphs = 0.0, [], []

    def sleep(self, cycles):
        self.slept.append(cycles)
        self.ms += cycles / 1.5e6  # it has not risen yet

    def event(self, enable_timing):
        return Event(self)


class Event:
    def __init__(self, clock):
        self.clock = clock

    def record(self):
        self.ms = self.clock.ms

    def elapsed_time(self, end):
        return end.ms - self.ms


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()

    class Graph:
        def __init__(self, keep_graph):
            clock.graphs.append(self)

        def instantiate(self):
            pass

        def replay(self):
            clock.ms += 6.0

    class Stream:
        def wait_stream(self, other):
            pass

    monkeypatch.setattr(torch.cuda, "_sleep", clock.sleep)
    monkeypatch.setattr(torch.cuda, "Event", clock.event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: None)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: None)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: contextlib.nullcontext())
    timing._cycles_per_millisecond.cache_clear()
    yield clock
    timing._cycles_per_millisecond.cache_clear()


@pytest.mark.parametrize("launches, in_a_row, wait", [
    (0.01, 1, 1.02), (3.0, 1, 7.0), (3.0, 5, 31.0), (900.0, 1, timing.LONGEST_WAIT),
])
def test_launches_queue_up_behind_a_longer_wait(clock, monkeypatch, launches, in_a_row, wait):
    monkeypatch.setattr(timing, "launch_milliseconds", lambda call, device: launches)

    def call():
        clock.ms += 0.25

    turn = timing.stopwatch(call, DEVICE, in_a_row)
    clock.slept.clear()
    assert turn() == pytest.approx(0.25)
    assert clock.slept == [pytest.approx(wait * 2e6)]  # of a clock that may yet rise to 2 GHz


def test_graph_has_a_call_for_each_set_and_its_time_is_shared(clock):
    calls = []
    replay = timing.Graphed([lambda i=i: calls.append(i) for i in range(3)], DEVICE)
    assert calls == [0, 1, 2, 0, 0, 1, 2]  # warm-up, then the capture
    times = timing.in_turn({"a": replay}, seconds=0, fewest=2, device=DEVICE)["a"]
    assert times == [pytest.approx(6.0)] * 2


def test_copy_is_measured_past_the_cache(clock, monkeypatch):
    monkeypatch.setattr(timing, "sets_past_cache", lambda size, device: 3)
    for name in ("zeros", "empty_like", "zeros_like"):
        make = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *args, make=make, device=None, **options:
                            make(*args, **options))
    # 3 copies of 2 MB, read and written, in 6 ms
    assert timing.copy_bandwidth(1_000_000, torch.bfloat16, DEVICE) == pytest.approx(2.0)


def test_inputs_and_outputs_take_turns():
    map = Map("", (2, 16, 3, 3), 4, "relu", "sigmoid", 1)
    inputs = Inputs(map, torch.float32, "contiguous", torch.device("cpu"), sets=3)
    seen = []
    block = torch.nn.Identity()
    block.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    call = inputs.caller(block, "forward")
    for _ in range(4):
        call()
    assert [next(i for i, of in enumerate(inputs.sets) if of[0] is x) for x in seen] == [0, 1, 2, 0]
    assert len(inputs.callers(block, "forward+backward")) == 3
