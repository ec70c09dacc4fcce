"""Where the tests run: every backend on every device of this machine.

SE_FUSED_REQUIRE="cpp,triton" turns the skip of a backend that cannot run into a failure.
"""

import os
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

# A failed assert of what tests share shows its values, as one of a test does.
SUPPORT = Path(__file__).parent / "support"
pytest.register_assert_rewrite(*(path.stem for path in SUPPORT.glob("*.py")))

HAS_GPU = torch.cuda.is_available()
if not HAS_GPU:
    # Triton reads it when a kernel is defined, so before anything imports the kernels.
    os.environ.setdefault("TRITON_INTERPRET", "1")

import quick_interpreter  # noqa: E402
import triton_interpreter  # noqa: E402

import se_fused  # noqa: E402
from se_fused import backends  # noqa: E402

quick_interpreter.install()

REQUIRED = os.environ.get("SE_FUSED_REQUIRE", "").replace(" ", "").split(",")


class Place(NamedTuple):
    """One backend on one device."""

    name: str
    backend: str
    device: str
    covered_by: str

    @property
    def interpreted(self) -> bool:
        return self.backend == "triton" and self.device == "cpu"

    @property
    def required(self) -> bool:
        return self.name in REQUIRED or (self.backend == "triton" and "triton" in REQUIRED)


PLACES = [
    Place("eager", "eager", "cpu", "nothing"),
    Place("cpp", "cpp", "cpu", "eager covers the rest of the package"),
]
if os.environ.get("TRITON_INTERPRET") == "1":
    PLACES.append(
        Place("triton-interpreted", "triton", "cpu", "eager covers the rest of the package")
    )
if HAS_GPU:
    PLACES += [
        Place("eager-cuda", "eager", "cuda", "nothing"),
        Place("triton-cuda", "triton", "cuda", "triton-interpreted covers the kernels' values"),
        Place("cpp-cuda", "cpp", "cuda", "cpp covers the CPU, triton-cuda the GPU"),
    ]
TRITON = [place for place in PLACES if place.backend == "triton"]
NATIVE = [place for place in PLACES if not place.interpreted]


def pytest_report_header(config):
    """Which of the CPU kernels these tests run: SE_FUSED_CPU_CAPABILITY chooses others."""
    missing = backends.why_not("cpp", torch.device("cpu"))
    return f"kernels of the cpp backend: {missing or backends.load('cpp').cpu_capability()}"


def _enter(place: Place):
    if place.interpreted:
        reason = triton_interpreter.why_not()
    else:
        reason = backends.why_not(place.backend, torch.device(place.device))
    if reason:
        stop = pytest.fail if place.required else pytest.skip
        stop(f"{place.backend} on {place.device}: {reason}; instead: {place.covered_by}")
    return se_fused.backend(place.backend)


@pytest.fixture(params=PLACES, ids=lambda place: place.name)
def place(request):
    """The test runs on this backend and builds its tensors on ``place.device``."""
    with _enter(request.param):
        yield request.param


@pytest.fixture(params=TRITON, ids=lambda place: place.name)
def triton_place(request):
    """As ``place``, the Triton backend alone: for what only it has to decide."""
    with _enter(request.param):
        yield request.param


@pytest.fixture(params=NATIVE, ids=lambda place: place.name)
def native_place(request):
    """As ``place``, without the interpreter: for sizes that would take it minutes."""
    with _enter(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=HAS_GPU)
def plain_convolutions():
    """On a GPU, convolutions in float32 itself, not TF32, and the same from run to run."""
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        yield


@pytest.fixture
def poisoned_allocations():
    """Fills fresh allocations with NaN: an element that a kernel forgot shows in its result."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    fill, torch.utils.deterministic.fill_uninitialized_memory = (
        torch.utils.deterministic.fill_uninitialized_memory,
        True,
    )
    assert torch.empty(3).isnan().all()
    yield
    torch.utils.deterministic.fill_uninitialized_memory = fill
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def fresh_compiler():
    """Nothing compiled before the test is used in it, nor after it what it compiles."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
