"""A training step of whole networks: untouched, compiled, swapped, fused, and without any SE.

    pytest benchmarks/test_network.py           without the compiled copies
    pytest benchmarks/test_network.py --full    with them

Forward, loss and backward. The copies take turns, step by step. "without SE" has the identity in
place of each block: the time above it is what SE costs, the SE tax.
"""

import copy
import functools
import itertools

import pytest
import torch
import torch.nn.functional as F
from models import copies
from peak_memory import peak_of
from timing import beside, quartiles
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
def test_network(benchmark, device, fused_backend, request, name, size, batches, layout):
    torch.manual_seed(0)
    batch = batches[device.type]
    images = torch.randn(batch, 3, size, size, device=device)
    images = images.contiguous(memory_format=LAYOUTS[layout])
    labels = torch.arange(batch, device=device) % 10
    if name != "se_resnet20":
        pytest.importorskip("timm", reason="not installed; se_resnet20 needs no library")
    networks = copies(name, num_classes=10)
    if request.config.getoption("--full"):
        networks = compiled_too(networks)
    for network in networks.values():
        network.to(device, memory_format=LAYOUTS[layout])

    def step(network):
        network.zero_grad()
        F.cross_entropy(network(images), labels).backward()

    with backend(fused_backend):
        verify(networks, images)
        calls = {}
        for kind, network in networks.items():
            calls[kind] = functools.partial(step, network.train())
            calls[kind]()  # the first call allocates gradients, and compiles
        peaks = {kind: peak_of(call, device) for kind, call in calls.items()}
        times = beside(benchmark, calls, "fused", SECONDS, device)
    benchmark.extra_info.update(
        network=name, batch=batch, size=size, layout=layout, dtype="fp32",
        backend=fused_backend, threads=torch.get_num_threads(),
        ms={kind: quartiles(found) for kind, found in times.items()},
        images_per_second={
            kind: 1e3 * batch / quartiles(found)["median"] for kind, found in times.items()
        },
        peak_bytes=peaks,
    )


def compiled_too(networks: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """The copies and each of them compiled."""
    torch._dynamo.reset()
    return networks | {
        "compiled" if kind == "eager" else f"{kind}, compiled":
            torch.compile(copy.deepcopy(network), dynamic=False)
        for kind, network in networks.items()
    }


def verify(networks, images):
    """The swapped networks compute what the untouched one does: no time of a wrong result."""
    for is_training, kind in itertools.product((False, True), ("fused", "fused blocks")):
        with torch.no_grad():
            found, expected = (
                with_branches(networks[name]).train(is_training)(images) for name in (kind, "eager")
            )
        assert (found - expected).norm() <= 1e-3 * expected.norm(), f"{kind}: not what eager finds"


def with_branches(network) -> nn.Module:
    """A copy whose BatchNorms all scale by 1: timm's ResNets start with a 0 at each branch's end,
    where the branch, and with it SE, has no part in the result."""
    network = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    return network
