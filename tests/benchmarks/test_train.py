"""benchmarks/train.py: what it writes, which data and models it takes, two processes, its errors.

Most runs are in this process, of a network with two SE blocks; the processes are real ones.
"""

import functools
import importlib.util
import json
import math
import os
import pickle
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import train
from lib.errors import RequestError
from torch.utils.data import TensorDataset
from training import data, se_time

ROOT = Path(__file__).resolve().parents[2]
SHORT = ("--device", "cpu", "--epochs", "1", "--steps", "2", "--batch-size", "4")
TWO_BLOCKS = ("--model", "test_efficientnet")
# Group norm: no sample depends on another, so that a batch may be split over processes.
SPLITTABLE = ("--model", "test_efficientnet_gn")
FLOAT32 = 1e-5
LOAD = data.load
AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def needs(package):
    return pytest.mark.skipif(
        importlib.util.find_spec(package) is None, reason=f"{package} is not installed"
    )


@pytest.fixture(scope="module")
def once():
    """For the whole module: no block is timed longer than it must, few test images."""
    def shortened(spec, image_size):
        images = LOAD(spec, image_size)
        if spec != "digits":
            return images
        return images._replace(test=TensorDataset(*images.test[:8]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "load", shortened)
        patch.setattr(se_time, "SECONDS_PER_BLOCK", 0)
        patch.setattr(torch.backends.cudnn, "deterministic", torch.backends.cudnn.deterministic)
        patch.delenv("WORLD_SIZE", raising=False)
        yield patch


@pytest.fixture
def result_of(once, tmp_path, capsys):
    """Trains in this process: what was printed, and what was written."""

    def run(*arguments):
        result = written(once, tmp_path, *arguments)
        return capsys.readouterr().out, result

    return run


def written(patch, out, *arguments) -> dict:
    patch.setattr(sys, "argv", ["train.py", *SHORT, "--out", str(out), *map(str, arguments)])
    train.main()
    return json.loads((out / "train.json").read_text())


@pytest.fixture
def few_images(monkeypatch):
    def load(spec, image_size):
        draw = lambda n: TensorDataset(torch.randn(n, 3, 32, 32), torch.arange(n) % 10)
        return data.Images(draw(16), draw(6), 10)

    monkeypatch.setattr(data, "load", load)


def assert_sound(result, steps=2):
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
def test_default_network_on_digits(result_of, tmp_path):
    stdout, result = result_of()
    assert_sound(result)
    assert "digits: 1438 training and 8 test images" in stdout
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


def test_fused_blocks(result_of, few_images):
    stdout, result = result_of("--fuse")
    assert_sound(result)
    assert "9 SE modules fused, 0 left" in stdout
    assert "inside the blocks around SE" in stdout
    assert [block["name"] for block in result["se_blocks"]] == [f"blocks.{i}" for i in range(9)]


@needs("timm")
def test_timm_model_autocast_channels_last(result_of, few_images):
    _, result = result_of(*TWO_BLOCKS, "--amp", "bf16", "--channels-last")
    assert len(result["se_blocks"]) == 2
    for run in result["runs"].values():
        assert all(map(math.isfinite, run["losses"]))
    assert result["first_loss_difference"] < 0.05


@needs("torchvision")
def test_inserted_se(result_of, few_images):
    """The eager twin has plain SE of the same weights in the same places."""
    stdout, result = result_of("--model", "se_googlenet")
    assert_sound(result)
    assert "se_googlenet with 9 SE blocks" in stdout
    assert [block["name"] for block in result["se_blocks"]] == [
        f"inception{name}.se" for name in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")
    ]


@needs("sklearn")
def test_digits():
    images = LOAD("digits", 0)
    pixels, labels = images.train.tensors
    assert pixels.shape == (1438, 3, 32, 32) and len(images.test) == 359
    assert images.num_classes == 10 and labels.unique().tolist() == list(range(10))
    std, mean = torch.std_mean(pixels)
    assert (mean.item(), std.item()) == (pytest.approx(0, abs=1e-5), pytest.approx(1, abs=1e-5))


def test_cifar10_folder(result_of, tmp_path):
    folder = tmp_path / "data" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        pixels = random.integers(0, 256, (4, 3072), dtype=np.uint8)
        batch = {b"data": pixels, b"labels": random.integers(0, 10, 4).tolist()}
        (folder / name).write_bytes(pickle.dumps(batch))
    stdout, result = result_of("--data", f"cifar10:{tmp_path / 'data'}")
    assert_sound(result)
    assert "20 training and 4 test images" in stdout


@needs("torchvision")
def test_imagefolder_with_torchvision_model(result_of, tmp_path):
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
        *("--data", f"imagefolder:{tmp_path / 'data'}", "--image-size", "64"),
        *("--model", "regnet_y_400mf", "--lr", "1e-4"),
    )
    assert_sound(result)
    assert "8 training and 8 test images" in stdout
    assert len(result["se_blocks"]) == 16


@pytest.fixture(scope="module")
def plain_losses(once, tmp_path_factory):
    """The losses of one process with eager SE, float32 and no compiler, by batch size."""

    @functools.cache
    def losses(batch_size):
        out = tmp_path_factory.mktemp("plain")
        result = written(once, out, *SPLITTABLE, "--batch-size", batch_size)
        assert_sound(result)
        return result["runs"]["eager"]["losses"]

    return losses


@needs("sklearn")
@needs("timm")
@pytest.mark.parametrize("name, dtype", AMP_DTYPES.items(), ids=AMP_DTYPES)
def test_first_loss_under_autocast(result_of, plain_losses, name, dtype):
    _, result = result_of(*SPLITTABLE, "--batch-size", 8, "--amp", name)
    eps = torch.finfo(dtype).eps
    for run in result["runs"].values():
        assert all(map(math.isfinite, run["losses"]))
        # The second loss is the plain run's only where the first gradient did not overflow.
        assert run["losses"][0] == pytest.approx(plain_losses(8)[0], rel=eps)
        assert run["losses"][0] != plain_losses(8)[0], "not under autocast"
    assert result["first_loss_difference"] < eps * plain_losses(8)[0]


@pytest.fixture
def graphs(monkeypatch, fresh_compiler):
    """The graphs that --compile hands to Inductor, in whose place aot_eager runs them."""
    from torch._inductor import compile_fx

    found = []

    def compiler(graph, example_inputs, **options):
        found.append(graph.print_readable(print_output=False))
        return torch._dynamo.lookup_backend("aot_eager")(graph, example_inputs)

    monkeypatch.setattr(compile_fx, "compile_fx", compiler)
    torch._dynamo.utils.counters.clear()
    return found


@pytest.mark.thorough
@needs("sklearn")
@needs("timm")
def test_compiled(result_of, plain_losses, graphs):
    expected = plain_losses(4)
    _, result = result_of(*SPLITTABLE, "--compile")
    assert_sound(result)
    for run in result["runs"].values():
        assert run["losses"] == pytest.approx(expected, rel=FLOAT32)
    whole = [graph for graph in graphs if "group_norm" in graph]
    assert len(whole) == 2, "the networks were not compiled, at most their SE blocks"
    assert "torch.ops.se_fused" in whole[1] and "torch.ops.se_fused" not in whole[0]
    assert not torch._dynamo.utils.counters["graph_break"]


# Two processes, as torchrun starts them.

COMPILED = (*SPLITTABLE, "--compile")
AUTOCAST = (*SPLITTABLE, "--amp", "bf16", "--channels-last")
FUSED = (*TWO_BLOCKS, "--fuse", "--compile", "--amp", "bf16", "--channels-last")


def in_two_processes(script, *arguments, **environment):
    """What the first process printed, and what both printed as errors."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    finished = subprocess.run(
        [sys.executable, *launcher, str(script), *arguments],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout, finished.stderr


def read(out) -> dict:
    result = json.loads((out / "train.json").read_text())
    assert result["processes"] == 2
    return result


def run_of_two_processes(out, *arguments, **environment):
    printed = in_two_processes(
        ROOT / "benchmarks" / "train.py", *SHORT, "--out", str(out), *arguments, **environment
    )
    return read(out), *printed


@needs("sklearn")
@needs("timm")
def test_two_processes_train_as_one(tmp_path, plain_losses):
    result, stdout, _ = run_of_two_processes(tmp_path, *SPLITTABLE)
    assert_sound(result)
    for run in result["runs"].values():
        assert run["losses"] == pytest.approx(plain_losses(8), rel=FLOAT32)
    assert stdout.count("inside the SE blocks") == 1


@pytest.fixture(scope="module")
def brief_runs(tmp_path_factory):
    """Results by arguments, of one pair of processes, and what they printed."""
    outs = {run: tmp_path_factory.mktemp("brief") for run in (COMPILED, AUTOCAST, FUSED)}
    printed = in_two_processes(
        Path(__file__).with_name("train_briefly.py"),
        *(json.dumps([*SHORT, "--out", str(out), *run]) for run, out in outs.items()),
        TORCH_LOGS="graph_code,graph_breaks",
    )
    return {run: read(out) for run, out in outs.items()}, *printed


@pytest.mark.thorough
@needs("sklearn")
@needs("timm")
def test_two_processes_under_autocast(result_of, brief_runs):
    """As one process that sees both halves of the batch, under autocast too."""
    _, alone = result_of(*AUTOCAST, "--batch-size", 8)
    result = brief_runs[0][AUTOCAST]
    eps = torch.finfo(AMP_DTYPES["bf16"]).eps
    for name, run in result["runs"].items():
        assert all(map(math.isfinite, run["losses"]))
        first = alone["runs"][name]["losses"][0]
        assert run["losses"][0] == pytest.approx(first, rel=eps)
        assert result["first_loss_difference"] < eps * first
    assert alone["processes"] == 1


def assert_compiled_as_one_process(result, log, plain_losses):
    assert_sound(result)
    for run in result["runs"].values():
        assert run["losses"] == pytest.approx(plain_losses(8), rel=FLOAT32)
    assert "group_norm" in log, "the network was not compiled, at most its SE blocks"
    assert "torch.ops.se_fused" in log
    assert "Graph break" not in log


@pytest.mark.thorough
@needs("sklearn")
@needs("timm")
def test_two_processes_compiled(brief_runs, plain_losses):
    results, _, log = brief_runs
    assert_compiled_as_one_process(results[COMPILED], log, plain_losses)


@pytest.mark.slow  # minutes; test_compile.py has what Inductor makes of our operators
@needs("sklearn")
@needs("timm")
def test_two_processes_compiled_by_inductor(tmp_path, plain_losses):
    result, _, log = run_of_two_processes(
        tmp_path, *COMPILED, TORCH_LOGS="graph_code,graph_breaks"
    )
    assert_compiled_as_one_process(result, log, plain_losses)


def assert_fused_under_autocast(result, stdout):
    assert stdout.count("2 SE modules fused, 0 left") == 1
    for run in result["runs"].values():
        assert all(map(math.isfinite, run["losses"]))
    eps = torch.finfo(AMP_DTYPES["bf16"]).eps
    assert result["first_loss_difference"] < eps * result["runs"]["eager"]["losses"][0]


@pytest.mark.thorough
@needs("sklearn")
@needs("timm")
def test_two_processes_of_fused_blocks_compiled_under_autocast(brief_runs):
    results, stdout, _ = brief_runs
    assert_fused_under_autocast(results[FUSED], stdout)


@pytest.mark.slow
@needs("sklearn")
@needs("timm")
def test_two_processes_of_fused_blocks_compiled_by_inductor(tmp_path):
    result, stdout, _ = run_of_two_processes(tmp_path, *FUSED)
    assert_fused_under_autocast(result, stdout)


ERRORS = {
    "wrong-path": (("--data", "cifar10:/no/such/folder"), "/no/such/folder"),
    "no-cifar10-there": (("--data", f"cifar10:{ROOT}"), "data_batch_1"),
    "unknown-data": (("--data", "mnist"), "mnist"),
    "unknown-device": (("--device", "abacus"), "abacus"),
    "no-epochs": (("--epochs", "0"), "--epochs"),
    "unknown-model": (("--model", "resnet9000"), "resnet9000"),
    "se-into-an-unknown-model": (("--model", "se_densenet121"), "blocks that se_fused knows"),
    "model-without-se": (("--model", "resnet18"), "no SE block"),
}


@pytest.mark.parametrize("arguments, complaint", ERRORS.values(), ids=ERRORS)
def test_errors(request, result_of, arguments, complaint):
    if arguments[0] == "--model":
        pytest.importorskip("torchvision", reason="not installed; other errors are caught alike")
        request.getfixturevalue("few_images")
    with pytest.raises(RequestError, match=complaint) as raised:
        result_of(*arguments)
    assert len(str(raised.value).splitlines()) == 1


def test_error_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train.py", "--epochs", "0"])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(train.__file__, run_name="__main__")
    assert capsys.readouterr().err == "train.py: argument --epochs: must be at least 1\n"
