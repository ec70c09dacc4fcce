"""Times of several callables that take turns, so that all meet the same disturbances."""

import statistics
import time

import torch

CPU = torch.device("cpu")


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
    times = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    for done in range(most):
        if done >= fewest and time.perf_counter() > end:
            break
        order = list(calls)[:: 1 if done % 2 else -1]
        for name in order:
            times[name].append(milliseconds(calls[name], device, in_a_row))
    return times


def beside(benchmark, calls: dict, name: str, seconds, device) -> dict[str, list[float]]:
    """pytest-benchmark times one of the callables; before each of its rounds the others have their
    turns. Milliseconds of all."""
    times = {other: [] for other in calls}

    def turn(which):
        times[which].append(milliseconds(calls[which], device))

    def others():
        for other in calls:
            if other != name:
                turn(other)

    estimate = sum(milliseconds(call, device) for call in calls.values()) / 1e3
    rounds = min(max(int(seconds / estimate), 5), 100)
    benchmark.pedantic(turn, args=(name,), setup=others, rounds=rounds, warmup_rounds=1)
    return {which: found[1:] for which, found in times.items()}


def milliseconds(call, device=CPU, in_a_row=1) -> float:
    """One turn: wall time on a CPU, on a GPU the time on the device, launches excluded."""
    if device.type != "cuda":
        begin = time.perf_counter()
        for _ in range(in_a_row):
            call()
        return 1e3 * (time.perf_counter() - begin) / in_a_row
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(2_000_000)  # about 1 ms, in which the launches queue up behind it
    begin.record()
    for _ in range(in_a_row):
        call()
    end.record()
    torch.cuda.synchronize(device)
    return begin.elapsed_time(end) / in_a_row


def launch_milliseconds(call, device) -> float:
    """What a call takes on the CPU until its kernels are queued, on an idle GPU."""
    torch.cuda.synchronize(device)
    begin = time.perf_counter()
    call()
    passed = 1e3 * (time.perf_counter() - begin)
    torch.cuda.synchronize(device)
    return passed


def graphed(call):
    """The same call as a CUDA graph, which launches nothing one by one."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def quartiles(times: list[float]) -> dict:
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive")
    return {"median": middle, "q1": low, "q3": high, "rounds": len(times)}


def copy_bandwidth(elements: int, dtype, device) -> float:
    """GB/s of ``clone`` on a tensor of this size: read and written, the ceiling of every pass."""
    source = torch.zeros(elements, dtype=dtype, device=device)
    target = torch.empty_like(source)
    times = in_turn({"copy": lambda: target.copy_(source)}, seconds=0.3, device=device)["copy"]
    return 2 * source.nbytes / statistics.median(times) / 1e6
