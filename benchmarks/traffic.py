"""Passes over the feature map and launches of one SE block, counted: plain PyTorch and FusedSE.

    python benchmarks/traffic.py            the table, half a minute, no GPU needed
    python benchmarks/traffic.py --readme   and write it into README.md

A pass is one read or one write of a whole map [N, C, H, W]. Nothing here is a time.

Plain PyTorch is counted by the operators that it dispatches: one that computes reads each map among
its arguments once and writes each map among its results once. Views and allocations move nothing.
Operands smaller than the map, also where they are expanded to its shape, don't count.

FusedSE's Triton kernels are counted by the bytes that their loads and stores ask for, in Triton's
interpreter (tests/byte_meter.py): those of tensors as large as the map, over the bytes of the map.

Launches are Triton's own and PyTorch's operators that compute. Which operators a device turns into
several kernels, or none, is not looked into.
"""

import argparse
import os
import sys
from pathlib import Path

import torch
from models import SqueezeExcite
from report import write_json, write_readme
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import se_fused
from se_fused import FusedSE, backends

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

# (N, C, H, W) and hidden width: small, as the interpreter takes seconds for 100,000 elements. In
# the last the weights are large against the samples: the excitation runs between the launches.
SIZES = [((2, 16, 56, 56), 4), ((2, 64, 14, 14), 4), ((2, 72, 7, 7), 8), ((2, 24, 7, 7), 264)]
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
DIRECTIONS = ("forward", "backward")
# What PyTorch dispatches beside views without computing anything.
NO_LAUNCH = ("empty", "empty_like", "empty_strided", "new_empty", "promote_types")


class Operators(TorchDispatchMode):
    """``names`` of the operators that compute, in order, and their ``passes`` over maps of a shape.

    Looks into the operators of se_fused as well, by calling their Triton functions itself.
    """

    def __init__(self, shape):
        super().__init__()
        self.shape, self.names, self.passes = torch.Size(shape), [], 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        name = operator.overloadpacket.__name__
        if operator.namespace == "se_fused":
            with self:
                return getattr(backends.load("triton"), name)(*args)
        result = operator(*args, **(kwargs or {}))
        if not operator.is_view and name not in NO_LAUNCH:
            self.names.append(name)
            self.passes += sum(map(self._is_map, tree_leaves((args, kwargs, result))))
        return result

    def _is_map(self, leaf) -> bool:
        return isinstance(leaf, Tensor) and leaf.shape == self.shape and 0 not in leaf.stride()


def steps(block, shape, layout):
    """The forward pass and, once that is done, the backward pass."""
    x = torch.randn(shape).contiguous(memory_format=LAYOUTS[layout]).requires_grad_()
    dy = torch.randn_like(x)
    results = []
    yield "forward", lambda: results.append(block(x))
    yield "backward", lambda: torch.autograd.grad(results, [x, *block.parameters()], dy)


def count_eager(shape, hidden, layout) -> dict:
    found = {}
    for direction, step in steps(SqueezeExcite(shape[1], hidden), shape, layout):
        with Operators(shape) as operators:
            step()
        found[direction] = {"passes": operators.passes, "operators": operators.names}
    return found


def count_fused(shape, hidden, layout) -> dict:
    """For a process that was started with TRITON_INTERPRET=1."""
    from byte_meter import Meter

    found = {}
    for direction, step in steps(FusedSE(shape[1], rd_channels=hidden), shape, layout):
        with se_fused.backend("triton"), Meter() as meter, Operators(shape) as operators:
            step()
        assert not meter.faults, meter.faults
        elements = torch.Size(shape).numel()
        maps = [o.tensor for o in meter.operands() if o.tensor.numel() == elements]
        of_maps, of_all = (meter.read(*tensors) + meter.written(*tensors) for tensors in (maps, ()))
        found[direction] = {
            "passes": of_maps / maps[0].nbytes + operators.passes,
            "beside": (of_all - of_maps) / maps[0].nbytes,
            "kernels": [launch.kernel for launch in meter.launches],
            "operators": operators.names,
        }
    return found


def collect() -> dict:
    import triton

    rows = [
        {"block": block, "shape": list(shape), "hidden": hidden, "layout": layout}
        | count(shape, hidden, layout)
        for block, count in (("plain PyTorch", count_eager), ("FusedSE", count_fused))
        for shape, hidden in SIZES
        for layout in LAYOUTS
    ]
    return {"torch": torch.__version__, "triton": triton.__version__, "rows": rows}


def table(result) -> str:
    groups = {}
    for row in result["rows"]:
        groups.setdefault((label(row), *cells(row)), {})[size(row)] = None
    assert len({name for name, *_ in groups}) == len(groups), "sizes or layouts differ"
    lines = [
        "Counted, not measured: passes over the feature map, one read or one write of all of it, "
        "and launches of one SE block, in float32, the same for contiguous and channels_last. "
        "Plain PyTorch by the operators it dispatches, FusedSE by the bytes that its Triton "
        "kernels ask for in Triton's interpreter, on the maps named here "
        f"(torch {result['torch']}, triton {result['triton']}).",
        "",
        "| block | passes forward | passes backward | launches forward | launches backward |",
        "|---|---|---|---|---|",
    ]
    for (name, *counts), sizes in groups.items():
        lines.append("| " + " | ".join([f"{name}: {', '.join(sizes)}", *counts]) + " |")
    lines += [
        "",
        "PyTorch's launches in FusedSE: zeroed counters of finished programs, or the excitation; "
        "backward also the weights' gradients. Beside the map the Triton kernels ask for small "
        "tensors (sums, gates; in the first launch the weights, for each sample), in passes, "
        f"forward and backward together: {beside(result['rows'])}.",
    ]
    return "\n".join(lines)


def label(row) -> str:
    if row["block"] != "FusedSE":
        return row["block"]
    between = "linear" in row["forward"]["operators"]
    return f"FusedSE, excitation {'between the launches' if between else 'in the first launch'}"


def cells(row) -> list[str]:
    passes = [f"{row[direction]['passes']:g}" for direction in DIRECTIONS]
    launches = []
    for direction in DIRECTIONS:
        kernels, operators = (row[direction].get(kind, []) for kind in ("kernels", "operators"))
        triton_first = f"{len(kernels)} Triton + " if kernels else ""
        launches.append(f"{triton_first}{len(operators)} PyTorch")
    return passes + launches


def size(row) -> str:
    return " × ".join(map(str, row["shape"]))


def beside(rows) -> str:
    largest = {}
    for row in rows:
        if row["block"] == "FusedSE":
            share = sum(row[direction]["beside"] for direction in DIRECTIONS)
            largest[size(row)] = max(share, largest.get(size(row), 0))
    return ", ".join(f"{share:.2f} at {name}" for name, share in largest.items())


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--readme", action="store_true", help="write the table into README.md")
    args = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") != "1":  # Triton reads it when it is imported
        os.environ["TRITON_INTERPRET"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.argv])
    result = collect()
    write_json(result, "traffic.json")
    print(table(result))
    if args.readme:
        write_readme(table(result), "pass table")


if __name__ == "__main__":
    main()
