"""A training step of whole networks on the CPU: as they are, with FusedSE, and without any SE.

    python benchmarks/network.py            the table, about 5 minutes
    python benchmarks/network.py --readme   and write it into README.md

Forward, loss and backward, in float32. The three copies of a network take turns, step by step, and
a figure is the ratio of their median times. "without SE" has the identity in place of each block:
the time above it is what SE costs.
"""

import argparse
import copy
import statistics

import torch
import torch.nn.functional as F
from models import SEResNet20, se_names
from report import machine, measured_on, write_json, write_readme
from timing import medians
from torch import nn

from se_fused import replace_se

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
# Name, batch size, image size.
NETWORKS = [
    ("seresnet50", 8, 224),
    ("efficientnet_b0", 8, 224),
    ("mobilenetv3_large_100", 8, 224),
    ("se_resnet20", 32, 32),
]


def copies(name: str) -> dict[str, nn.Module]:
    if name == "se_resnet20":
        eager = SEResNet20(10)
    else:
        import timm

        eager = timm.create_model(name, drop_rate=0.0)
    fused = copy.deepcopy(eager)
    if not replace_se(fused).replaced:
        raise RuntimeError(f"{name}: no SE module was replaced")
    without = copy.deepcopy(fused)
    for block in se_names(without):
        parent, _, child = block.rpartition(".")
        setattr(without.get_submodule(parent), child, nn.Identity())
    return {"eager": eager, "fused": fused, "without SE": without}


def measure(name, batch, size, layout, seconds) -> dict:
    """Median milliseconds of a training step of each copy."""
    torch.manual_seed(0)
    images = torch.randn(batch, 3, size, size).contiguous(memory_format=LAYOUTS[layout])
    labels = torch.arange(batch) % 10

    def step(network):
        network.zero_grad()
        F.cross_entropy(network(images), labels).backward()

    networks = {
        kind: network.train().to(memory_format=LAYOUTS[layout])
        for kind, network in copies(name).items()
    }
    calls = {kind: lambda network=network: step(network) for kind, network in networks.items()}
    return medians(calls, seconds)


def table(result) -> str:
    lines = [
        f"{measured_on(result)} Training step, float32, default malloc. SE tax: time with SE over "
        "time without.",
        "",
        "| network, batch | layout | eager / FusedSE | SE tax, eager | SE tax, FusedSE |",
        "|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        ms = row["ms"]
        cells = [
            f"{row['network']}, {row['batch']} × {row['size']}²",
            row["layout"],
            f"{ms['eager'] / ms['fused']:.2f}",
            f"{ms['eager'] / ms['without SE']:.2f}",
            f"{ms['fused'] / ms['without SE']:.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    speedups = [row["ms"]["eager"] / row["ms"]["fused"] for row in result["rows"]]
    lines.append(f"\nGeometric mean of the speed-ups: {statistics.geometric_mean(speedups):.2f}.")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--readme", action="store_true", help="write the table into README.md")
    parser.add_argument("--seconds", type=float, default=30, help="per row (default: %(default)s)")
    args = parser.parse_args()
    rows = []
    for name, batch, size in NETWORKS:
        for layout in LAYOUTS:
            ms = measure(name, batch, size, layout, args.seconds)
            rows.append(
                {"network": name, "batch": batch, "size": size, "layout": layout, "ms": ms}
            )
            print(name, layout, {kind: round(t, 1) for kind, t in ms.items()}, flush=True)
    result = {**machine(), "rows": rows}
    write_json(result, "cpu_networks.json")
    print(table(result))
    if args.readme:
        write_readme(table(result), "network table")


if __name__ == "__main__":
    main()
