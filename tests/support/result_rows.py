"""Results files made by hand, with times that nobody measured; and what a table shows."""

import copy

DEVICE = {
    "name": "AMD EPYC", "kind": "cpu", "threads": 2, "torch": "2.10.0", "triton": None,
    "se_fused": "0.1.0", "driver": None, "capability": "avx512",
}
GPU = {**DEVICE, "name": "NVIDIA H200", "kind": "cuda", "driver": "570.1", "capability": "9.0"}


def quartiles(median, spread=0.1):
    return {
        "median": median, "q1": median * (1 - spread), "q3": median * (1 + spread), "rounds": 9
    }


def block_row(fused_ms, speedup, **changes):
    """N = 2, C = 3, M = 20, R = 2; a map of 1 MB and a copy of 40 GB/s."""
    row = {
        "network": "seresnet50", "shape": [2, 3, 4, 5], "hidden": 2, "act": "relu",
        "gate": "sigmoid", "blocks": 3, "dtype": "fp32", "layout": "contiguous",
        "direction": "forward", "contender": "timm", "backend": "cpp", "threads": 2,
        "map_bytes": 1_000_000, "passes": {"eager": 3, "fused": 3}, "copy_gbs": 40.0,
        "this_ms": quartiles(fused_ms * speedup), "fused_ms": quartiles(fused_ms), **changes,
    }
    if row["direction"] != "forward":
        row["passes"] = {"eager": 13, "fused": 7}
    return row


def network_row(ms, **changes):
    row = {
        "network": "se_resnet20", "batch": 32, "size": 32, "layout": "contiguous",
        "dtype": "fp32", "backend": "cpp", "threads": 2, **changes,
    }
    row["ms"] = {kind: quartiles(time) for kind, time in ms.items()}
    row["images_per_second"] = {kind: 1e3 * row["batch"] / time for kind, time in ms.items()}
    row["peak_bytes"] = {kind: 3 * 2**20 for kind in ms}
    return row


def tail_row(ms, **changes):
    """The end of a block as bench_tail.py times it, {side: median milliseconds}."""
    row = {
        "tail": "BN + SE + add + ReLU", "network": "seresnet50", "shape": [2, 3, 4, 5], "hidden": 2,
        "dtype": "fp32", "layout": "contiguous", "backend": "cpp", "threads": 2, **changes,
    }
    row["ms"] = {side: quartiles(time) for side, time in ms.items()}
    return row


def result(block=(), network=(), device=DEVICE, tail=()):
    return {
        "device": dict(device),
        "malloc": {
            "block": "keeps freed memory", "network": "default", "tail": "keeps freed memory"
        },
        "commit": "25166a53a9cc656f6d9c76e25ebbcb362b61c2b8", "dirty": False,
        "date": "2026-01-02T03:04:05+00:00", "block": list(block), "network": list(network),
        "tail": list(tail),
    }


def two_maps():
    """Forward: 2 and 8 times the speed; the first map also with backward, and compiled."""
    return [
        block_row(0.1, 2.0),
        block_row(0.7, 3.0, direction="forward+backward"),
        block_row(0.1, 1.5, contender="functional, compiled"),
        block_row(0.2, 8.0, shape=[2, 6, 4, 5]),
    ]


def of_pytest(rows, device=DEVICE, malloc="default", **changes):
    """What pytest-benchmark would have written."""
    return {
        "machine_info": {"node": "x", "se_fused": {**device, "malloc": malloc}},
        "commit_info": {"id": "25166a53a9", "dirty": False},
        "benchmarks": [
            {"name": f"test_{i}", "extra_info": copy.deepcopy(row), "stats": {"data": [1.0]}}
            for i, row in enumerate(rows)
        ],
        "datetime": "2026-01-02T03:04:05+00:00",
        "version": "5.0",
        **changes,
    }


def cells(table: str) -> list[list[str]]:
    """The lines of Markdown tables, head and all, without rules."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [line for line in found if set(line[0]) != {"-"}]
