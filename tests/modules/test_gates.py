"""What record_gates sums up and says; test_gates_recorded.py has whose gates, and when."""

import copy
import pickle

import pytest
import torch
from gate_models import block, maps, record_of
from torch import nn
from twins import C, R

from se_fused import FusedSE, record_gates


def gates_of(se, x):
    z = x.mean((2, 3), keepdim=True)
    return torch.sigmoid(se.fc2(torch.relu(se.fc1(z)))).flatten(1).detach()


def assert_equal(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


# Sums


def test_sums_over_batches():
    se, batches = FusedSE(C, rd_channels=R).double(), [maps(4), maps(3), maps(0), maps(1)]
    record = record_of(se, *batches)
    g = torch.cat([gates_of(se, x) for x in batches])
    assert_equal(record.mean(), {"": g.mean(0)})
    torch.testing.assert_close(record.deviation()[""], g.std(0, correction=0), rtol=0, atol=1e-7)
    sums = record.blocks[""]
    assert sums.samples == 8 and sums.channels == C
    assert_equal(torch.stack([sums.lowest, sums.highest]), torch.stack([g.amin(0), g.amax(0)]))


LABELS = {
    "tensors": ([torch.tensor([3, 5, 3, 3]), torch.tensor([5, 7])], [3, 5, 7]),
    "ints": ([[3, 5, 3, 3], (5, 7)], [3, 5, 7]),
    "names": ([["cat", "dog", "cat", "cat"], ["dog", "owl"]], ["cat", "dog", "owl"]),
    "both": ([[7, "a", 7, 7], ["a", "b"]], [7, "a", "b"]),
    "later-ones-first": ([[5, 7, 5, 5], [7, 3]], [3, 5, 7]),
}


@pytest.mark.parametrize("labels, classes", LABELS.values(), ids=LABELS)
def test_mean_per_class(labels, classes):
    se, batches = FusedSE(C, rd_channels=R).double(), [maps(4), maps(2)]
    record = record_of(se, *batches, labels=labels)
    g = torch.cat([gates_of(se, x) for x in batches])
    found = record.mean_per_class()[""]
    assert list(found) == classes == record.classes
    order = [classes.index(label) for batch in labels for label in [*batch]]
    deviations = record.deviation_per_class()[""]
    for index, label in enumerate(classes):
        own = g[[i for i, of in enumerate(order) if of == index]]
        assert_equal(found[label], own.mean(0))
        torch.testing.assert_close(deviations[label], own.std(0, correction=0), rtol=0, atol=1e-7)
    assert_equal(record.mean()[""], g.mean(0))


def test_labels_hold_until_they_are_set_again():
    se, batches = FusedSE(C, rd_channels=R).double(), [maps(2) for _ in range(4)]
    record = record_of(se, *batches, labels=[None, [0, 1], [1, 1], None])
    g = [gates_of(se, x) for x in batches]
    assert record.labels is None and record.blocks[""].samples == 8
    found = record.mean_per_class()[""]
    assert_equal(found, {0: g[1][0], 1: torch.stack([g[1][1], *g[2]]).mean(0)})
    with record_gates(se) as record:
        record.labels = [0, 1]
        se(batches[1]), se(batches[2])
    assert_equal(record.mean_per_class()[""][0], (g[1][0] + g[2][0]) / 2)


def test_class_that_a_block_has_not_seen():
    first, second = block(), block()
    with record_gates(nn.ModuleDict({"first": first, "second": second})) as record:
        record.labels = [0, 0]
        first(maps(2))
        record.labels = [1, 1]
        second(maps(2))
    assert {name: list(of) for name, of in record.mean_per_class().items()} == {
        "first": [0], "second": [1]
    }  # fmt: skip


def test_shared_block_has_the_samples_of_all_its_calls():
    se, x = FusedSE(C, rd_channels=R).double(), maps()
    record = record_of(nn.Sequential(se, se), x, labels=[[0, 0, 1, 1]])
    g = torch.stack([gates_of(se, x), gates_of(se, se(x))])
    assert_equal(record.mean(), {"0": g.mean((0, 1))})
    assert_equal(record.mean_per_class()["0"], {0: g[:, :2].mean((0, 1)), 1: g[:, 2:].mean((0, 1))})


# Saturation

ALIVE = (dict(weight=1.0), (0, 0, 0), None)
FORCED = {
    "near-1": (dict(bias=20.0), (0, 1, 1), "all near 1"),
    "near-0": (dict(bias=-20.0), (1, 0, 1), "all near 0:"),
    "constant": (dict(bias=0.3), (0, 0, 1), "constant"),
    "hardsigmoid-at-1": (dict(gate_layer="hardsigmoid", bias=20.0), (0, 1, 1), "all near 1"),
    "tanh-at-minus-1": (dict(gate_layer="tanh", bias=-20.0), (0, 0, 1), "constant"),
    "tanh-at-0": (dict(gate_layer="tanh"), (1, 0, 1), "all near 0:"),
    "relu-at-0": (dict(gate_layer="relu", bias=-1.0), (1, 0, 1), "all near 0:"),
    "relu-at-3": (dict(gate_layer="relu", bias=3.0), (0, 0, 1), "constant"),
}


@pytest.mark.parametrize("arguments, shares, finding", FORCED.values(), ids=FORCED)
def test_saturation_of_forced_gates(arguments, shares, finding):
    model = nn.Sequential(block(**arguments), FusedSE(C, rd_channels=R).double())
    nn.init.normal_(model[1].fc1.weight), nn.init.normal_(model[1].fc2.weight, std=3)
    x = 5 * torch.randn(32, C, 1, 1, dtype=torch.float64)
    forced, alive = record_of(model, x).saturation().rows
    assert (forced.near_0, forced.near_1, forced.constant) == shares
    assert forced.finding.startswith(finding) and forced.spread < 1e-7
    if finding != "all near 0:":
        assert alive.finding is None and alive.constant < 0.5 and alive.spread > 0.05


def test_saturation_counts_gates():
    se, x = FusedSE(C, rd_channels=R).double(), 5 * maps(20)
    nn.init.normal_(se.fc1.weight), nn.init.normal_(se.fc2.weight, std=5)
    g = gates_of(se, x)
    for near in (0.05, 0.3):
        row, = record_of(se, x, near=near).saturation().rows
        assert 0 < row.near_0 == (g <= near).double().mean().item()
        assert 0 < row.near_1 == (g >= 1 - near).double().mean().item()
        assert row.spread == pytest.approx(g.std(0, correction=0).mean().item())
    share = row.near_0 + row.near_1
    assert share > max(row.near_0, row.near_1, row.constant)
    record = record_of(se, x, near=0.3)
    assert record.saturation(share + 0.01).droppable == []
    assert record.saturation(share - 0.01).rows[0].finding.startswith("all near 0 or 1")


def test_saturation_prints_as_a_table():
    model = nn.ModuleDict({"a": block(bias=20.0), "long_name": block(), "idle": block()})
    model["b"] = FusedSE(C, rd_channels=R).double()
    with record_gates(model) as record:
        model["a"](maps()), model["long_name"](maps())
        model["b"](maps() * torch.linspace(0, 200, 4, dtype=torch.float64).view(4, 1, 1, 1))
    table = record.saturation()
    assert table.droppable == ["a", "long_name"] and table.not_run == ["idle"]
    lines = str(table).splitlines()
    assert lines[0].split() == [
        "block", "channels", "samples", "near", "0", "near", "1", "constant", "spread"
    ]  # fmt: skip
    assert lines[1] == (
        "a                24        4     0.0%   100.0%    100.0%  0.0000  "
        "all near 1: it changes nothing"
    )
    assert lines[-1] == "idle       did not run" and len(lines) == 5
    assert list(record.mean()) == ["a", "long_name", "b"]


# Errors and copies


@pytest.mark.parametrize("near", [-0.1, 0.5, 2], ids=["negative", "half", "beyond-one"])
def test_wrong_near(near):
    with pytest.raises(ValueError, match="near must be at least 0 and below 0.5"):
        record_of(block(), near=near)


@pytest.mark.parametrize("share", [0, 1.1], ids=["none", "more-than-all"])
def test_wrong_share(share):
    with pytest.raises(ValueError, match="share must be above 0 and at most 1"):
        record_of(block(), maps()).saturation(share)


def test_wrong_model():
    with pytest.raises(TypeError, match="model must be a torch.nn.Module, got list"):
        record_of([block()])
    with pytest.raises(ValueError, match="model must have a FusedSE in it"):
        record_of(nn.Conv2d(1, 1, 1))


WRONG_LABELS = {
    "one-hot": (torch.eye(4), ValueError, r"torch.float32 of shape \(4, 4\)"),
    "floats": (torch.ones(4), ValueError, "torch.float32"),
    "two-dims": (torch.ones(4, 1, dtype=torch.int64), ValueError, r"\(4, 1\)"),
    "number": (3, TypeError, "got int"),
    "string": ("cats", TypeError, "got str"),
    "list-of-tensors": ([torch.tensor(1)] * 4, TypeError, "got a Tensor in them"),
}


@pytest.mark.parametrize("labels, error, message", WRONG_LABELS.values(), ids=WRONG_LABELS)
def test_wrong_labels(labels, error, message):
    with record_gates(block()) as record:
        with pytest.raises(error, match=f"labels must be .*{message}"):
            record.labels = labels
    assert record.labels is None


def test_labels_of_another_batch():
    model = nn.Sequential(nn.Identity(), block())
    with record_gates(model) as record:
        record.labels = [1, 2, 3]
        with pytest.raises(ValueError, match="got 3 labels for the 4 samples of block 1"):
            model(maps())
        model(maps(3))
    assert record.blocks["1"].samples == 3


def test_nothing_recorded():
    record = record_of(block())
    for ask in (record.mean, record.deviation, record.saturation, lambda: record.plot("no.png")):
        with pytest.raises(RuntimeError, match="no SE block of the model has run"):
            ask()
    record = record_of(block(), maps())
    for ask in (record.mean_per_class, record.deviation_per_class):
        with pytest.raises(RuntimeError, match="no labels were set"):
            ask()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda r: pickle.loads(pickle.dumps(r))],
                         ids=["deepcopy", "pickle"])
def test_record_outlives_the_model(copied):
    record = record_of(FusedSE(C, rd_channels=R).double(), maps(), labels=[[0, 1, 1, 0]])
    again = copied(record)
    assert_equal(again.mean_per_class(), record.mean_per_class())
    assert str(again.saturation()) == str(record.saturation())
