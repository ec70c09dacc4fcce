"""One SE block on the CPU: FusedSE against eager PyTorch and torch.compile, by shape.

    python benchmarks/block.py                 the whole table, about 8 minutes
    python benchmarks/block.py --no-compile    without the compiled baseline, about 4 minutes
    python benchmarks/block.py --readme        and write the table into README.md

The two sides take turns, call by call; a figure is the ratio of their median times. Every timed
block is first compared with float64. Kernels are measured with a malloc that keeps the memory it
has freed (MALLOC below, for both sides); as users run it, glibc gives large maps back to the system
after each call, and the page faults of the next one are part of the time.
"""

import argparse
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from models import SqueezeExcite
from shapes import BLOCK_SHAPES, REDUCTION, TINY_SHAPES

from se_fused import FusedSE, ops

MALLOC = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 34),
    "MALLOC_TOP_PAD_": str(1 << 26),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
LARGE = 50e6  # bytes of a map from which the default malloc is measured
ROOT = Path(__file__).resolve().parents[1]
SECONDS, FEWEST, MOST = 1.5, 7, 200


class FunctionalSE(SqueezeExcite):
    """The block as one writes it for torch.compile."""

    def forward(self, x):
        z = x.mean((2, 3))
        h = F.relu(F.linear(z, self.fc1.weight.flatten(1), self.fc1.bias))
        p = F.linear(h, self.fc2.weight.flatten(1), self.fc2.bias)
        return x * torch.sigmoid(p)[:, :, None, None]


def blocks(shape, dtype, compiled: bool):
    channels, hidden = shape[1], max(1, shape[1] // REDUCTION)
    found = {
        "fused": FusedSE(channels, rd_channels=hidden),
        "eager": SqueezeExcite(channels, hidden),
    }
    if compiled:
        found["compiled"] = FunctionalSE(channels, hidden)
    for block in found.values():
        block.load_state_dict(found["fused"].state_dict())
        block.to(dtype)
    if compiled:
        torch._dynamo.reset()
        found["compiled"] = torch.compile(found["compiled"], fullgraph=True, dynamic=False)
    return found


def verify(blocks, x, dy):
    """Each block against float64: no timing of a wrong result."""
    exact_block = FunctionalSE(x.shape[1], blocks["fused"].fc1.out_channels).double()
    weights = {name: w.double() for name, w in blocks["fused"].state_dict().items()}
    exact_block.load_state_dict(weights)
    exact_x = x.detach().double().requires_grad_()
    exact = exact_block(exact_x)
    (exact_dx,) = torch.autograd.grad(exact, exact_x, dy.double())
    for name, block in blocks.items():
        y = block(x)
        (dx,) = torch.autograd.grad(y, x, dy)
        for found, wanted in ((y, exact), (dx, exact_dx)):
            error = (found.double() - wanted).abs().max() / wanted.abs().max()
            limit = 16 * torch.finfo(x.dtype).eps
            assert error <= limit, f"{name} {tuple(x.shape)} {x.dtype}: error {error:.1e}"


def measure(shape, dtype, layout, compiled) -> dict:
    """Median milliseconds, {"forward": {name: ms}, "forward+backward": {name: ms}}."""
    x, dy = (
        torch.randn(shape).to(DTYPES[dtype]).contiguous(memory_format=LAYOUTS[layout])
        for _ in range(2)
    )
    x.requires_grad_()
    named = blocks(shape, DTYPES[dtype], compiled)
    verify(named, x, dy)

    def forward(block):
        with torch.no_grad():
            block(x)

    def forward_backward(block):
        torch.autograd.grad(block(x), [x, *block.parameters()], dy)

    return {
        "forward": medians(named, forward),
        "forward+backward": medians(named, forward_backward),
    }


def medians(named, call) -> dict:
    for block in named.values():
        for _ in range(2):
            call(block)
    times = {name: [] for name in named}
    end = time.perf_counter() + SECONDS
    for done in range(MOST):
        if done >= FEWEST and time.perf_counter() > end:
            break
        for name, block in named.items():
            begin = time.perf_counter()
            call(block)
            times[name].append(time.perf_counter() - begin)
    return {name: 1e3 * statistics.median(found) for name, found in times.items()}


def collect(args) -> list[dict]:
    """Rows of one process, in the malloc that this process was started with."""
    rows = []
    for dtype in DTYPES:
        for layout in LAYOUTS:
            for shape in BLOCK_SHAPES + TINY_SHAPES * (dtype == "fp32"):
                if args.only_large and math.prod(shape) * DTYPES[dtype].itemsize < LARGE:
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
        f"Measured on a CPU: {result['cpu']}, {result['threads']} threads, "
        f"torch {result['torch']}, kernels for {result['capability']}. Times of the baseline over "
        "FusedSE's: geometric mean over seven maps (lowest), reduction 16.",
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
    return "\n".join(lines)


def write_readme(text):
    path = ROOT / "README.md"
    begin, end = "<!-- block table -->", "<!-- end of block table -->"
    pattern = f"{re.escape(begin)}.*{re.escape(end)}"
    found, count = re.subn(
        pattern, lambda _: f"{begin}\n{text}\n{end}", path.read_text(), flags=re.DOTALL
    )
    assert count == 1, f"README.md: {begin} … {end} not found"
    path.write_text(found)


def cpu_name() -> str:
    try:
        return re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())[1]
    except (OSError, TypeError):
        return platform.processor() or platform.machine()


def run_child(args, *options, **environment) -> list[dict]:
    command = [sys.executable, __file__, "--rows", *options]
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
    parser.add_argument("--rows", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--only-large", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rows:
        print(json.dumps(collect(args)))
        return
    result = {
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "capability": ops.backends.load("cpp").cpu_capability(),
        "kernels": run_child(args, **MALLOC),
        "default_malloc": run_child(args, "--only-large"),
    }
    path = ROOT / "benchmarks" / "results" / "cpu.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))
    if args.readme:
        write_readme(table(result))


if __name__ == "__main__":
    main()
