"""Times of several callables that take turns, so that all meet the same disturbances."""

import statistics
import time


def medians(calls: dict, seconds=1.5, fewest=7, most=200, in_a_row=1) -> dict:
    """Median milliseconds of each callable: {name: ms}.

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
        for name, call in calls.items():
            begin = time.perf_counter()
            for _ in range(in_a_row):
                call()
            times[name].append((time.perf_counter() - begin) / in_a_row)
    return {name: 1e3 * statistics.median(found) for name, found in times.items()}
