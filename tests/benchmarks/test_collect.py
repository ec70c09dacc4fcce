"""From pytest-benchmark's JSON to results/<device>.json: `benchmarks/collect.py`."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import collect
import pytest
import report
import result_rows
import torch
from lib import devices
from lib import results as results_file
from lib.errors import RequestError
from result_rows import DEVICE, GPU, block_row, network_row, of_pytest, tail_row

from se_fused import backends

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def write(tmp_path):
    """Writes a dict as JSON, or a text as it is, and returns the path."""

    def write(name, content):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    return write


@pytest.mark.parametrize("kind, name, capability, expected", [
    ("cpu", "AMD EPYC", "avx2", "cpu-amd-epyc-avx2.json"),
    ("cpu", "AMD EPYC 7B13 64-Core Processor", "avx2", "cpu-amd-epyc-7b13-avx2.json"),
    ("cpu", "Intel(R) Xeon(R) Gold 6248 CPU @ 2.50GHz", None, "cpu-intel-xeon-gold-6248.json"),
    ("cpu", "", None, "cpu-unknown.json"),
    ("cuda", "NVIDIA H200", "9.0", "nvidia-h200.json"),
    ("cuda", "NVIDIA GeForce RTX 4090", "8.9", "nvidia-geforce-rtx-4090.json"),
])
def test_file_is_named_after_the_device(kind, name, capability, expected):
    assert devices.file_name({"kind": kind, "name": name, "capability": capability}) == expected


def test_main_writes_the_rows_of_all_files(write, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "ROOT", tmp_path)
    block = block_row(0.123456789, 2.0)
    files = [
        write("block.json", of_pytest([block], malloc="keeps freed memory")),
        write("network.json", of_pytest([network_row({"eager": 20.0, "fused": 10.0})])),
        write("tail.json", of_pytest([tail_row({"eager": 2.0, "fused": 1.0})])),
    ]
    collect.main(files)
    path = tmp_path / "benchmarks" / "results" / "cpu-amd-epyc-avx512.json"
    assert capsys.readouterr().out == f"{path}\n"
    found = results_file.load(path)
    assert found["device"] == DEVICE
    assert found["malloc"] == {
        "block": "keeps freed memory", "network": "default", "tail": "default"
    }
    assert (found["commit"], found["dirty"]) == ("25166a53a9", False)
    assert found["date"] == "2026-01-02T03:04:05+00:00"
    assert found["block"][0]["fused_ms"]["median"] == 0.123457
    assert found["block"][0]["shape"] == [2, 3, 4, 5]
    assert found["network"][0]["images_per_second"] == {"eager": 1600.0, "fused": 3200.0}
    assert found["tail"][0]["ms"]["eager"]["median"] == 2.0


def test_file_of_before_the_tails_has_none(write):
    result = result_rows.result(result_rows.two_maps())
    del result["tail"]
    assert results_file.load(write("old.json", result))["tail"] == []


def test_ends_of_blocks_that_differ_are_two_rows(write):
    rows = [tail_row({"fused": 1.0}), tail_row({"fused": 1.0}, tail="BN + SiLU + SE")]
    assert len(collect.collect([write("both.json", of_pytest(rows))])["tail"]) == 2
    with pytest.raises(RequestError, match="test_1 is in .*twice.json too"):
        collect.collect([write("twice.json", of_pytest(rows[:1] * 2))])


def test_a_row_is_a_line_of_the_file():
    result = result_rows.result(result_rows.two_maps())
    text = results_file.dumps(result)
    assert json.loads(text) == result
    assert sum('"contender"' in line for line in text.splitlines()) == 4


@pytest.mark.parametrize("second, message", [
    (of_pytest([block_row(1.0, 2.0)]), "test_0 is in .*first.json too"),
    (of_pytest([block_row(1.0, 2.0, dtype="bf16")], device=GPU),
     "device differs: .*'AMD EPYC'.*second.json: .*'NVIDIA H200'"),
    (of_pytest([block_row(1.0, 2.0, dtype="bf16")], malloc="keeps freed memory"),
     "malloc of the block rows differs: .*first.json: default, .*second.json: keeps freed memory"),
    (of_pytest([block_row(1.0, 2.0, dtype="bf16")], commit_info={"id": "other"}),
     "commit differs: .*first.json: 25166a53a9, .*second.json: other"),
    (of_pytest([]), "second.json: no benchmarks in it"),
    (of_pytest([{"seconds": 1}]), "second.json: test_0 is neither of bench_block.py nor"),
    (of_pytest([block_row(1.0, 2.0)], machine_info={}), "second.json: .* has no se_fused"),
    (result_rows.result(), "second.json: no machine_info, .*not written by pytest-benchmark"),
    ("[1", "second.json: not JSON"),
    ("[1]", "second.json: a list, not an object"),
], ids="twice device malloc commit empty other-test no-facts results-file text list".split())
def test_files_that_do_not_go_together_are_refused(write, second, message):
    files = [write("first.json", of_pytest([block_row(1.0, 2.0)])), write("second.json", second)]
    with pytest.raises(RequestError, match=message):
        collect.collect(files)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(SystemExit, match=r"nowhere.json: No such file or directory"):
        collect.main([str(tmp_path / "nowhere.json")])


def test_maps_that_differ_in_hidden_width_are_two_rows(write):
    rows = [block_row(1.0, 2.0), block_row(1.0, 2.0, hidden=3)]
    assert len(collect.collect([write("both.json", of_pytest(rows))])["block"]) == 2


needs_extension = pytest.mark.skipif(
    backends.why_not("cpp", torch.device("cpu")) is not None,
    reason="without the extension no backend is measured on a CPU; the tests above cover the rest",
)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """What collect.py makes of a block and an end of a block, measured in one run of
    pytest-benchmark, with the malloc that keeps freed memory."""
    python, file = [sys.executable], tmp_path_factory.mktemp("measured") / "both.json"
    block = "mobilenetv3 and bf16-contiguous-functional and not backward"
    tail = "test_tail and 2048 and fp32-contiguous"
    command = [
        *python, "benchmarks/malloc.py", *python, "-m", "pytest", "-q", "-p", "no:cacheprovider",
        "--bench-device", "cpu", "--benchmark-quiet", f"--benchmark-json={file}",
        "benchmarks/bench_block.py", "benchmarks/bench_tail.py",
        "-k", f"cpp and (({block}) or ({tail}))",
    ]
    # Undisturbed by a compiler: what is timed does not matter here.
    # Nothing is timed in a worker of pytest-xdist, as which this process may run.
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")}
    environment = {**inherited, "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return collect.collect([file])


@pytest.mark.thorough
@needs_extension
def test_a_measured_row_says_what_measured_it(measured):
    assert measured["device"] == {**devices.facts(torch.device("cpu")), "threads": 1}
    is_glibc = platform.libc_ver()[0] == "glibc"
    malloc = "keeps freed memory" if is_glibc else "default"
    assert measured["malloc"] == {"block": malloc, "tail": malloc}
    (row,) = measured["block"]
    assert (row["shape"], row["dtype"], row["backend"]) == ([32, 960, 7, 7], "bf16", "cpp")
    assert 0 < row["fused_ms"]["q1"] <= row["fused_ms"]["median"] <= row["fused_ms"]["q3"]


@pytest.mark.thorough
@needs_extension
def test_a_measured_end_of_a_block_has_all_sides(measured):
    (row,) = measured["tail"]
    assert (row["tail"], row["shape"]) == ("BN + SE + add + ReLU", [32, 2048, 7, 7])
    assert list(row["ms"]) == ["eager", "without SE", "swapped", "fused"]
    assert all(0 < of["q1"] <= of["median"] <= of["q3"] for of in row["ms"].values())
