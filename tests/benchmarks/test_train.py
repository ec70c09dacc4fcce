"""benchmarks/train.py, run as users run it: what it writes, which data and models it takes."""

import functools
import importlib.util
import json
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SHORT = ("--device", "cpu", "--epochs", "1", "--steps", "2", "--batch-size", "4")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def needs(package):
    return pytest.mark.skipif(
        importlib.util.find_spec(package) is None, reason=f"{package} is not installed"
    )


def train(*arguments, launcher=(sys.executable,), **environment):
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [*launcher, str(ROOT / "benchmarks" / "train.py"), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )


def result_of(out, *arguments, **options):
    finished = train(*SHORT, "--out", out, *arguments, **options)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout, json.loads((out / "train.json").read_text())


def assert_sound(result, steps):
    """Both runs trained, from the same start, and everything that is compared was measured."""
    for run in result["runs"].values():
        assert len(run["losses"]) == steps
        assert all(math.isfinite(loss) and loss > 0 for loss in run["losses"])
        assert run["images_per_second"] > 0
        assert run["se_ms_per_step"] > 0
        assert run["peak_memory_bytes"] > 0
        assert 0 <= run["test_accuracy"] <= 1
    assert result["largest_loss_difference"] < 1e-4


@needs("sklearn")
def test_default_network_on_digits(tmp_path):
    stdout, result = result_of(tmp_path)
    assert_sound(result, steps=2)
    eager, fused = result["runs"]["eager"], result["runs"]["fused"]
    assert eager["losses"][0] == pytest.approx(fused["losses"][0], abs=1e-5)
    assert eager["losses"][0] != eager["losses"][1]
    blocks = result["se_blocks"]
    assert [block["shape"] for block in blocks] == (
        [[4, 16, 32, 32]] * 3 + [[4, 32, 16, 16]] * 3 + [[4, 64, 8, 8]] * 3
    )
    for name in ("eager", "fused"):
        total = sum(block[f"{name}_ms"] for block in blocks)
        assert result["runs"][name]["se_ms_per_step"] == pytest.approx(total)
    assert result["se_time_ratio"] == pytest.approx(
        eager["se_ms_per_step"] / fused["se_ms_per_step"]
    )
    for label in ("images/s", "inside the SE blocks", "peak memory", "test accuracy"):
        assert label in stdout
    if importlib.util.find_spec("matplotlib"):
        assert (tmp_path / "train.png").read_bytes().startswith(b"\x89PNG")
    else:
        assert "Plot: skipped" in stdout


@needs("sklearn")
def test_fused_blocks(tmp_path):
    stdout, result = result_of(tmp_path, "--fuse")
    assert_sound(result, steps=2)
    assert "9 SE modules fused, 0 left" in stdout
    assert "inside the blocks around SE" in stdout
    assert [block["name"] for block in result["se_blocks"]] == [f"blocks.{i}" for i in range(9)]


@needs("sklearn")
def test_fused_blocks_compiled_under_autocast_in_two_processes(tmp_path):
    stdout, result = result_of(
        tmp_path, "--fuse", "--compile", "--amp", "bf16", "--channels-last", launcher=TORCHRUN
    )
    assert stdout.count("9 SE modules fused, 0 left") == 1
    assert result["processes"] == 2
    for run in result["runs"].values():
        assert all(map(math.isfinite, run["losses"]))
    eps = torch.finfo(AMP_DTYPES["bf16"]).eps
    assert result["first_loss_difference"] < eps * result["runs"]["eager"]["losses"][0]


@needs("sklearn")
@needs("timm")
def test_timm_model_autocast_channels_last(tmp_path):
    _, result = result_of(
        tmp_path, "--model", "mobilenetv3_small_050", "--amp", "bf16", "--channels-last"
    )
    assert len(result["se_blocks"]) == 9
    for run in result["runs"].values():
        assert all(map(math.isfinite, run["losses"]))
    assert result["first_loss_difference"] < 0.05


@needs("sklearn")
@needs("torchvision")
def test_inserted_se(tmp_path):
    """The eager twin has plain SE of the same weights in the same places."""
    stdout, result = result_of(tmp_path, "--model", "se_googlenet")
    assert_sound(result, steps=2)
    assert "se_googlenet with 9 SE blocks" in stdout
    assert [block["name"] for block in result["se_blocks"]] == [
        f"inception{name}.se" for name in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")
    ]


def test_cifar10_folder(tmp_path):
    folder = tmp_path / "data" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        pixels = random.integers(0, 256, (4, 3072), dtype=np.uint8)
        batch = {b"data": pixels, b"labels": random.integers(0, 10, 4).tolist()}
        (folder / name).write_bytes(pickle.dumps(batch))
    stdout, result = result_of(tmp_path, "--data", f"cifar10:{tmp_path / 'data'}")
    assert_sound(result, steps=2)
    assert "20 training and 4 test images" in stdout


@needs("torchvision")
def test_imagefolder_with_torchvision_model(tmp_path):
    from PIL import Image

    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for label in ("cat", "dog"):
            folder = tmp_path / "data" / split / label
            folder.mkdir(parents=True)
            for i in range(4):
                pixels = random.integers(0, 256, (40, 36, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    stdout, result = result_of(
        tmp_path,
        *("--data", f"imagefolder:{tmp_path / 'data'}", "--image-size", "64"),
        *("--model", "regnet_y_400mf", "--lr", "1e-4"),
    )
    assert_sound(result, steps=2)
    assert "8 training and 8 test images" in stdout
    assert len(result["se_blocks"]) == 16


# Group norm: no sample depends on another, so that a batch may be split over processes.
SPLITTABLE = ("--model", "test_efficientnet_gn")
FLOAT32 = 1e-5
AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.fixture(scope="module")
def plain_losses(tmp_path_factory):
    """The losses of one process with eager SE, float32 and no compiler, by batch size."""

    @functools.cache
    def losses(batch_size):
        out = tmp_path_factory.mktemp("plain")
        _, result = result_of(out, *SPLITTABLE, "--batch-size", batch_size)
        assert_sound(result, steps=2)
        return result["runs"]["eager"]["losses"]

    return losses


@needs("sklearn")
@needs("timm")
@pytest.mark.parametrize("name, dtype", AMP_DTYPES.items(), ids=AMP_DTYPES)
def test_first_loss_under_autocast(tmp_path, plain_losses, name, dtype):
    _, result = result_of(tmp_path, *SPLITTABLE, "--batch-size", 8, "--amp", name)
    eps = torch.finfo(dtype).eps
    for run in result["runs"].values():
        assert all(map(math.isfinite, run["losses"]))
        # The second loss is the plain run's only where the first gradient did not overflow.
        assert run["losses"][0] == pytest.approx(plain_losses(8)[0], rel=eps)
        assert run["losses"][0] != plain_losses(8)[0], "not under autocast"
    assert result["first_loss_difference"] < eps * plain_losses(8)[0]


@needs("sklearn")
@needs("timm")
def test_two_processes_train_as_one(tmp_path, plain_losses):
    stdout, result = result_of(tmp_path, *SPLITTABLE, launcher=TORCHRUN)
    assert_sound(result, steps=2)
    for run in result["runs"].values():
        assert run["losses"] == pytest.approx(plain_losses(8), rel=FLOAT32)
    assert result["processes"] == 2
    assert stdout.count("inside the SE blocks") == 1


@needs("sklearn")
@needs("timm")
def test_two_processes_under_autocast(tmp_path):
    """As one process that sees both halves of the batch, under autocast too."""
    arguments = (*SPLITTABLE, "--amp", "bf16", "--channels-last")
    _, alone = result_of(tmp_path / "alone", *arguments, "--batch-size", 8)
    _, result = result_of(tmp_path / "two", *arguments, launcher=TORCHRUN)
    eps = torch.finfo(AMP_DTYPES["bf16"]).eps
    for name, run in result["runs"].items():
        assert all(map(math.isfinite, run["losses"]))
        first = alone["runs"][name]["losses"][0]
        assert run["losses"][0] == pytest.approx(first, rel=eps)
        assert result["first_loss_difference"] < eps * first
    assert (alone["processes"], result["processes"]) == (1, 2)


@needs("sklearn")
@needs("timm")
@pytest.mark.parametrize("processes", [1, 2], ids=["one-process", "two-processes"])
def test_compiled(tmp_path, plain_losses, processes):
    finished = train(
        *SHORT,
        *("--out", tmp_path, *SPLITTABLE, "--compile"),
        launcher=TORCHRUN if processes == 2 else (sys.executable,),
        TORCH_LOGS="graph_code,graph_breaks",
    )
    assert finished.returncode == 0, finished.stderr
    result = json.loads((tmp_path / "train.json").read_text())
    assert_sound(result, steps=2)
    for run in result["runs"].values():
        assert run["losses"] == pytest.approx(plain_losses(4 * processes), rel=FLOAT32)
    assert result["processes"] == processes
    graphs = finished.stderr
    assert "group_norm" in graphs, "the network was not compiled, at most its SE blocks"
    assert "torch.ops.se_fused" in graphs
    assert "Graph break" not in graphs


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        pytest.param(("--data", "cifar10:/no/such/folder"), "/no/such/folder", id="wrong-path"),
        pytest.param(("--data", f"cifar10:{ROOT}"), "data_batch_1", id="no-cifar10-there"),
        pytest.param(("--data", "mnist"), "mnist", id="unknown-data"),
        pytest.param(("--device", "abacus"), "abacus", id="unknown-device"),
        pytest.param(("--epochs", "0"), "--epochs", id="no-epochs"),
        pytest.param(
            ("--model", "resnet9000"), "resnet9000", id="unknown-model", marks=needs("sklearn")
        ),
        pytest.param(
            ("--model", "se_densenet121"),
            "blocks that se_fused knows",
            id="se-into-an-unknown-model",
            marks=[needs("sklearn"), needs("torchvision")],
        ),
        pytest.param(
            ("--model", "resnet18"),
            "no SE block",
            id="model-without-se",
            marks=[needs("sklearn"), needs("torchvision")],
        ),
    ],
)
def test_request_that_cannot_be_run_is_one_line(tmp_path, arguments, complaint):
    finished = train(*SHORT, "--out", tmp_path, *arguments)
    assert finished.returncode == 2
    assert len(finished.stderr.strip().splitlines()) == 1, finished.stderr
    assert complaint in finished.stderr
