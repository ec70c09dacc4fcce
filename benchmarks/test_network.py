"""A training step of whole networks: untouched, compiled, swapped, and without any SE.

    pytest benchmarks/test_network.py           without the compiled copies
    pytest benchmarks/test_network.py --full    with them

Forward, loss and backward. The copies take turns, step by step. "without SE" has the identity in
place of each block: the time above it is what SE costs, the SE tax.
"""

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from models import copies
from peak_memory import peak_of
from timing import milliseconds, quartiles
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
        times = in_turns(benchmark, calls, device)
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
    """The three copies and each of them compiled."""
    torch._dynamo.reset()
    names = {"eager": "compiled", "fused": "fused, compiled", "without SE": "without SE, compiled"}
    return networks | {
        name: torch.compile(copy.deepcopy(networks[kind]), dynamic=False)
        for kind, name in names.items()
    }


def verify(networks, images):
    """The swapped network computes what the untouched one does: no time of a wrong result."""
    with torch.no_grad():
        found, expected = (networks[kind].eval()(images) for kind in ("fused", "eager"))
    assert (found - expected).norm() <= 1e-3 * expected.norm()


def in_turns(benchmark, calls, device) -> dict[str, list[float]]:
    """pytest-benchmark times the swapped network; the others have their turns in between."""
    times = {kind: [] for kind in calls}

    def turn(kind):
        times[kind].append(milliseconds(calls[kind], device))

    def others():
        for kind in calls:
            if kind != "fused":
                turn(kind)

    estimate = sum(milliseconds(call, device) for call in calls.values()) / 1e3
    rounds = min(max(int(SECONDS / estimate), 5), 100)
    benchmark.pedantic(turn, args=("fused",), setup=others, rounds=rounds, warmup_rounds=1)
    return {kind: found[1:] for kind, found in times.items()}
