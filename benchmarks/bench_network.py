"""A training step of whole networks: untouched, compiled, swapped, fused, and without any SE.

    pytest benchmarks/bench_network.py           without the compiled copies
    pytest benchmarks/bench_network.py --full    with them

Forward, loss and backward. The copies take turns, step by step. "without SE" has the identity in
place of each block: the time above it is what SE costs, the SE tax. In fp32; on a GPU also under
bf16 autocast.
"""

import contextlib
import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from lib.models import copies
from lib.peak_memory import peak_of
from lib.timing import beside, quartiles
from lib.verification import without_tf32
from torch import nn

from se_fused import backend

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
# Name, image size, batch size on a CPU and on a GPU, whether it is among the quick ones.
NETWORKS = [
    ("seresnet50", 224, 8, 64, True),
    ("efficientnet_b0", 224, 8, 64, True),
    ("mobilenetv3_large_100", 224, 8, 128, True),
    ("regnety_016", 224, 8, 64, False),
    ("se_resnet20", 32, 32, 256, True),
]
SECONDS = 12
# What rounding to 16 bits makes of a network differs from copy to copy, by a factor of a few.
AUTOCAST_FACTOR = 3


def rows():
    return [
        pytest.param(
            name, size, {"cpu": on_cpu, "cuda": on_gpu}, layout,
            id=f"{name}-{layout}", marks=[] if quick else [pytest.mark.full],
        )
        for name, size, on_cpu, on_gpu, quick in NETWORKS
        for layout in LAYOUTS
    ]


@pytest.mark.parametrize("name, size, batches, layout", rows())
def test_network(
    benchmark, device, fused_backend, network_dtype, request, name, size, batches, layout
):
    torch.manual_seed(0)
    batch = batches[device.type]
    images, labels = batch_of(batch, size, layout, device)
    if name != "se_resnet20":
        pytest.importorskip("timm", reason="not installed; se_resnet20 needs no library")
    networks = copies(name, num_classes=10)
    if request.config.getoption("--full"):
        networks = compiled_too(networks)
    for network in networks.values():
        network.to(device, memory_format=LAYOUTS[layout])

    with backend(fused_backend):
        verify(networks, images, network_dtype)
        calls = {}
        for kind, network in networks.items():
            calls[kind] = step_of(network, images, labels, network_dtype)
            calls[kind]()  # the first call allocates gradients, and compiles
        peaks = {kind: peak_of(call, device) for kind, call in calls.items()}
        times = beside(benchmark, calls, "fused", SECONDS, device)
    benchmark.extra_info.update(
        network=name, batch=batch, size=size, layout=layout, dtype=network_dtype,
        backend=fused_backend, threads=torch.get_num_threads(), **figures(times, batch, peaks),
    )


def figures(times: dict[str, list[float]], batch: int, peaks: dict) -> dict:
    """What the tables take, {what: {copy: figure}}, from the milliseconds of each copy."""
    ms = {kind: quartiles(found) for kind, found in times.items()}
    return {
        "ms": ms,
        "images_per_second": {kind: 1e3 * batch / of["median"] for kind, of in ms.items()},
        "peak_bytes": peaks,
    }


def batch_of(batch: int, size: int, layout: str, device):
    """Images and labels."""
    images = torch.randn(batch, 3, size, size, device=device)
    images = images.contiguous(memory_format=LAYOUTS[layout])
    return images, torch.arange(batch, device=device) % 10


def step_of(network, images, labels, dtype):
    """A call that is a training step: forward, loss and backward."""
    network.train()

    def step():
        network.zero_grad()
        with autocast(dtype, images.device):
            loss = F.cross_entropy(network(images), labels)
        loss.backward()

    return step


def autocast(dtype: str, device):
    if dtype == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def compiled_too(networks: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """The copies and each of them compiled."""
    torch._dynamo.reset()
    return networks | {
        "compiled" if kind == "eager" else f"{kind}, compiled":
            torch.compile(copy.deepcopy(network), dynamic=False)
        for kind, network in networks.items()
    }


def verify(networks, images, dtype="fp32"):
    """The swapped networks compute what the untouched one does: no time of a wrong result.

    In fp32; under autocast they are also as near to fp32 as the untouched one is.
    """

    def result(name, dtype, is_training):
        with torch.no_grad(), without_tf32(), autocast(dtype, images.device):
            return with_branches(networks[name]).train(is_training)(images).float()

    for is_training in (False, True):
        expected = result("eager", "fp32", is_training)
        allowed = {"fp32": 1e-3 * expected.norm()}
        if dtype != "fp32":
            rounding = (result("eager", dtype, is_training) - expected).norm()
            allowed[dtype] = AUTOCAST_FACTOR * rounding + allowed["fp32"]
        ours = [kind for kind in ("fused", "fused blocks") if kind in networks]
        for kind, of in itertools.product(ours, allowed):
            error = (result(kind, of, is_training) - expected).norm()
            assert error <= allowed[of], f"{kind}, {of}: not what eager finds"


def with_branches(network) -> nn.Module:
    """A copy whose BatchNorms all scale by 1: timm's ResNets start with a 0 at each branch's end,
    where the branch, and with it SE, has no part in the result."""
    network = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    return network
