"""From the lines of gpu.py to a results file, tables and the README; and what the tools say."""

import json

import pytest
import report
import result_rows
from gpu_stages import lines as gpu_lines
from gpu_stages import tables as gpu_tables
from gpu_stages import tools as gpu_tools
from lib import results as results_file
from lib import tables
from result_rows import DEVICE, GPU, block_row, cells, network_row, quartiles, tail_row

RUN = {"commit": "25166a53a9cc", "dirty": False, "date": "2026-01-02T03:04:05", "dry": False}
STANDS = ("Measured on NVIDIA H200 (GPU): capability 9.0, driver 570.1, torch 2.10.0, se_fused "
          "0.1.0, commit 25166a53a9, 2026-01-02.")  # fmt: skip


def on_gpu(row):
    times = {"fused": (0.09, 0.02), "this": (0.18, 0.05)}
    for who, (graph, launch) in times.items():
        row |= {f"{who}_graph_ms": quartiles(graph), f"{who}_launch_ms": quartiles(launch)}
    return row | {"dtype": "bf16", "backend": "triton", "fused_kernels": 2, "this_kernels": 9}


def variant(name, graph_ms):
    return {"of": "SE", "network": "seresnet50", "shape": [2, 3, 4, 5], "hidden": 2,
            "dtype": "bf16", "layout": "channels_last", "direction": "forward", "variant": name,
            "graph_ms": quartiles(graph_ms), "kernels": 2}  # fmt: skip


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes lines, after those that every run begins with; returns their path."""
    monkeypatch.setattr(report, "ROOT", tmp_path)

    def write(*rows, run=RUN, device=GPU):
        for section, row in (("run", run), ("device", device), *rows):
            gpu_lines.write(tmp_path, section, **row)
        return str(tmp_path / gpu_lines.NAME)

    return write


def smoke(kind, **result):
    return "smoke", {"backend": "triton", "kind": kind, "shape": [4, 64, 14, 14],
                     "layout": "contiguous", "dtype": "bf16", **result}  # fmt: skip


def all_rows():
    networks = {"eager": 20.0, "fused": 16.0, "fused blocks": 10.0, "without SE": 10.0}
    return [
        ("copy", {"bytes": 1 << 30, "gbs": 4123.4}),
        ("backends", {"backend": "cpp", "why_not": "no nvcc"}),
        smoke("SE", ok=False, error="nan"), smoke("SE", ok=True, used=0.25),
        smoke("tail", ok=True, used=0.5),
        ("block", on_gpu(block_row(9.0, 2.0))), ("block", on_gpu(block_row(0.1, 2.0))),
        ("tail", tail_row({"eager": 8.0, "fused": 2.0}, dtype="bf16", backend="triton")
         | {"graph_ms": {"eager": quartiles(6.0), "fused": quartiles(2.0)}}),
        ("network", network_row(networks, dtype="bf16 autocast", backend="triton")),
        ("variants", variant("2 warps", 0.05)), ("variants", variant("4 warps", 0.04)),
        ("ncu", {"kernel": "moments_kernel", "launch": 0, "read_bytes": 2e8, "write_bytes": 1e6,
                 "nanoseconds": 1e5}),
        ("tests", {"suite": "pytest", "passed": 590, "failed": 1, "skipped": 9,
                   "unreached": 0, "failures": ["a"]}),
        ("sanitizer", {"tool": "memcheck", "errors": 0, "kinds": []}),
    ]  # fmt: skip


def test_lines_become_a_results_file(write, tmp_path, capsys):
    report.main([write(*all_rows())])
    result = results_file.load(tmp_path / "benchmarks" / "results" / "nvidia-h200.json")
    assert result["device"] == GPU and result["commit"] == RUN["commit"]
    assert [row["fused_ms"]["median"] for row in result["block"]] == [0.1]  # the last line counts
    assert [row["ok"] for row in result["smoke"]] == [True, True]
    table = capsys.readouterr().out
    assert (f"{STANDS} 2 of 2 comparisons with float64 right (triton), 0.50 of the allowed error "
            "used. Not run: cpp, no nvcc. Tests: 590 passed, 1 failed, 9 skipped, 0 unreached. "
            "compute-sanitizer memcheck: 0 errors. PyTorch's copy of 1074 MB: 4123 GB/s.") in table
    assert ("Kernels of a call, forward / forward + backward: FusedSE (triton) 2 / –, timm 9 / –."
            ) in table
    assert [line[:8] for line in cells(table)] == [
        ["dtype, layout", "pass", "maps", "timm"],
        ["bf16, contiguous", "forward", "1", "2.00 (2.00)"],
        ["network, map, hidden", "dtype, layout", "timm", "FusedSE, µs", "GB/s", "share of copy"],
        ["seresnet50 2×3×4×5, 2", "bf16, contiguous", "2.00 / –", "100 / –", "30.0 / –",
         "75 % / –"],
        ["network, map, hidden", "dtype, layout", "pass", "FusedSE", "timm"],
        ["seresnet50 2×3×4×5, 2", "bf16, contiguous", "forward", "100 / 90.0 / 20.0",
         "200 / 180 / 50.0"],
        ["block", "network, map, hidden", "layout", "pass", "2 warps", "4 warps", "kernels"],
        ["SE", "seresnet50 2×3×4×5, 2", "channels_last", "forward", "50.0", "40.0", "2"],
        ["network, map, hidden", "dtype, layout", "eager", "fused, ms"],
        ["seresnet50 2×3×4×5, 2", "bf16, contiguous", "4.00", "2.00"],
        ["geometric mean (lowest)", "", "4.00 (4.00)", ""],
        ["network, batch", "layout", "images/s, untouched", "images/s, swapped", "images/s, fused",
         "swapped over untouched", "fused over untouched", "SE tax: untouched / swapped / fused"],
        ["se_resnet20, 32 × 32²", "contiguous", "1600", "2000", "3200", "1.25", "2.00",
         "2.00 / 1.60 / 1.00"],
        ["kernel", "MB read", "MB written", "µs", "GB/s"],
        ["moments_kernel", "200", "1.00", "100", "2010"],
    ]


def test_summary_has_the_most_wanted_numbers(write):
    summary = gpu_tables.summary(gpu_lines.collected(write(*all_rows())))
    assert ("2×3×4×5 contiguous, forward, triton: 90.0 µs, 33.3 GB/s, 83 % of a copy, launched in "
            "20.0 µs; timm 2.00×") in summary
    assert "BN + SE + add + ReLU 2×3×4×5: 2000 µs; eager 3.00×" in summary
    assert ("se_resnet20, 32 × 32², bf16 autocast, images/s: untouched 1600, swapped 2000, "
            "fused 3200, without SE 3200") in summary
    assert "Fastest number of warps, cases: 4 warps 1" in summary


@pytest.mark.parametrize("number", range(len(all_rows())))
def test_cut_run_shows_what_is_there(write, number, capsys):
    report.main([write(*all_rows()[: number + 1])])
    shown = capsys.readouterr().out
    assert STANDS in shown or number == 0
    assert ("33.3 GB/s" in gpu_tables.summary(gpu_lines.collected(write()))) == (number >= 5)


@pytest.mark.parametrize("rows, message", [
    ([], "no figures in it"),
    ([("tail", tail_row({"eager": 8.0})), ("network", network_row({"eager": 8.0}))],
     "no figures in it"),
], ids=["nothing", "nothing-of-ours"])
def test_run_without_figures_is_refused(write, rows, message):
    with pytest.raises(SystemExit, match=message):
        report.main([write(*rows)])


README = """<!-- bench table: benchmarks/results/cpu.json -->
of a CPU
<!-- end of bench table -->
<!-- gpu table -->
nothing yet
<!-- end of gpu table -->
"""


def test_readme_has_one_place_for_a_gpu(write, tmp_path):
    (tmp_path / "README.md").write_text(README)
    report.main([write(*all_rows()), "--readme"])
    path = "benchmarks/results/nvidia-h200.json"
    table = gpu_tables.table(json.loads((tmp_path / path).read_text()), folded=True)
    assert (tmp_path / "README.md").read_text() == README.replace(
        "<!-- gpu table -->\nnothing yet", f"<!-- gpu table: {path} -->\n{table}")


def test_dry_run_is_neither_kept_nor_shown_in_the_readme(write, tmp_path):
    (tmp_path / "README.md").write_text(README)
    file = write(*all_rows(), run={**RUN, "dry": True}, device=DEVICE)
    with pytest.raises(SystemExit, match="of a dry run"):
        report.main([file, "--readme"])
    report.main([file])
    assert (tmp_path / "cpu-amd-epyc-avx512.json").exists()
    assert not (tmp_path / "benchmarks").exists() and (tmp_path / "README.md").read_text() == README


def test_networks_of_several_dtypes_say_which():
    ms = {"eager": 2.0, "fused": 1.0}
    rows = [network_row(ms), network_row(ms, dtype="bf16 autocast")]
    table = tables.network(result_rows.result(network=rows))
    assert [line[:2] for line in cells(table)] == [
        ["network, batch", "dtype, layout"], ["se_resnet20, 32 × 32²", "fp32, contiguous"],
        ["se_resnet20, 32 × 32²", "bf16 autocast, contiguous"],
    ]
    assert "Training step: forward" in table


NCU = '''==PROF== Connected to process 41
==PROF== Profiling "moments_kernel" - 0: 0%....50%....100% - 1 pass
"ID","Process ID","Process Name","Host Name","Kernel Name","Context","Stream","Block Size",\
"Grid Size","Device","CC","Section Name","Metric Name","Metric Unit","Metric Value"
"0","41","python","h","moments_kernel","1","7","(128, 1, 1)","(9, 1, 1)","0","9.0","Command line \
profiler metrics","dram__bytes_read.sum","byte","205,520,896"
"0","41","python","h","moments_kernel","1","7","(128, 1, 1)","(9, 1, 1)","0","9.0","Command line \
profiler metrics","dram__bytes_write.sum","byte","1,024"
"0","41","python","h","moments_kernel","1","7","(128, 1, 1)","(9, 1, 1)","0","9.0","Command line \
profiler metrics","gpu__time_duration.sum","nsecond","52,000"
"1","41","python","h","void at::native::reduce_kernel<512, 1>(T3)","1","7","(1, 1, 1)",\
"(1, 1, 1)","0","9.0","Command line profiler metrics","dram__bytes_read.sum","byte","7"
"2","41","python","h","void se_fused::cuda::rescale_kernel<float, 4>(Map<float>, int)","1","7",\
"(1, 1, 1)","(1, 1, 1)","0","9.0","Command line profiler metrics","dram__bytes_read.sum","byte",\
"n/a"
'''


def test_ncu_s_csv():
    assert gpu_tools.ncu(NCU) == [
        {"kernel": "moments_kernel", "read_bytes": 205520896.0, "write_bytes": 1024.0,
         "nanoseconds": 52000.0, "launch": 0},
        {"kernel": "rescale_kernel", "read_bytes": None, "launch": 1},
    ]
    assert cells(gpu_tables.dram(gpu_tools.ncu(NCU)))[1:] == [
        ["moments_kernel", "206", "0.00102", "52.0", "3952"],
        ["rescale_kernel", "–", "–", "–", "–"],
    ]


def test_ncu_that_may_not_count_says_so():
    denied = "==PROF== x\n==ERROR== ERR_NVGPUCTRPERM - The user does not have permission\n"
    assert gpu_tools.ncu(denied) == [{"kernel": "none", "launch": 0, "note": denied[11:-1]}]
    assert gpu_tools.ncu("") == []


def test_junit():
    text = """<?xml version="1.0"?><testsuites><testsuite tests="4">
      <testcase classname="tests.a" name="test_x[1]"/>
      <testcase classname="tests.a" name="test_x[2]"><failure message="m">t</failure></testcase>
      <testcase classname="tests.b" name="test_y"><error message="m">t</error></testcase>
      <testcase classname="tests.b" name="test_z"><skipped message="m"/></testcase>
      <testcase classname="tests.b" name="test_z[2]"><skipped message="no time was left for it"/>
      </testcase>
    </testsuite></testsuites>"""
    assert gpu_tools.junit(text) == {
        "passed": 1, "failed": 2, "skipped": 1, "unreached": 1,
        "failures": ["tests.a::test_x[2]", "tests.b::test_y"],
    }


@pytest.mark.parametrize("text, errors, kinds", [
    ("========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 0 errors\n", 0, []),
    ("========= COMPUTE-SANITIZER\n========= Invalid __global__ read of size 16 bytes\n"
     "=========     at moments_kernel+0x10\n========= ERROR SUMMARY: 1 error\n", 1,
     ["Invalid __global__ read of size 16 bytes"]),
    ("========= COMPUTE-SANITIZER\n", None, []),
], ids=["none", "one", "cut"])
def test_summary_of_the_sanitizer(text, errors, kinds):
    assert gpu_tools.sanitizer(text) == {"errors": errors, "kinds": kinds}
