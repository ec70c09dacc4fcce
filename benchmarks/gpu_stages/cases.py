"""A plugin of pytest for gpu.py: few cases of each test, on the backends of one device.

    pytest -p gpu_stages.cases --gpu-cases 600 --gpu-device cuda --gpu-seconds 70 tests/operators

Cases are spread over what a test is parametrised with, backend by backend, and every test has had
one before any has a second: a run that is cut has seen them all.
"""

import itertools
import time

import pytest

OF_A_TEST = 4  # on each backend
NO_TIME = "no time was left for it"
_begun = time.monotonic()


def pytest_addoption(parser):
    parser.addoption("--gpu-cases", type=int, default=600, help="at most so many cases")
    parser.addoption("--gpu-device", default="cuda", help="cuda or cpu")
    parser.addoption("--gpu-seconds", type=float, default=1e9, help="no case begins after them")


def pytest_runtest_setup(item):
    if time.monotonic() - _begun > item.config.getoption("--gpu-seconds"):
        pytest.skip(NO_TIME)


def pytest_collection_modifyitems(config, items):
    kept = chosen(items, config.getoption("--gpu-device"), config.getoption("--gpu-cases"))
    left = set(kept)
    config.hook.pytest_deselected(items=[item for item in items if item not in left])
    items[:] = kept


def chosen(items, device: str, most: int) -> list:
    groups = {}
    for item in items:
        place = backend_of(item, device)
        if place:
            groups.setdefault((item.nodeid.partition("[")[0], place), []).append(item)
    spread = [evenly(of, OF_A_TEST) for of in groups.values()]
    in_turn = itertools.chain.from_iterable(itertools.zip_longest(*spread))
    return [item for item in in_turn if item is not None][:most]


def backend_of(item, device: str) -> str | None:
    """The backend that a case runs on this device, but for the interpreter's and eager's."""
    params = getattr(getattr(item, "callspec", None), "params", {})
    for name in ("place", "native_place", "triton_place"):
        place = params.get(name)
        if place and place.device == device and place.backend != "eager" and not place.interpreted:
            return place.backend
    is_of_gpu = device == "cuda" and "test_cuda_streams_and_graphs" in item.nodeid
    return params.get("backend") if is_of_gpu else None


def evenly(of: list, most: int) -> list:
    if len(of) <= most:
        return of
    return [of[round(i * (len(of) - 1) / (most - 1))] for i in range(most)]
