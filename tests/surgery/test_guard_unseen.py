"""What a forward reads and a guard cannot watch: objects and plain tensors."""

import pytest
import torch
from se_modules import copy_of, gates, times
from torch import nn

from se_fused import replace_se


def by_list(self, x):
    g = gates(self, x)
    for factor in self.factors:
        g = g * factor
    return times(x, g)


class Schedule:
    factor = 1.0


def by_object(self, x):
    return times(x, gates(self, x) * self.schedule.factor)


def by_tensor(self, x):
    return times(x, gates(self, x) * self.scale)


SCHEDULE = Schedule()


def by_global_object(self, x):
    return times(x, gates(self, x) * SCHEDULE.factor)


UNSEEN = {
    "object": (
        lambda: copy_of(by_object, schedule=Schedule()),
        "its forward reads schedule, a test_guard_unseen.Schedule that may change unseen",
    ),
    "tensor": (
        lambda: copy_of(by_tensor, scale=torch.ones(())),
        "its forward reads scale, a torch.Tensor that may change unseen",
    ),
    "object-in-a-list": (
        lambda: copy_of(by_list, factors=[torch.ones(())]),
        "its forward reads factors, a builtins.list that may change unseen",
    ),
    "global-object": (
        lambda: copy_of(by_global_object),
        "its forward reads SCHEDULE, a test_guard_unseen.Schedule that may change unseen",
    ),
}


@pytest.mark.parametrize("make, reason", UNSEEN.values(), ids=UNSEEN)
def test_what_cannot_be_watched_is_left(make, reason):
    report = replace_se(nn.Sequential(make().double()))
    assert [entry.reason for entry in report.left] == [reason] and not report.replaced
