"""Plots of a results file, and what the roofline counts."""

import struct
import sys

import pytest
import report
import result_rows
import torch
from lib import contenders, plots
from lib import results as results_file
from result_rows import block_row, network_row, two_maps
from torch.utils.flop_counter import FlopCounterMode
from traffic import roofline

STEP = {"eager": 20.0, "fused": 16.0, "without SE": 10.0}


def test_flops_are_those_of_the_block():
    forward = block_row(1.0, 2.0)
    assert roofline.flops(forward) == 2 * 120 + 48
    assert roofline.intensity({**forward, "map_bytes": 480}, "eager") == pytest.approx(0.2)
    assert roofline.gigaflops(forward, 1.0) == pytest.approx(288 / 1e-3 / 1e9)
    both = block_row(1.0, 2.0, direction="forward+backward", contender="functional, compiled")
    assert roofline.flops(both) == 6 * 120 + 144
    assert roofline.passes(both, "fused") == roofline.passes(both, "compiled") == 7
    conv = {**both, "contender": "timm, compiled"}
    assert roofline.passes(conv, "compiled") == 8  # with a copy of a contiguous map


def test_flops_of_the_excitation_are_counted_by_pytorch():
    block, x = contenders.FunctionalSE(3, 2, "relu", "sigmoid"), torch.randn(2, 3, 4, 5)
    with FlopCounterMode(display=False) as counter:
        y = block(x.requires_grad_())
        assert counter.get_total_flops() == 48
        y.sum().backward()
    assert counter.get_total_flops() == 144


@pytest.mark.parametrize("maps, expected", [
    (3, {"speedup.png", "roofline.png", "training_step.png"}),
    (11, {"speedup.png", "speedup-fp32.png", "roofline.png", "training_step.png"}),
], ids=["few-maps", "many-maps"])
def test_plots_are_pngs(tmp_path, maps, expected):
    pytest.importorskip("matplotlib", reason="not installed; the tables need none")
    rows = [
        block_row(0.1, 2.0, hidden=hidden, direction=direction, contender=contender)
        for hidden in range(maps)
        for direction in results_file.DIRECTIONS
        for contender in ("timm", "timm, compiled")
    ]
    steps = [network_row(STEP), network_row({**STEP, "compiled": 9.0}, size=64)]
    file = tmp_path / "x.json"
    file.write_text(results_file.dumps(result_rows.result(rows, steps)))
    report.main([str(file), "--plots", str(tmp_path / "plots")])
    found = list((tmp_path / "plots").iterdir())
    assert {path.name for path in found} == expected
    for path in found:
        data = path.read_bytes()
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        width, height = struct.unpack(">II", data[16:24])
        assert width == 1350 and 300 < height < 2000


def test_the_fastest_contender_is_the_hardest_to_beat():
    rows = {name: block_row(0.1, speedup, contender=name) for name, speedup in
            {"timm": 3.0, "functional": 2.0, "timm, compiled": 1.2}.items()}
    assert plots.fastest(rows, "eager") is rows["functional"]
    assert plots.fastest(rows, "compiled") is rows["timm, compiled"]
    assert plots.fastest({"timm": rows["timm"]}, "compiled") is None


def test_without_matplotlib_the_plots_are_skipped(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    plots.draw(result_rows.result(two_maps()), tmp_path / "plots")
    assert capsys.readouterr().out == "Plots: skipped, matplotlib is not installed\n"
    assert not (tmp_path / "plots").exists()
