"""Times of several callables that take turns, so that all meet the same disturbances."""

import ctypes
import functools
import gc
import statistics
import time

import torch
from lib.devices import sets_past_cache

CPU = torch.device("cpu")
LONGEST_WAIT = 50  # ms; a thousand launches fill the queue of a GPU in less


def medians(calls: dict, seconds=1.5, fewest=7, most=200, in_a_row=1, device=CPU) -> dict:
    """Median milliseconds of each callable: {name: ms}."""
    times = in_turn(calls, seconds, fewest, most, in_a_row, device)
    return {name: statistics.median(found) for name, found in times.items()}


def in_turn(
    calls: dict, seconds=1.5, fewest=7, most=200, in_a_row=1, device=CPU
) -> dict[str, list[float]]:
    """Milliseconds of each callable, round by round; who goes first changes.

    in_a_row: calls per turn, where one is so short that the change of turns would be measured.
    """
    for call in calls.values():
        for _ in range(2):
            call()
    turns = {name: stopwatch(call, device, in_a_row) for name, call in calls.items()}
    times = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    for done in range(most):
        if done >= fewest and time.perf_counter() > end:
            break
        order = list(calls)[:: 1 if done % 2 else -1]
        for name in order:
            times[name].append(turns[name]())
    return times


def beside(benchmark, calls: dict, name: str, seconds, device) -> dict[str, list[float]]:
    """pytest-benchmark times one of the callables; before each of its rounds the others have their
    turns. Milliseconds of all."""
    turns = {other: stopwatch(call, device) for other, call in calls.items()}
    times = {other: [] for other in calls}

    def turn(which):
        times[which].append(turns[which]())

    def others():
        for other in calls:
            if other != name:
                turn(other)

    estimate = sum(measured() for measured in turns.values()) / 1e3
    rounds = min(max(int(seconds / estimate), 5), 100)
    benchmark.pedantic(turn, args=(name,), setup=others, rounds=rounds, warmup_rounds=1)
    return {which: found[1:] for which, found in times.items()}


def stopwatch(call, device=CPU, in_a_row=1):
    """A function that times one turn, in milliseconds of a call: wall time on a CPU, on a GPU the
    time on the device, launches excluded. They queue up there behind a wait that is longer than
    they take."""

    def on_cpu():
        begin = time.perf_counter()
        for _ in range(in_a_row):
            call()
        return 1e3 * (time.perf_counter() - begin) / in_a_row

    if device.type != "cuda":
        return on_cpu
    launches = statistics.median(launch_milliseconds(call, device) for _ in range(3))
    wait = min(1 + 2 * in_a_row * launches, LONGEST_WAIT)
    cycles = int(wait * _cycles_per_millisecond(device))

    def on_gpu():
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(cycles)
        begin.record()
        for _ in range(in_a_row):
            call()
        end.record()
        torch.cuda.synchronize(device)
        return begin.elapsed_time(end) / in_a_row

    return on_gpu


@functools.cache
def _cycles_per_millisecond(device) -> float:
    """Of the clock that ``torch.cuda._sleep`` counts; not less than 2 GHz, as it may rise."""
    for _ in range(3):  # it rises under load
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        torch.cuda._sleep(10_000_000)
        end.record()
        torch.cuda.synchronize(device)
    return max(10_000_000 / begin.elapsed_time(end), 2e6)


def launch_milliseconds(call, device) -> float:
    """What a call takes on the CPU until its kernels are queued, on an idle GPU."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda device: None
    wait(device)
    begin = time.perf_counter()
    call()
    passed = 1e3 * (time.perf_counter() - begin)
    wait(device)
    return passed


class Graphed:
    """All the calls as one CUDA graph, which launches nothing one by one. Each call has a set of
    inputs of its own, and all have outputs of their own: nothing is found in the cache. On a CPU,
    which has no graphs: the calls themselves."""

    def __init__(self, calls: list, device):
        self.calls, self.graph = calls, None
        if device.type != "cuda":
            return
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for call in (*calls, calls[0]):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        gc.collect()  # a graph of autograd that is left over would have nodes of other streams
        self.graph = torch.cuda.CUDAGraph(keep_graph=True)
        current = torch.cuda.current_stream()
        try:
            with torch.cuda.graph(self.graph):
                outputs = [call() for call in calls]
        finally:  # which a capture that fails to end leaves undone
            torch.cuda.set_stream(current)
        del outputs  # their memory is the graph's
        self.graph.instantiate()

    def __call__(self):
        if self.graph is None:
            return [call() for call in self.calls]
        return self.graph.replay()

    def kernels(self) -> float | None:
        """Kernels, copies and fills of a call; None on a CPU."""
        if self.graph is None:
            return None
        count = ctypes.c_size_t()
        driver, graph = ctypes.CDLL("libcuda.so.1"), ctypes.c_void_p(self.graph.raw_cuda_graph())
        status = driver.cuGraphGetNodes(graph, None, ctypes.byref(count))
        return count.value / len(self.calls) if status == 0 else None


def quartiles(times: list[float]) -> dict:
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive")
    return {"median": middle, "q1": low, "q3": high, "rounds": len(times)}


def copy_bandwidth(elements: int, dtype, device) -> float:
    """GB/s of a copy of a tensor of this size: read and written, the ceiling of every pass."""
    source = torch.zeros(elements, dtype=dtype, device=device)
    pairs = [(source, torch.empty_like(source))]
    for _ in range(1, sets_past_cache(source.nbytes, device)):
        pairs.append((torch.zeros_like(source), torch.empty_like(source)))
    calls = [lambda source=source, target=target: target.copy_(source) for source, target in pairs]
    copies = {"copy": Graphed(calls, device)}
    times = in_turn(copies, seconds=0.3, device=device)["copy"]
    return 2 * source.nbytes * len(calls) / statistics.median(times) / 1e6
