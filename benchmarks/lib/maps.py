"""The maps that SE blocks get in real networks, read off the networks themselves.

    python benchmarks/lib/maps.py     reads them again and writes maps.json

No weights are made: the networks run on PyTorch's meta device.
"""

import json
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import torch

from se_fused import FusedSE, replace_se

FILE = Path(__file__).with_name("maps.json")
BATCH = 32
# Name, library, input of one sample, batch size of the benchmark.
NETWORKS = [
    ("seresnet50", "timm", (3, 224, 224), BATCH),
    ("efficientnet_b0", "timm", (3, 224, 224), BATCH),
    ("mobilenetv3_large_100", "timm", (3, 224, 224), BATCH),
    ("regnety_160", "timm", (3, 224, 224), BATCH),
    ("legacy_senet154", "timm", (3, 224, 224), BATCH),
    ("SEResNet50 3-D", "monai", (1, 64, 64, 64), 4),
]

REDUCTION = 16  # the paper's, where no network says another


class Map(NamedTuple):
    """One kind of SE block of a network: its map, its excitation, and how many blocks have it."""

    network: str
    shape: tuple[int, ...]
    hidden: int
    act: str
    gate: str
    blocks: int

    @property
    def size(self) -> str:
        return "×".join(map(str, self.shape))


def load(*networks: str) -> list[Map]:
    """The maps of these networks, or of all."""
    rows = [Map(**{**row, "shape": tuple(row["shape"])}) for row in json.loads(FILE.read_text())]
    return [row for row in rows if not networks or row.network in networks]


def read(name: str, library: str, sample: tuple[int, ...], batch: int) -> list[Map]:
    """Runs the network once on the meta device and looks at what enters its SE blocks."""
    with torch.device("meta"):
        if library == "timm":
            import timm

            network = timm.create_model(name)
        else:
            from monai.networks.nets import SEResNet50

            network = SEResNet50(spatial_dims=len(sample) - 1, in_channels=1, num_classes=2)
        images = torch.empty(batch, *sample)
    replace_se(network)
    found = Counter()

    def look(block, args):
        x = args[0]
        found_for = block.__se_fused__.specification(block, x)
        found[tuple(x.shape), found_for.w1.shape[0], found_for.act, found_for.gate] += 1

    for block in network.modules():
        if isinstance(block, FusedSE):
            block.register_forward_pre_hook(look)
    with torch.no_grad():
        network.eval()(images)
    return [Map(name, *kind, blocks) for kind, blocks in found.items()]


def main():
    rows = [row._asdict() for network in NETWORKS for row in read(*network)]
    FILE.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    print(f"{len(rows)} maps of {len(NETWORKS)} networks: {FILE}")


if __name__ == "__main__":
    main()
