"""benchmarks/ablation.py: its rows and their networks, what a run writes, and its errors."""

import json
import runpy
import sys

import ablation
import pytest
import torch
import torch.nn.functional as F
from lib.errors import RequestError
from torch.utils.data import TensorDataset
from training import data
from training.ablation_rows import SE, SMALL, TABLES, Paper, network, rows_of

from se_fused import FusedSE

# Σ N C² and Σ N C of the three stages with three blocks of 16, 32 and 64 channels.
BLOCKS = {2: (3, 16), 3: (3, 32), 4: (3, 64)}
PLAIN = 269_722


def parameters(se, width=16):
    net = network(SMALL, width, 10, se, seed=0)
    return sum(p.numel() for p in net.parameters())


def weights(ratio, stages=BLOCKS):
    """The paper's equation 5."""
    return sum(n * 2 * c * c // ratio for n, c in (BLOCKS[stage] for stage in stages))


def test_ratios_have_the_parameters_of_equation_5():
    assert parameters(None) == PLAIN
    for ratio in (2, 4, 8, 16):
        assert parameters(SE(ratio)) == PLAIN + weights(ratio)
    assert parameters(SE(32), width=32) == parameters(None, width=32) + 4 * weights(32)
    assert parameters(SE((4, 8, 16))) == PLAIN + sum(
        weights(ratio, [stage]) for ratio, stage in zip((4, 8, 16), BLOCKS)
    )


@pytest.mark.parametrize("table", TABLES)
def test_rows_have_the_parameters_of_equation_5(table):
    for row in rows_of(table, 4, ()):
        if row.se is None or row.se.reduction == 32:
            continue
        ratio, stages = row.se.reduction, row.se.stages or tuple(BLOCKS)
        expected = weights(ratio, stages)
        if row.se.squeeze == "concat":
            expected = 3 * expected // 2
        if row.se.where == "pre":  # the first block of the later stages has half the channels
            expected -= sum(2 * (c**2 - (c // 2) ** 2) // ratio for c in (32, 64))
        assert parameters(row.se) == PLAIN + expected, row.name


@pytest.mark.parametrize("where", ["standard", "pre", "post", "identity"])
def test_places(where):
    """A block with SE in this place, in plain PyTorch."""
    block = network(SMALL, 16, 10, SE(4, where), seed=0).blocks[3].double().eval()
    se, = (module for module in block.modules() if isinstance(module, FusedSE))

    def rescaled(x, place):
        if place != where:
            return x
        return x * torch.sigmoid(se.fc2(torch.relu(se.fc1(x.mean((2, 3), keepdim=True)))))

    def norm(x, bn):
        return F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias)

    x = torch.randn(2, 16, 6, 6, dtype=torch.float64)
    y = torch.relu(norm(block.conv1(rescaled(x, "pre")), block.bn1))
    y = rescaled(norm(block.conv2(y), block.bn2), "standard")
    shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, 16))
    y = rescaled(torch.relu(y + rescaled(shortcut, "identity")), "post")
    torch.testing.assert_close(block(x), y)


def test_rows_start_from_the_same_weights():
    plain = network(SMALL, 16, 10, None, seed=3).state_dict()
    for row in rows_of("integration", 4, ()):
        state = network(SMALL, 16, 10, row.se, seed=3).state_dict()
        assert all(torch.equal(state[name], value) for name, value in plain.items()), row.name
    other = network(SMALL, 16, 10, None, seed=4).state_dict()
    assert not torch.equal(other["conv.weight"], plain["conv.weight"])


def test_library_network():
    pytest.importorskip("torchvision", reason="not installed; the small network covers the rows")

    def build(se):
        net = network("resnet18", 16, 1000, se, seed=0)
        return net, sum(p.numel() for p in net.parameters()) - 11_689_512

    assert build(None)[1] == 0
    assert build(SE(16))[1] == 2 * 2 * (64**2 + 128**2 + 256**2 + 512**2) // 16
    assert build(SE(16, stages=(2,)))[1] == 2 * 2 * 64**2 // 16
    net, _ = build(SE((4, 8, 16, 32)))
    for layer in (net.layer1, net.layer2, net.layer3, net.layer4):
        assert layer[1].bn2_se.fc1.out_channels == 16


@pytest.fixture
def few_images(monkeypatch):
    def load(spec, image_size):
        draw = lambda n: TensorDataset(torch.randn(n, 3, 8, 8), torch.arange(n) % 10)
        return data.Images(draw(8), draw(6), 10)

    monkeypatch.setattr(data, "load", load)


def result_of(tmp_path, *arguments):
    short = ("--device", "cpu", "--epochs", "1", "--steps", "1", "--batch-size", "4")
    ablation.main([*short, "--out", str(tmp_path), *arguments])
    return json.loads((tmp_path / "ablation.json").read_text())


def test_run_of_the_ratios(tmp_path, few_images, capsys):
    result = result_of(tmp_path, "--table", "reduction", "--reduction", "4,8,16", "--seeds", "2")
    table = result["tables"]["reduction"]
    assert list(result["tables"]) == ["reduction"] and result["test_images"] == 6
    assert table["paper"] == "ImageNet, SENet paper table 10"
    rows = {row["name"]: row for row in table["rows"]}
    assert list(rows) == ["2", "4", "8", "16", "32", "without SE", "4 / 8 / 16"]
    assert rows["16"]["paper"] == {"top1_error": 22.28, "top5_error": 6.03, "parameters": 28.1}
    assert rows["4 / 8 / 16"]["paper"] is None
    assert rows["32"]["left"] == "32 leaves no hidden unit of the 16 channels of stage 2"
    assert "runs" not in rows["32"]
    for name, row in rows.items():
        if name == "32":
            continue
        assert len(row["runs"]) == 2 and row["runs"][0]["seed"] == 0
        accuracies = row["test_accuracy"]["of_seeds"]
        assert row["test_accuracy"]["mean"] == pytest.approx(sum(accuracies) / 2)
        assert row["test_accuracy"]["deviation"] == pytest.approx(
            abs(accuracies[0] - accuracies[1]) / 2**0.5
        )
        assert row["images_per_second"]["mean"] > 0
    assert rows["2"]["parameters"] == PLAIN + weights(2)
    assert rows["2"]["runs"][0]["final_loss"] != rows["2"]["runs"][1]["final_loss"]
    printed = capsys.readouterr().out
    assert "ImageNet, SENet paper table 10" in printed and "nothing is compared with it" in printed
    for piece in ("22.72", "285,850", "not in the paper", "mean ± deviation of 2 seeds"):
        assert piece in printed


@pytest.mark.thorough
def test_run_of_all_tables_trains_each_network_once(tmp_path, few_images, monkeypatch):
    trained, train_networks = [], ablation.train_networks

    def counted(args, wanted, *others):
        trained.extend(wanted)
        return train_networks(args, wanted, *others)

    monkeypatch.setattr(ablation, "train_networks", counted)
    monkeypatch.setattr(ablation, "draw", lambda result, path: None)
    tables = result_of(tmp_path, "--seeds", "1", "--reduction", "8", "--fuse")["tables"]
    for name, table in tables.items():
        assert [row["name"] for row in table["rows"]] == [row.name for row in TABLES[name].rows]
        assert name == "reduction" or all(row["se"]["reduction"] == 8 for row in table["rows"])
    assert len(trained) == len(set(trained)) == 5 + 3 + 2 + 3 + 3
    standard = {"reduction": 2, "squeeze": 1, "gate": 2, "stages": 3, "integration": 0}
    same = [tables[name]["rows"][index]["runs"] for name, index in standard.items()]
    assert all(runs == same[0] for runs in same)


def test_paper_figures_of_the_standard_row_agree():
    standard = Paper(22.28, 6.03)
    for name, index in (("reduction", 3), ("squeeze", 1), ("gate", 2), ("stages", 3),
                        ("integration", 0)):
        assert TABLES[name].rows[index].paper[:2] == standard[:2]


ERRORS = {
    "wrong-number-of-ratios": (("--reduction", "4,8"), "each of the stages 2, 3, 4; got 2"),
    "ratio-that-leaves-nothing": (("--reduction", "64"), "64 leaves no hidden unit of the 16"),
    "negative-ratio": (("--reduction", "4,-8,4"), "--reduction: must be positive"),
    "ratio-of-letters": (("--reduction", "r"), "--reduction: invalid ratios value: 'r'"),
    "ratios-of-stages-elsewhere": (
        ("--reduction", "4,8,16", "--table", "gate"), "rows of --table reduction"
    ),
    "unknown-table": (("--table", "depth"), "--table: invalid choice: 'depth'"),
    "no-seeds": (("--seeds", "0"), "--seeds: must be at least 1"),
    "unknown-model": (("--model", "resnet9000"), "--model resnet9000: "),
}


@pytest.mark.parametrize("arguments, message", ERRORS.values(), ids=ERRORS)
def test_errors(tmp_path, few_images, arguments, message):
    with pytest.raises(RequestError, match=message) as raised:
        result_of(tmp_path, *arguments)
    assert len(str(raised.value).splitlines()) == 1


def test_error_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ablation.py", "--seeds", "0"])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(ablation.__file__, run_name="__main__")
    assert capsys.readouterr().err == "ablation.py: argument --seeds: must be at least 1\n"


def test_plot(tmp_path, few_images):
    pytest.importorskip("matplotlib", reason="not installed; the tables need none")
    result_of(tmp_path, "--table", "squeeze", "--seeds", "2")
    assert (tmp_path / "ablation.png").read_bytes().startswith(b"\x89PNG")
