"""A guard against regressions: fused is not slower than eager. Relative, so that noise cancels.

Both take turns on one thread, forward and backward; the best of several tries counts. What it
guards is far away: on these maps FusedSE takes about half of eager's time (see the README).
"""

import time

import pytest
import torch
from lib.models import SqueezeExcite
from lib.timing import medians

from se_fused import FusedSE, backends

TRIES = 5
SHAPES = {"56x56": (8, 256, 56, 56), "14x14": (16, 1024, 14, 14), "7x7": (16, 2048, 7, 7)}
DEVICES = [torch.device("cuda" if torch.cuda.is_available() else "cpu")]


def best_ratio(eager, fused, device) -> float:
    """Eager's time over fused's in the best of the tries; 1 is enough."""
    best = 0.0
    for _ in range(TRIES):
        times = medians({"eager": eager, "fused": fused}, seconds=0.5, device=device)
        best = max(best, times["eager"] / times["fused"])
        if best >= 1:
            break
    return best


def training_steps(shape, layout, device):
    channels = shape[1]
    x = torch.randn(shape, device=device).contiguous(memory_format=layout).requires_grad_()
    dy = torch.randn_like(x)
    blocks = SqueezeExcite(channels, channels // 16), FusedSE(channels, rd_channels=channels // 16)

    def step(block):
        wanted = [x, *block.to(device).parameters()]
        return lambda: torch.autograd.grad(block(x), wanted, dy)

    return map(step, blocks)


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def needs_a_kernel(device):
    names = [n for n in backends.preferred(device.type) if backends.why_not(n, device) is None]
    if names[0] == "eager":
        pytest.skip(f"no kernels for {device}; test_a_slow_block_is_seen covers the guard")


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize(
    "layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels-last"]
)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_fused_is_not_slower_than_eager(one_thread, shape, layout, device):
    needs_a_kernel(device)
    assert best_ratio(*training_steps(shape, layout, device), device) >= 1


def test_a_slow_block_is_seen(one_thread):
    device = torch.device("cpu")
    eager, fused = training_steps((2, 64, 14, 14), torch.contiguous_format, device)

    def slow():
        fused()
        time.sleep(0.01)

    assert best_ratio(eager, slow, device) < 1
