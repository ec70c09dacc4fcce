"""A run on a GPU, `benchmarks/gpu.py`: what a stage that fails leaves, and the exit status."""

import json
import sys
import time
from pathlib import Path

import gpu
import pytest
import torch
from gpu_stages import build as gpu_build
from gpu_stages import lines as gpu_lines
from gpu_stages import process as gpu_process
from gpu_stages import stage as gpu_stage
from gpu_stages import tables as gpu_tables
from gpu_stages.cases import chosen as chosen_cases
from gpu_stages.cases import evenly
from result_rows import DEVICE, GPU

from se_fused import backends
from se_fused.backends.triton import plan

COMPARISON = {"backend": "triton", "kind": "SE", "shape": [4, 64, 14, 14], "layout": "contiguous",
              "dtype": "bf16"}  # fmt: skip

LINE = (
    "import pathlib, os, subprocess, sys, time; from gpu_stages import lines as gpu_lines; "
    "folder = pathlib.Path(sys.argv[1]); "
)
SCRIPTS = {
    "device": f"{LINE}gpu_lines.write(folder, 'device', **{DEVICE}); "
              "gpu_lines.write(folder, 'copy', bytes=1, gbs=2.0); os.abort()",
    # It waits for a process of its own.
    "block": f"{LINE}"
             "child = subprocess.Popen(['sleep', '60']); "
             "(folder / 'child').write_text(str(child.pid)); "
             "gpu_lines.write(folder, 'errors', of='block', what='x', error='y'); time.sleep(60)",
    "tail": f"{LINE}gpu_lines.write(folder, 'backends', backend='cpp', why_not=None)",
}  # fmt: skip


@pytest.fixture
def scripts(monkeypatch):
    """The stages are these scripts."""

    def start(stage, folder, dry, log, seconds):
        command = [sys.executable, "-c", SCRIPTS[stage], str(folder)]
        return gpu_process.Process(command, {"PYTHONPATH": str(Path(gpu.__file__).parent)}, log)

    monkeypatch.setattr(gpu, "start", start)
    monkeypatch.setattr(gpu, "DRY_PATIENCE", 1)
    monkeypatch.setitem(gpu.STAGES, "block", 2)


def lines(folder) -> list[dict]:
    return gpu_lines.read(folder / gpu_lines.NAME)


def is_running(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().split()[2]
    except OSError:
        return False
    return state != "Z"


def test_next_stage_starts_after_one_that_crashes_or_hangs(scripts, tmp_path, capsys):
    assert gpu.main(["--dry", "--out", str(tmp_path), "--stages", "device,block,tail"]) == 1
    found = lines(tmp_path)
    ends = {line["stage"]: line["exit"] for line in found if line["section"] == "stages"}
    assert ends == {"device": -6, "block": "cut", "tail": 0}
    assert [line["section"] for line in found] == [
        "run", "device", "copy", "stages", "errors", "stages", "backends", "stages"
    ]
    time.sleep(0.1)
    assert not is_running(int((tmp_path / "child").read_text()))
    said = capsys.readouterr().out
    assert "device: exit status -6\nblock: exit status cut\nblock: x: y" in said
    assert "block: no figure\ntail: no figure" in said


def test_tool_is_asked_to_stop_and_then_writes_its_report(tmp_path):
    code = ("import sys, time\ntry:\n    print('begun', flush=True); time.sleep(60)\n"
            "except KeyboardInterrupt:\n    print('report')")
    for grace, said in ((5, "begun\nreport\n"), (0, "begun\n")):
        with (tmp_path / "log").open("w") as log:
            process = gpu_process.Process([sys.executable, "-c", code], {}, log)
            while not (tmp_path / "log").read_text():
                time.sleep(0.02)
            assert process.wait_until(time.monotonic(), grace) == "cut"
        assert (tmp_path / "log").read_text() == said


def test_nobody_is_left_when_it_is_told_to_end(scripts, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_process.subprocess.Popen, "wait", lambda *_: sys.exit("told to end"))
    with pytest.raises(SystemExit, match="told to end"):
        gpu.main(["--dry", "--out", str(tmp_path), "--stages", "block"])
    assert gpu_process.Process.started == []


def test_stage_for_which_no_time_is_left_is_not_begun(scripts, tmp_path):
    gpu.main(["--dry", "--out", str(tmp_path), "--stages", "tail", "--seconds", "1"])
    assert [line.get("exit") for line in lines(tmp_path)] == [None, "not begun"]


def test_tool_that_is_not_installed_is_named(scripts, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    gpu.timed_stage("ncu", None, tmp_path, dry=False, seconds=9)
    assert lines(tmp_path)[0]["note"] == lines(tmp_path)[1]["exit"] == "ncu is not installed"


@pytest.mark.parametrize("found, builds", [([""], False), (["no _C", ""], True)],
                         ids=["built", "missing"])
def test_extension_is_built_for_the_gpu_alone(monkeypatch, capsys, found, builds):
    commands, found = [], iter(found)
    monkeypatch.setattr(gpu_build, "why_not", lambda device: next(found))
    run = lambda *args, **how: commands.append((args, how))
    monkeypatch.setattr(gpu_build.subprocess, "run", run)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(sys, "argv", ["gpu_build.py"])
    gpu_build.main()
    assert capsys.readouterr().out == "gpu: the extension is built\n" and len(commands) == builds
    for (command,), how in commands:
        assert command[1:4] == ["setup.py", "build_ext", "--inplace"]
        assert how["env"]["TORCH_CUDA_ARCH_LIST"] == "9.0" and how["env"]["SE_FUSED_CUDA"] == "1"


def test_extension_that_does_not_load_has_a_reason():
    missing = backends.why_not("cpp", torch.device("cpu"))
    assert gpu_build.why_not("cpu") == (missing or "")
    assert "no xpu kernels" in gpu_build.why_not("xpu") or missing


@pytest.mark.parametrize("oks, planned, status", [
    ([True, True], 2, 0), ([True, False], 2, 1), ([True], 2, 1), ([], 0, 1),
], ids=["right", "wrong", "missing", "none"])
def test_on_a_gpu_the_exit_status_says_whether_it_is_right(tmp_path, capsys, oks, planned, status):
    gpu_lines.write(tmp_path, "run", commit="a", dirty=False, date="2026-01-02", dry=False)
    gpu_lines.write(tmp_path, "device", **GPU)
    gpu_lines.write(tmp_path, "planned", of="smoke", count=planned)
    gpu_lines.write(tmp_path, "planned", of="block", count=9)  # a speed may be missing
    for number, ok in enumerate(oks):
        gpu_lines.write(tmp_path, "smoke", **COMPARISON | {"kind": number, "ok": ok},
                        **({"used": 0.5} if ok else {"error": "nan"}))
    assert gpu._conclude(tmp_path, False, list(gpu.STAGES)) == status
    assert ("wrong: triton 1 [4, 64, 14, 14] contiguous: nan" in capsys.readouterr().out) == (
        oks == [True, False])


def test_dry_run_of_single_stages(tmp_path, capfd):
    assert gpu.main(["--dry", "--out", str(tmp_path), "--stages", "device,sanitizer"]) == 0
    found = gpu_lines.collected(tmp_path / gpu_lines.NAME)
    assert [row["bytes"] for row in found["copy"]] == [1 << 20, 51 << 10]
    assert all(row["gbs"] > 0 for row in found["copy"])
    assert [row["exit"] for row in found["stages"]] == [0, 0] and not found["errors"]
    assert found["device"]["kind"] == "cpu" and found["dry"]


def test_wrong_result_is_a_line_and_not_timed(tmp_path):
    stage = gpu_stage.Stage("block", tmp_path, dry=True)

    def wrong():
        raise AssertionError("error 3 times what rounding may leave")

    assert stage.attempt("7×7", wrong) is None
    assert lines(tmp_path)[-1] == {
        "section": "errors", "of": "block", "what": "7×7",
        "error": "AssertionError: error 3 times what rounding may leave",
    }


def test_a_graph_that_cannot_be_captured_leaves_the_other_times(tmp_path, monkeypatch):
    class Refused:
        def __init__(self, calls, device):
            raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(gpu_stage, "Graphed", Refused)
    stage = gpu_stage.Stage("block", tmp_path, dry=True)
    found = stage.measure({"a": gpu_stage.Side([lambda: None])})
    assert found["a"].keys() == {"launch_ms", "ms"}
    assert gpu_tables.graph_ms(found["a"]) == found["a"]["ms"]["median"]
    assert lines(tmp_path)[-1]["what"] == "a graph of a"


def test_warming_measures_and_writes_nothing(tmp_path):
    stage, ran = gpu_stage.Stage("block", tmp_path, dry=True, warming=True), []
    assert stage.measure({"a": gpu_stage.Side([lambda: ran.append(1)])}) == {}
    assert ran and not (tmp_path / gpu_lines.NAME).exists()


def test_sides_take_turns_each_in_its_context(tmp_path):
    stage, order = gpu_stage.Stage("block", tmp_path, dry=True), []
    calls = [lambda: order.append((plan.WARPS, backends.forced_backend()))] * 2
    found = stage.measure({
        str(warps): gpu_stage.Side(calls, lambda warps=warps: gpu_stage.chosen("eager", warps))
        for warps in (2, 8)
    })
    assert set(order) == {(2, "eager"), (8, "eager"), (4, None)}  # as graphs they have no context
    assert found["2"].keys() == {"ms", "graph_ms", "launch_ms", "kernels"}


def test_choice_is_undone():
    device = plan.Device(132, 60 << 20, 227 << 10)
    before = plan.WARPS, plan.excites_in_reduce
    with pytest.raises(KeyError), gpu_stage.chosen("eager", warps=8, inside=False):
        assert plan.WARPS == 8 and backends.backend_for(torch.device("cpu")) == "eager"
        assert plan.excites_in_reduce(1, 16, 1, 2, device) is False
        raise KeyError
    assert (plan.WARPS, plan.excites_in_reduce, backends.forced_backend()) == (*before, None)


class Item:
    """A case as pytest has it."""

    class Place:
        device, interpreted = "cuda", False

        def __init__(self, backend):
            self.backend = backend

    def __init__(self, test, backend, number):
        self.nodeid = f"{test}[{backend}-{number}]"
        self.callspec = type("", (), {"params": {"place": self.Place(backend)}})


def test_every_test_has_a_case_before_any_has_a_second():
    items = [Item(test, backend, number) for test, cases in (("a", 9), ("b", 2))
             for backend in ("triton", "cpp", "eager") for number in range(cases)]
    names = [item.nodeid for item in chosen_cases(items, "cuda", most=9)]
    assert names == ["a[triton-0]", "a[cpp-0]", "b[triton-0]", "b[cpp-0]", "a[triton-3]",
                     "a[cpp-3]", "b[triton-1]", "b[cpp-1]", "a[triton-5]"]
    assert chosen_cases(items, "cpu", most=9) == []
    assert evenly(list(range(10)), 4) == [0, 3, 6, 9]


def test_lines_of_the_last_commit_count_and_torn_ones_do_not(tmp_path):
    run = {"dirty": False, "date": "2026-01-02", "dry": False}
    path = tmp_path / gpu_lines.NAME
    gpu_lines.write(tmp_path, "run", commit="old", **run)
    gpu_lines.write(tmp_path, "copy", bytes=1, gbs=1.0)
    gpu_lines.write(tmp_path, "run", commit="new", **run)
    gpu_lines.write(tmp_path, "device", **GPU)
    with path.open("a") as file:
        file.write('{"section": "copy", "bytes": 2, "gb')
    gpu_lines.write(tmp_path, "copy", bytes=3, gbs=1.0)
    gpu_lines.write(tmp_path, "run", commit="new", **run)  # again, some of the stages
    gpu_lines.write(tmp_path, "copy", bytes=3, gbs=2.0)
    assert gpu_lines.collected(path)["copy"] == [{"bytes": 3, "gbs": 2.0}]
    assert len(path.read_text().splitlines()) == 8
    json.loads(path.read_text().splitlines()[-1])
