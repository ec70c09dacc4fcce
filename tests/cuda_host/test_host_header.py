"""CUDA kernels on the CPU: right ones give right values, planted faults are found by name."""

from functools import partial

import pytest
from host_build import HERE, SANITIZERS, build, run, why_not

pytestmark = pytest.mark.skipif(
    why_not() is not None, reason=f"{why_not()}; the CUDA kernels are tested on GPUs only"
)

RACE = "WARNING: ThreadSanitizer: data race"
OVERRUN = "ERROR: AddressSanitizer: heap-buffer-overflow"
UNINITIALISED = "cuda_host::Error: uninitialised shared memory"

# What one build reports, and the others cannot.
SANITIZED = {
    "missing barrier": ("thread", RACE),
    "missing fence": ("thread", RACE),
    "counter without atomic": ("thread", RACE),
    "shuffle for a barrier": ("thread", RACE),
    "blocks write the same element": ("thread", RACE),
    "overrun of global memory": ("address", OVERRUN),
    "overrun of shared memory": ("address", OVERRUN),
    "misaligned vector": ("address", "misaligned address"),
    "uninitialised shared memory": ("initialised", UNINITIALISED),
    "uninitialised counter": ("initialised", UNINITIALISED),
}
# What the header reports in every build.
REPORTED = {
    "thread leaves before the barrier": "divergent barrier",
    "barriers in two branches": "divergent barrier",
    "lane waits at a barrier": "bad mask",
    "lane has left": "bad mask",
    "caller is not in the mask": "bad mask",
    "masks differ": "bad mask",
    "calls differ": "bad mask",
    "warp is not full": "bad mask",
    "masks in a circle": "deadlock",
    "spin for good": "deadlock",
    "too many threads": "invalid launch",
}


@pytest.fixture
def program():
    """The self-test built for a sanitizer."""
    return partial(build, [HERE / "selftest.cpp"])


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_right_kernels(program, sanitizer):
    done = run(program(sanitizer))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("fault", SANITIZED)
def test_sanitizer_finds(program, fault):
    sanitizer, message = SANITIZED[fault]
    done = run(program(sanitizer), fault)
    assert done.returncode != 0, "unnoticed"
    assert message in done.stderr, done.stderr


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_header_finds(program, sanitizer):
    """One launch after another: a launch that failed leaves nothing behind."""
    done = run(program(sanitizer), *REPORTED)
    for fault, message in REPORTED.items():
        assert f"{fault}: cuda_host::Error: {message}" in done.stderr, done.stderr
    assert done.returncode == len(REPORTED), done.stderr


def test_uninitialised_shared_memory_is_nan(program):
    """So that values show it without a sanitizer too."""
    done = run(program("plain"), "uninitialised shared memory")
    assert "cuda_host::Error: wrong sum" in done.stderr


def test_only_sanitizers_find_races(program):
    """The planted ones give right values: what was reported above was the race itself."""
    done = run(program("plain"), "missing fence", "blocks write the same element")
    assert done.returncode == 0, done.stderr
