"""Runs of benchmarks/train.py one after the other, each argument a list of its arguments in JSON.

With few test images, blocks timed no longer than they must be, and --compile by aot_eager.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch._inductor import compile_fx

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import train  # noqa: E402
from training import (
    data,  # noqa: E402
    se_time,  # noqa: E402
)


def compiler(graph, example_inputs, **options):
    return torch._dynamo.lookup_backend("aot_eager")(graph, example_inputs)


def few(load):
    def shortened(spec, image_size):
        images = load(spec, image_size)
        return images._replace(test=torch.utils.data.TensorDataset(*images.test[:8]))

    return shortened


if __name__ == "__main__":
    compile_fx.compile_fx = compiler
    data.load, se_time.SECONDS_PER_BLOCK = few(data.load), 0
    dist.init_process_group("gloo")
    dist.init_process_group = lambda backend: None  # the runs share it
    for arguments in sys.argv[1:]:
        sys.argv = ["train.py", *json.loads(arguments)]
        train.main()
        torch._dynamo.reset()
    dist.destroy_process_group()
