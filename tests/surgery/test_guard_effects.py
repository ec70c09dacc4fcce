"""Forwards that set attributes, update buffers, change globals: left, and nothing of it is kept."""

import copy

import pytest
import torch
from se_modules import C, copy_of, gates, times
from torch import nn

from se_fused import replace_se

COUNTS = {"calls": 0}
SEEN = []
CALLS = 0


def keeps_gates(self, x):
    self.last = gates(self, x)
    return times(x, self.last)


def keeps_shape(self, x):
    self.shape = x.shape
    return times(x, gates(self, x))


def keeps_on_a_layer(self, x):
    self.fc.used = True
    return times(x, gates(self, x))


def counts(self, x):
    self.calls += 1
    return times(x, gates(self, x))


def appends(self, x):
    self.seen.append(len(x))
    return times(x, gates(self, x))


def counts_in_training(self, x):
    if self.training:
        self.calls += 1
    return times(x, gates(self, x))


def averages(self, x):
    g = gates(self, x)
    if self.training:
        self.mean.lerp_(g.detach().mean(0), 0.1)
    return times(x, g)


def counts_batches(self, x):
    self.batches += 1
    return times(x, gates(self, x))


def replaces_buffer(self, x):
    g = gates(self, x)
    self.mean = g.detach().mean(0)
    return times(x, g)


def counts_in_a_dict(self, x):
    COUNTS["calls"] += 1
    return times(x, gates(self, x))


def appends_to_a_list(self, x):
    SEEN.append(x.shape)
    return times(x, gates(self, x))


def counts_in_a_global(self, x):
    global CALLS
    CALLS += 1
    return times(x, gates(self, x))


BUFFER = "its buffer {} may change what it computes"
EFFECTS = {
    "gates": (lambda: copy_of(keeps_gates), "its forward sets last"),
    "gates-none-at-first": (lambda: copy_of(keeps_gates, last=None), "its forward sets last"),
    "shape": (lambda: copy_of(keeps_shape), "its forward sets shape"),
    "flag-on-a-layer": (lambda: copy_of(keeps_on_a_layer), "its forward sets fc.used"),
    "count": (lambda: copy_of(counts, calls=0), "its forward sets calls"),
    "list": (lambda: copy_of(appends, seen=[]), "its forward sets seen"),
    "in-training": (lambda: copy_of(counts_in_training, calls=0), "its forward sets calls"),
    "buffer": (lambda: copy_of(averages, mean=nn.Buffer(torch.zeros(C))), BUFFER.format("mean")),
    "integer-buffer": (
        lambda: copy_of(counts_batches, batches=nn.Buffer(torch.zeros((), dtype=int))),
        BUFFER.format("batches"),
    ),
    "buffer-replaced": (
        lambda: copy_of(replaces_buffer, mean=nn.Buffer(torch.zeros(C))), BUFFER.format("mean")
    ),
    "dict-of-the-module": (lambda: copy_of(counts_in_a_dict), "its forward changes COUNTS"),
    "list-of-the-module": (lambda: copy_of(appends_to_a_list), "its forward changes SEEN"),
    "global": (
        lambda: copy_of(counts_in_a_global),
        "the forward of a se_modules.Own sets globals",
    ),
}


@pytest.mark.parametrize("make, reason", EFFECTS.values(), ids=EFFECTS)
def test_left(make, reason):
    net = nn.Sequential(make())
    before = copy.deepcopy(vars(net[0]))
    report = replace_se(net)
    assert [entry.reason for entry in report.left] == [reason] and not report.replaced
    after = vars(net[0])
    assert after.keys() == before.keys()
    plain = before.keys() - {"_modules", "_parameters", "_buffers"}
    assert all(after[name] == before[name] for name in plain)
    for name, buffer in before["_buffers"].items():
        assert torch.equal(after["_buffers"][name], buffer)
    assert COUNTS == {"calls": 0} and SEEN == []
