"""benchmarks/train.py whose --compile has aot_eager run the graphs: Inductor takes minutes."""

import runpy
import sys
from pathlib import Path

import torch
from torch._inductor import compile_fx


def compiler(graph, example_inputs, **options):
    return torch._dynamo.lookup_backend("aot_eager")(graph, example_inputs)


if __name__ == "__main__":
    compile_fx.compile_fx = compiler
    benchmarks = Path(__file__).resolve().parents[2] / "benchmarks"
    sys.path.insert(0, str(benchmarks))
    runpy.run_path(str(benchmarks / "train.py"), run_name="__main__")
