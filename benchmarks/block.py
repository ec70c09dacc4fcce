"""One SE block on the CPU: FusedSE against eager PyTorch and torch.compile, by shape.

    python benchmarks/block.py                 the whole table, about 5 minutes
    python benchmarks/block.py --no-compile    without the compiled baseline, about 3 minutes
    python benchmarks/block.py --readme        and write the table into README.md

The sides take turns, call by call (tiny maps: 50 calls a turn); a figure is the ratio of their
median times. Every timed block is first compared with float64. Kernels are measured with a malloc
that keeps the memory it has freed (MALLOC below, for both sides); as users run it, glibc gives
large maps back to the system after each call, and the page faults of the next one are measured too.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys

import torch
from contenders import FunctionalSE
from maps import BLOCK_SHAPES, CACHED_SHAPES, REDUCTION, TINY_SHAPES
from models import SqueezeExcite
from report import machine, measured_on, write_json, write_readme
from timing import medians
from verification import Exact, copy_weights

from se_fused import FusedSE

MALLOC = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 34),
    "MALLOC_TOP_PAD_": str(1 << 26),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
LARGE = 50e6  # bytes of a map from which the default malloc is measured


def blocks(shape, dtype, compiled: bool):
    channels, hidden = shape[1], max(1, shape[1] // REDUCTION)
    found = {
        "fused": FusedSE(channels, rd_channels=hidden),
        "eager": SqueezeExcite(channels, hidden),
    }
    if compiled:
        found["compiled"] = FunctionalSE(channels, hidden)
    for block in found.values():
        copy_weights(block, found["fused"])
        block.to(dtype)
    if compiled:
        torch._dynamo.reset()
        found["compiled"] = torch.compile(found["compiled"], fullgraph=True, dynamic=False)
    return found


def make_inputs(shape, dtype, layout):
    x, dy = (
        torch.randn(shape).to(dtype).contiguous(memory_format=LAYOUTS[layout]) for _ in range(2)
    )
    return x.requires_grad_(), dy


def forward(block, x):
    def call():
        with torch.no_grad():
            block(x)

    return call


def forward_backward(block, x, dy):
    wanted = [x, *block.parameters()]
    return lambda: torch.autograd.grad(block(x), wanted, dy)


def measure(shape, dtype, layout, compiled) -> dict:
    """Median milliseconds, {"forward": {name: ms}, "forward+backward": {name: ms}}."""
    x, dy = make_inputs(shape, DTYPES[dtype], layout)
    named = blocks(shape, DTYPES[dtype], compiled)
    fused = named["fused"]
    exact = Exact(FunctionalSE(x.shape[1], fused.fc1.out_channels), fused, x, dy)
    for name, block in named.items():
        exact.judge(block, arithmetic=None if name == "fused" else x.dtype)
    calls = {
        "forward": {name: forward(block, x) for name, block in named.items()},
        "forward+backward": {name: forward_backward(block, x, dy) for name, block in named.items()},
    }
    in_a_row = 50 if shape in TINY_SHAPES else 1
    return {kind: medians(named, in_a_row=in_a_row) for kind, named in calls.items()}


def fp16_against_bf16() -> list[dict]:
    """FusedSE's forward in both 16-bit dtypes."""
    rows = []
    for layout in LAYOUTS:
        for shape in BLOCK_SHAPES:
            calls = {}
            for name, dtype in {"fp16": torch.float16, "bf16": torch.bfloat16}.items():
                x, _ = make_inputs(shape, dtype, layout)
                calls[name] = forward(blocks(shape, dtype, False)["fused"], x)
            rows.append({"shape": shape, "layout": layout, "forward": medians(calls)})
    return rows


def one_against_all_threads() -> list[dict]:
    """FusedSE's forward on maps that stay in cache, on one thread and on all."""
    threads = torch.get_num_threads()
    rows = []
    for layout in LAYOUTS:
        for shape in CACHED_SHAPES:
            x, _ = make_inputs(shape, torch.float32, layout)
            call = forward(blocks(shape, torch.float32, False)["fused"], x)

            def with_threads(count, call=call):
                torch.set_num_threads(count)
                call()

            times = medians(
                {"one": lambda run=with_threads: run(1),
                 "all": lambda run=with_threads: run(threads)}
            )
            rows.append({"shape": shape, "layout": layout, "forward": times})
    return rows


def collect(args, least_bytes) -> list[dict]:
    rows = []
    for dtype in DTYPES:
        for layout in LAYOUTS:
            for shape in BLOCK_SHAPES + TINY_SHAPES * (dtype == "fp32"):
                if math.prod(shape) * DTYPES[dtype].itemsize < least_bytes:
                    continue
                times = measure(shape, dtype, layout, args.compile)
                rows.append({"shape": shape, "dtype": dtype, "layout": layout, **times})
                print(describe(rows[-1]), file=sys.stderr, flush=True)
    return rows


def describe(row) -> str:
    parts = [f"{row['dtype']} {row['layout']:13} {str(tuple(row['shape'])):18}"]
    for kind in ("forward", "forward+backward"):
        times = row[kind]
        parts.append(f"{kind} {times['fused']:8.3f} ms")
        parts += [f"{ratio(row, kind, name):.2f}× {name}" for name in times if name != "fused"]
    return "  ".join(parts)


def ratio(row, kind, name) -> float:
    return row[kind][name] / row[kind]["fused"]


def table(result) -> str:
    lines = [
        f"{measured_on(result)} Times of the baseline over FusedSE's: geometric mean over seven "
        "maps (lowest), reduction 16.",
        "",
        "| block | eager, forward | eager, forward + backward | compiled, forward "
        "| compiled, forward + backward |",
        "|---|---|---|---|---|",
    ]
    tiny = [list(shape) for shape in TINY_SHAPES]

    def line(label, rows):
        cells = [label]
        for name in ("eager", "compiled"):
            for kind in ("forward", "forward+backward"):
                ratios = [ratio(row, kind, name) for row in rows if name in row[kind]]
                mean = statistics.geometric_mean(ratios) if ratios else math.nan
                cells.append(f"{mean:.2f} ({min(ratios):.2f})" if ratios else "–")
        lines.append("| " + " | ".join(cells) + " |")

    for dtype in DTYPES:
        for layout in LAYOUTS:
            rows = [r for r in result["kernels"] if (r["dtype"], r["layout"]) == (dtype, layout)]
            line(f"{dtype}, {layout}", [r for r in rows if list(r["shape"]) not in tiny])
    for dtype in DTYPES:
        rows = [r for r in result["default_malloc"] if r["dtype"] == dtype]
        if rows:
            line(f"{dtype}, both layouts, maps from 50 MB, default malloc", rows)
    rows = [r for r in result["kernels"] if list(r["shape"]) in tiny]
    line("fp32, maps of (1, 64, 7, 7) and (2, 128, 4, 4)", rows)

    def spread(rows, above, below):
        ratios = [row["forward"][above] / row["forward"][below] for row in rows]
        return f"{statistics.geometric_mean(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"

    lines += [
        "",
        "FusedSE's own forward times, geometric mean (range): fp16 over bf16 "
        f"{spread(result['fp16'], 'fp16', 'bf16')}; one thread over {result['threads']}, on fp32 "
        f"maps that stay in cache, {spread(result['scaling'], 'one', 'all')}.",
    ]
    return "\n".join(lines)


# What a process of its own measures, in the malloc that it was started with.
PARTS = {
    "kernels": lambda args: collect(args, least_bytes=0),
    "default_malloc": lambda args: collect(args, least_bytes=LARGE),
    "fp16": lambda args: fp16_against_bf16(),
    "scaling": lambda args: one_against_all_threads(),
}


def run_child(args, part, **environment) -> list[dict]:
    command = [sys.executable, __file__, "--part", part]
    if not args.compile:
        command.append("--no-compile")
    run = subprocess.run(
        command, env={**os.environ, **environment}, stdout=subprocess.PIPE, check=True
    )
    return json.loads(run.stdout)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    parser.add_argument("--readme", action="store_true", help="write the table into README.md")
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        print(json.dumps(PARTS[args.part](args)))
        return
    result = {
        **machine(),
        "kernels": run_child(args, "kernels", **MALLOC),
        "default_malloc": run_child(args, "default_malloc"),
        "fp16": run_child(args, "fp16", **MALLOC),
        "scaling": run_child(args, "scaling", **MALLOC),
    }
    source = write_json(result, "cpu.json")
    print(table(result))
    if args.readme:
        write_readme(table(result), "block table", source)


if __name__ == "__main__":
    main()
