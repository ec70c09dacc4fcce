"""The plot of mean gates: what is drawn."""

import struct
import sys

import pytest
import torch
from gate_models import block, maps, record_of
from torch import nn
from twins import C, R

from se_fused import FusedSE


@pytest.mark.parametrize("blocks, width", [(1, 600), (2, 1080), (5, 1560)],
                         ids=["one-block", "two-blocks", "five-blocks"])
def test_plot_is_a_png(tmp_path, blocks, width):
    pytest.importorskip("matplotlib", reason="not installed; the means need none")
    record = record_of(nn.Sequential(*[block() for _ in range(blocks)]), maps(), maps(1),
                       labels=[["a", "b", "a", "c"], None])
    record.plot(tmp_path / "gates.png")
    data = (tmp_path / "gates.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    found = struct.unpack(">II", data[16:24])
    assert found == (width, 120 + 252 * (1 + blocks // 4))


def drawn(record, tmp_path, monkeypatch, **options):
    figure = pytest.importorskip("matplotlib.figure", reason="not installed").Figure
    figures = []
    monkeypatch.setattr(figure, "savefig", lambda self, path, dpi: figures.append(self))
    record.plot(tmp_path / "gates.png", **options)
    return figures[0]


def test_plot_of_deviations(tmp_path, monkeypatch):
    record = record_of(FusedSE(C, rd_channels=R).double(), maps(), labels=[[5, 6, 5, 6]])
    figure = drawn(record, tmp_path, monkeypatch, deviation=True)
    means, deviations = record.mean_per_class()[""], record.deviation_per_class()[""]
    assert len(figure.axes[0].collections) == 2
    for label, band in zip((5, 6), figure.axes[0].collections):
        y = torch.from_numpy(band.get_paths()[0].vertices[:, 1])
        assert y.max() == (means[label] + deviations[label]).max()
        assert y.min() == (means[label] - deviations[label]).min()
    assert not drawn(record, tmp_path, monkeypatch).axes[0].collections


def curves(record, tmp_path, monkeypatch, **options):
    """The labels and values of the curves of each panel, and the title."""
    figure = drawn(record, tmp_path, monkeypatch, **options)
    panels = [{line.get_label(): line.get_ydata() for line in ax.lines} for ax in figure.axes]
    return panels, figure.get_suptitle()


def test_plot_has_a_curve_for_each_class(tmp_path, monkeypatch):
    model = nn.Sequential(*[FusedSE(C, rd_channels=R).double() for _ in range(2)])
    record = record_of(model, maps(), labels=[[5, 6, 5, 6]])
    panels, title = curves(record, tmp_path, monkeypatch)
    assert len(panels) == 2 and title == "Mean gate of each channel"
    for panel, (name, means) in zip(panels, record.mean_per_class().items()):
        assert list(panel) == ["5", "6", "all samples"]
        for label, found in zip(means, panel.values()):
            assert (found == means[label].numpy()).all()
        assert (panel["all samples"] == record.mean()[name].numpy()).all()


def test_plot_of_some_classes_and_of_none(tmp_path, monkeypatch):
    many = record_of(block(), maps(40), labels=[list(range(40))])
    (panel,), title = curves(many, tmp_path, monkeypatch, classes=[30, 2])
    assert list(panel) == ["30", "2", "all samples"] and title.endswith(", 2 of 40 classes")
    (panel,), title = curves(many, tmp_path, monkeypatch)
    assert len(panel) == 13 and title.endswith(", 12 of 40 classes")
    (panel,), title = curves(record_of(block(), maps()), tmp_path, monkeypatch)
    assert list(panel) == ["all samples"] and title == "Mean gate of each channel"
    for classes, message in (([40], "got 40"), (range(13), "at most 12, got 13")):
        with pytest.raises(ValueError, match=f"classes must be .*{message}"):
            many.plot(tmp_path / "gates.png", classes)


def test_plot_without_matplotlib(tmp_path, monkeypatch):
    record = record_of(block(), maps())
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="plot needs matplotlib, which is not installed"):
        record.plot(tmp_path / "gates.png")
