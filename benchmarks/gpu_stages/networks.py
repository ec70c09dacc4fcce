"""The stage of gpu.py that times a training step of SE-ResNet-50 under bf16 autocast."""

import copy

import torch
from bench_network import batch_of, figures, step_of, verify
from gpu_stages.stage import chosen
from lib.models import copies
from lib.peak_memory import peak_of
from lib.timing import in_turn

NETWORK, DRY = ("seresnet50", 256, 224), ("se_resnet20", 2, 32)  # name, samples, pixels of a side
# Most wanted first.
COMPILED = ("eager", "fused blocks", "without SE", "fused")
LAYOUT, DTYPE = "channels_last", "bf16 autocast"
VERIFIED = 32  # samples
SECONDS = 2  # for each copy


def network(stage, only: str | None = None):
    """The copies as they are, then each compiled, then all beside each other.

    only: with a stage that warms caches, this copy is compiled and has a step.
    """
    name, batch, size = DRY if stage.dry else NETWORK
    images, labels = batch_of(batch, size, LAYOUT, stage.device)
    found = copies(name, num_classes=10)
    for kind in [only] if only else found:
        found[kind].to(stage.device, memory_format=torch.channels_last)
    backend = stage.backends[0]
    steps, times, peaks = {}, {}, {}

    def add(kind, of):
        steps[kind] = step_of(of, images, labels, DTYPE)
        steps[kind]()  # allocates gradients, and compiles
        peaks[kind] = peak_of(steps[kind], stage.device)

    def measure(kinds):
        calls = {kind: steps[kind] for kind in kinds}
        rounds = {"seconds": SECONDS * len(calls), "fewest": 7, "most": 50}
        if stage.dry:
            rounds = {"seconds": 0, "fewest": 2}
        times.update(in_turn(calls, device=stage.device, **rounds))
        stage.write(
            "network", network=name, batch=batch, size=size, layout=LAYOUT, dtype=DTYPE,
            backend=backend, threads=torch.get_num_threads(), **figures(times, batch, peaks),
        )

    def right(kind):
        verify({name: found[name] for name in ("eager", kind)}, images[:VERIFIED], DTYPE)
        return True

    def compiled(kind):
        name = "compiled" if kind == "eager" else f"{kind}, compiled"
        add(name, torch.compile(copy.deepcopy(found[kind]), dynamic=False))
        if not only:
            measure([name])

    with chosen(backend):
        if only:
            compiled(only)
            return
        stage.plans("network", 1)
        for kind in ("fused", "fused blocks"):  # one that is wrong is left out, not all
            if stage.attempt(f"{kind}, {DTYPE}", right, kind) is None:
                del found[kind]
        for kind, of in found.items():
            add(kind, of)
        measure(found)
        for kind in [kind for kind in COMPILED if kind in found][: 1 if stage.dry else None]:
            stage.attempt(f"{kind}, compiled", compiled, kind)
        measure(steps)
