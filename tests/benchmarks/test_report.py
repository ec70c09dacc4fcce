"""Tables and comparisons of results files: `benchmarks/report.py`."""

import json
import re
from pathlib import Path

import pytest
import report
import result_rows
from lib import comparison, tables, tail_table
from lib import results as results_file
from lib.errors import RequestError
from result_rows import GPU, block_row, cells, network_row, quartiles, tail_row, two_maps

NETWORK = {"eager": 20.0, "fused": 16.0, "without SE": 10.0}


def stored(tmp_path, name, **content) -> str:
    path = tmp_path / name
    path.write_text(results_file.dumps(result_rows.result(**content)))
    return str(path)


def test_means_are_geometric_with_the_lowest():
    assert cells(tables.means(two_maps())) == [
        ["dtype, layout", "pass", "maps", "timm", "functional, compiled"],
        ["fp32, contiguous", "forward", "2", "4.00 (2.00)", "1.50 (1.50)"],
        ["fp32, contiguous", "forward + backward", "1", "3.00 (3.00)", "–"],
    ]


def test_each_map_has_ratios_times_and_bandwidth():
    # 3 × 1 MB in 0.1 ms: 30 GB/s, of 40 of the copy; 7 × 1 MB in 0.7 ms: 10 GB/s.
    assert cells(tables.by_map(two_maps())) == [
        ["network, map, hidden", "dtype, layout", "timm", "functional, compiled", "FusedSE, µs",
         "GB/s", "share of copy"],
        ["seresnet50 2×3×4×5, 2", "fp32, contiguous", "2.00 / 3.00", "1.50 / –", "100 / 700",
         "30.0 / 10.0", "75 % / 25 %"],
        ["seresnet50 2×6×4×5, 2", "fp32, contiguous", "8.00 / –", "– / –", "200 / –",
         "15.0 / –", "38 % / –"],
    ]


def test_on_a_gpu_kernels_graphs_and_launches_are_apart():
    times = {"fused_graph_ms": 0.09, "fused_launch_ms": 0.02, "this_graph_ms": 0.19,
             "this_launch_ms": 0.05}
    row = block_row(0.1, 2.0, **{name: quartiles(time) for name, time in times.items()})
    assert cells(tables.launches([row]))[1:] == [
        ["seresnet50 2×3×4×5, 2", "fp32, contiguous", "forward", "100 / 90.0 / 20.0",
         "200 / 190 / 50.0"],
    ]
    assert "CUDA graph" in tables.block(result_rows.result([row], device=GPU))
    assert "CUDA graph" not in tables.block(result_rows.result(two_maps()))


def test_backends_have_tables_of_their_own():
    rows = [block_row(0.1, 2.0, backend="triton"), block_row(0.1, 8.0, backend="cpp")]
    triton, cpp = re.split("`cpp` backend", tables.block(result_rows.result(rows, device=GPU)))
    assert "2.00 (2.00)" in triton and "8.00 (8.00)" not in triton
    assert "8.00 (8.00)" in cpp and "2.00 (2.00)" not in cpp


def test_network_has_speeds_taxes_and_memory():
    rows = [
        network_row(NETWORK),
        network_row({**NETWORK, "eager": 32.0, "compiled": 12.8, "without SE, compiled": 8.0},
                    layout="channels_last"),
    ]
    table = tables.network(result_rows.result(network=rows))
    assert cells(table) == [
        ["network, batch", "layout", "images/s, untouched", "images/s, compiled",
         "images/s, swapped", "swapped over untouched", "SE tax: untouched / compiled / swapped",
         "peak MiB: untouched / compiled / swapped"],
        ["se_resnet20, 32 × 32²", "contiguous", "1600", "–", "2000", "1.25", "2.00 / – / 1.60",
         "3.00 / – / 3.00"],
        ["se_resnet20, 32 × 32²", "channels_last", "1000", "2500", "2000", "2.00",
         "3.20 / 1.60 / 1.60", "3.00 / 3.00 / 3.00"],
    ]
    assert table.endswith("Geometric mean of the speed-ups: 1.58.")  # √(1.25 × 2)


def test_fused_blocks_have_columns_of_their_own():
    rows = [network_row({**NETWORK, "fused blocks": 10.0, "without SE": 12.5})]
    table = tables.network(result_rows.result(network=rows))
    assert cells(table) == [
        ["network, batch", "layout", "images/s, untouched", "images/s, swapped", "images/s, fused",
         "swapped over untouched", "fused over untouched", "SE tax: untouched / swapped / fused",
         "peak MiB: untouched / swapped / fused"],
        ["se_resnet20, 32 × 32²", "contiguous", "1600", "2000", "3200", "1.25", "2.00",
         "1.60 / 1.28 / 0.80", "3.00 / 3.00 / 3.00"],
    ]
    assert table.endswith("Geometric mean of the speed-ups: swapped 1.25, fused 2.00.")


TAIL = {"eager": 8.0, "without SE": 3.0, "swapped": 4.0, "fused": 2.0}


def test_end_of_a_block_is_over_the_fused_one():
    rows = [tail_row(TAIL), tail_row({**TAIL, "eager": 4.0, "compiled": 6.0}, dtype="bf16"),
            tail_row(TAIL, tail="BN + SiLU + SE")]
    table = tail_table.table(result_rows.result(tail=rows))
    residual, mbconv = table.split("BN + SiLU + SE:")
    assert cells(residual) == [
        ["network, map, hidden", "dtype, layout", "eager", "FusedSE alone", "compiled",
         "eager, without SE", "fused, ms"],
        ["seresnet50 2×3×4×5, 2", "fp32, contiguous", "4.00", "2.00", "–", "1.50", "2.00"],
        ["seresnet50 2×3×4×5, 2", "bf16, contiguous", "2.00", "2.00", "3.00", "1.50", "2.00"],
        ["geometric mean (lowest)", "", "2.83 (2.00)", "2.00 (2.00)", "3.00 (3.00)", "1.50 (1.50)",
         ""],
    ]
    assert len(cells(mbconv)) == 3 and "compiled" not in mbconv
    assert "a malloc that keeps freed memory" in residual


def test_ends_of_blocks_are_compared():
    results = {
        "a": result_rows.result(tail=[tail_row(TAIL)]),
        "b": result_rows.result(tail=[tail_row({**TAIL, "fused": 1.0})]),
    }
    assert cells(comparison.compare(results))[1] == [
        "BN + SE + add + ReLU", "seresnet50 2×3×4×5, 2", "fp32, contiguous, cpp", "eager", "2000",
        "1000", "2.00*", "4.00", "8.00",
    ]


def test_tables_say_where_they_stand():
    result = result_rows.result(two_maps(), [network_row(NETWORK)])
    facts = ("Measured on AMD EPYC (CPU): 2 threads, kernels for avx512, torch 2.10.0, "
             "se_fused 0.1.0, commit 25166a53a9, 2026-01-02, ")
    assert tables.block(result).startswith(f"{facts}a malloc that keeps freed memory. ")
    assert tables.network(result).startswith(f"{facts}default malloc. ")
    on_gpu = results_file.stands({**result, "device": GPU, "dirty": True}, "block")
    assert on_gpu == ("Measured on NVIDIA H200 (GPU): capability 9.0, driver 570.1, torch 2.10.0, "
                      "se_fused 0.1.0, commit 25166a53a9 with uncommitted changes, 2026-01-02.")


@pytest.mark.parametrize("value, shown", [
    (0.01234, "0.0123"), (2.8, "2.80"), (99.94, "99.9"), (99.96, "100"), (22029.4, "22029"),
])
def test_numbers_have_three_digits(value, shown):
    assert tables.number(value) == shown


def test_comparison_is_of_the_shared_rows():
    first = result_rows.result(two_maps(), [network_row(NETWORK)])
    second = result_rows.result(
        [
            block_row(0.05, 4.0), block_row(0.65, 3.0, direction="forward+backward"),
            block_row(9.0, 3.0, dtype="bf16"), block_row(0.1, 2.0, contender="torchvision"),
        ],
        [network_row({**NETWORK, "fused": 8.0})],
    )
    shown = comparison.compare({"a.json": first, "b.json": second})
    assert "- A: `a.json`. Measured on AMD EPYC" in shown and "- B: `b.json`." in shown
    blocks, networks = cells(shown)[:4], cells(shown)[4:]
    assert blocks == [
        ["network, map, hidden", "dtype, layout", "pass", "speed-up over", "A", "B", "A/B",
         "speed-up, A", "speed-up, B"],
        ["seresnet50 2×3×4×5, 2", "fp32, contiguous, cpp", "forward", "timm", "100", "50.0",
         "2.00*", "2.00", "4.00"],
        # 630 to 770 and 585 to 715: they overlap.
        ["seresnet50 2×3×4×5, 2", "fp32, contiguous, cpp", "forward + backward", "timm", "700",
         "650", "1.08", "3.00", "3.00"],
        ["geometric mean of 2", "", "", "", "", "", "1.47", "2.45", "3.46"],
    ]
    assert networks[1][4:] == ["500", "250", "2.00*", "1.25", "2.50"]


def test_comparison_of_a_cpu_and_a_gpu_takes_each_ones_first_backend():
    cpu = result_rows.result([block_row(1.0, 2.0)], [network_row(NETWORK)])
    gpu = result_rows.result(
        [block_row(0.1, 3.0, backend="triton"), block_row(0.2, 5.0, backend="cpp")],
        [network_row({**NETWORK, "fused": 4.0}, batch=64, backend="triton")], device=GPU,
    )
    found = cells(comparison.compare({"cpu.json": cpu, "gpu.json": gpu}))
    assert found[1][1:] == ["fp32, contiguous", "forward", "timm", "1000", "100", "10.00*",
                            "2.00", "3.00"]
    # Per image: 16 ms / 32 and 4 ms / 64.
    assert found[4][4:7] == ["500", "62.5", "8.00*"]


def test_three_files_are_compared_with_the_first():
    results = {
        name: result_rows.result([block_row(fused, 2.0)])
        for name, fused in {"a": 0.6, "b": 0.3, "c": 0.2}.items()
    }
    assert cells(comparison.compare(results))[1][4:9] == ["600", "300", "200", "2.00*", "3.00*"]


@pytest.mark.parametrize("other, overlap", [
    ((3.0, 4.0), False), ((2.0, 4.0), True), ((0.2, 0.9), False), ((1.2, 1.3), True),
])
def test_ranges_that_touch_are_not_apart(other, overlap):
    one = {"q1": 1.0, "q3": 2.0}
    assert comparison.apart(one, dict(zip(("q1", "q3"), other))) is not overlap


def test_files_without_common_rows_are_refused():
    results = {
        "a.json": result_rows.result(two_maps()),
        "b.json": result_rows.result(network=[network_row(NETWORK)]),
    }
    message = r"no common rows: a.json has 4 block rows of seresnet50; b.json has 1 network rows of"
    with pytest.raises(RequestError, match=message):
        comparison.compare(results)


@pytest.mark.parametrize("content, message", [
    (None, "x.json: No such file"),
    ("{", "x.json: not JSON"),
    ('{"benchmarks": []}', "x.json: of pytest-benchmark; run benchmarks/collect.py .*x.json first"),
    ('{"cpu": "AMD", "kernels": []}', "x.json: no device, malloc, .*not written by .*collect.py"),
], ids=["missing", "no-json", "pytest-benchmark", "older-script"])
def test_what_is_no_results_file_is_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / "x.json").write_text(content)
    with pytest.raises(SystemExit, match=message):
        report.main([str(tmp_path / "x.json")])


def test_readme_gets_the_tables_between_its_markers(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "ROOT", tmp_path)
    readme = tmp_path / "README.md"
    readme.write_text("a\n<!-- bench table: old.json -->\nold\n<!-- end of bench table -->\nb\n"
                      "<!-- network bench table --><!-- end of network bench table -->\nc\n")
    maps = [block_row(0.1, 2.0, hidden=hidden) for hidden in range(tables.FOLDED + 1)]
    (tmp_path / "results").mkdir()
    file = stored(tmp_path, "results/x.json", block=maps, network=[network_row(NETWORK)])
    report.main([file, "--readme"])
    result = result_rows.result(maps, [network_row(NETWORK)])
    assert readme.read_text() == (
        f"a\n<!-- bench table: results/x.json -->\n{tables.block(result, folded=True)}\n"
        "<!-- end of bench table -->\nb\n"
        f"<!-- network bench table: results/x.json -->\n{tables.network(result)}\n"
        "<!-- end of network bench table -->\nc\n"
    )
    assert "<details><summary>25 lines" in readme.read_text()
    assert "<details>" not in capsys.readouterr().out


def test_readme_without_markers_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "ROOT", tmp_path)
    (tmp_path / "README.md").write_text("text")
    file = stored(tmp_path, "x.json", block=two_maps())
    with pytest.raises(SystemExit, match="<!-- bench table: x.json --> … .* found 0 times"):
        report.main([file, "--readme"])
    assert (tmp_path / "README.md").read_text() == "text"


def test_readme_names_no_file_from_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "ROOT", tmp_path / "here")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "README.md").write_text("text")
    with pytest.raises(SystemExit, match="x.json: not in .*here, so that README.md cannot name it"):
        report.main([stored(tmp_path, "x.json", block=two_maps()), "--readme"])


def test_only_one_file_is_drawn(tmp_path, capsys):
    file = stored(tmp_path, "x.json", block=two_maps())
    with pytest.raises(SystemExit):
        report.main([file, file, "--plots", str(tmp_path)])
    assert "--readme and --plots take one FILE" in capsys.readouterr().err


def test_committed_results_are_readable():
    folder = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
    for path in folder.glob("*.json"):
        if "device" in json.loads(path.read_text()):
            result = results_file.load(path)
            for section, table in (("block", tables.block), ("tail", tail_table.table),
                                   ("network", tables.network)):
                assert not result[section] or table(result)
