"""Passes over the feature map and launches of one SE block: plain PyTorch, compiled, and FusedSE.

    python benchmarks/count_traffic.py            the tables, five minutes, no GPU needed
    python benchmarks/count_traffic.py --readme   and write them into README.md, with the bounds

And of the end of a block with SE in it: tail_traffic.py. How each is counted: counting.py. The
bounds: bounds.py. Nothing here is a measured time.
"""

import argparse
import os
import sys
from functools import partial

import torch
from lib.maps import REDUCTION
from report import write_json, write_readme
from traffic import bounds, counting, tail_traffic
from traffic.counting import COMPILED, DIRECTIONS, LAYOUTS

# (N, C, H, W) and hidden width: small, as the interpreter takes seconds for 100,000 elements. In
# the last the weights are large against the samples: the excitation runs between the launches.
SIZES = [((2, 16, 56, 56), 4), ((2, 64, 14, 14), 4), ((2, 72, 7, 7), 8), ((2, 24, 7, 7), 264)]
REAL_SIZES = [(bounds.MAP, bounds.MAP[1] // REDUCTION)]


def collect() -> dict:
    import triton

    def rows(label, count, sizes):
        return [
            {"block": label, "shape": list(shape), "hidden": hidden, "layout": layout}
            | count(shape, hidden, layout)
            for shape, hidden in sizes
            for layout in LAYOUTS
        ]

    found = rows(bounds.PLAIN, counting.count_eager, SIZES)
    for label, block in COMPILED.items():
        found += rows(label, partial(counting.count_compiled, block), SIZES + REAL_SIZES)
    found += rows(bounds.FUSED, counting.count_fused, SIZES)
    versions = {"torch": torch.__version__, "triton": triton.__version__}
    return {**versions, "rows": found, "tails": tail_traffic.collect()}


def table(result) -> str:
    groups = {}
    for row in result["rows"]:
        layouts = groups.setdefault((label(row), *cells(row)), {}).setdefault(size(row), [])
        layouts.append(row["layout"])
    lines = [
        "Counted, not measured: passes over the feature map, one read or one write of all of it, "
        "and launches of one SE block, in float32, the same for contiguous and channels_last "
        "unless a row names one. Plain PyTorch by the operators it dispatches; compiled "
        "(`torch.compile`) by the loop nests of the C++ that Inductor generates for the CPU, and "
        "the operators that it leaves to PyTorch; FusedSE by the bytes that its Triton kernels ask "
        "for in Triton's interpreter, on the maps named here "
        f"(torch {result['torch']}, triton {result['triton']}).",
        "",
        "| block | passes forward | passes backward | launches forward | launches backward |",
        "|---|---|---|---|---|",
    ]
    for (name, *counts), sizes in groups.items():
        (layouts,) = {tuple(layouts) for layouts in sizes.values()}
        if set(layouts) != set(LAYOUTS):
            name = f"{name}, {', '.join(layouts)}"
        lines.append("| " + " | ".join([f"{name}: {', '.join(sizes)}", *counts]) + " |")
    lines += [
        "",
        "Inductor computes the convolutions of a contiguous map in channels_last on the CPU, and "
        "copies the map for it. PyTorch's launches in FusedSE: zeroed counters of finished "
        "programs, or the excitation; backward also the weights' gradients. Beside the map the "
        "Triton kernels ask for small tensors (sums, gates; in the first launch the weights, for "
        "each sample), in passes, forward and backward together: "
        f"{beside(result['rows'])}.",
    ]
    return "\n".join(lines)


def label(row) -> str:
    if row["block"] != bounds.FUSED:
        return row["block"]
    between = "linear" in row["forward"]["operators"]
    return f"FusedSE, excitation {'between the launches' if between else 'in the first launch'}"


def cells(row) -> list[str]:
    passes = [f"{row[direction]['passes']:g}" for direction in DIRECTIONS]
    launches = []
    for direction in DIRECTIONS:
        found = row[direction]
        kernels = {"Triton": found.get("kernels", []), "Inductor": found.get("generated", [])}
        counted = [f"{len(which)} {name} + " for name, which in kernels.items() if which]
        launches.append("".join(counted) + f"{len(found['operators'])} PyTorch")
    return passes + launches


def size(row) -> str:
    return " × ".join(map(str, row["shape"]))


def beside(rows) -> str:
    largest = {}
    for row in rows:
        if row["block"] == bounds.FUSED:
            share = sum(row[direction]["beside"] for direction in DIRECTIONS)
            largest[size(row)] = max(share, largest.get(size(row), 0))
    return ", ".join(f"{share:.2f} at {name}" for name, share in largest.items())


TABLES = {
    "pass table": table,
    "bound table": bounds.table,
    "tail pass table": tail_traffic.table,
    "tail bound table": bounds.tail_table,
}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--readme", action="store_true", help="write the tables into README.md")
    args = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") != "1":  # Triton reads it when it is imported
        os.environ["TRITON_INTERPRET"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.argv])
    result = collect()
    source = write_json(result, "traffic.json")
    for name, make in TABLES.items():
        print(make(result), end="\n\n")
        if args.readme:
            write_readme(make(result), name, source)


if __name__ == "__main__":
    main()
