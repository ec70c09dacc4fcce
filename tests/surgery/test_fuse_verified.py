"""What one trace of a block's forward does not show: fuse verifies it on copies.

Each block is called in the ways it can be; what fuse made of it must give what it gave.
"""

import copy
import random
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from block_with_forward import END, SE, Residual, block, feature_map, step
from residual_blocks import C, assert_same, recorded_calls
from torch import nn
from torch.utils.checkpoint import checkpoint

from se_fused import FusedSE, fuse

MAPS = []
chance = np.random.default_rng(0)


def _masked(self, x, mask=None):
    y = self.branch(x)
    if mask is not None:
        y = y * mask
    return F.relu(y + x)


def _shortcut(self, x, shortcut=None):
    if shortcut is None:
        shortcut = x
    return F.relu(self.branch(x) + shortcut)


def _two_options(self, x, scale=None, *, shortcut=None):
    y = self.branch(x)
    if scale is not None:
        y = y * scale
    return F.relu(y + (x if shortcut is None else shortcut))


def _switched_by_argument(self, x, relu=True):
    y = self.branch(x) + x
    return F.relu(y) if relu else y


def _any_keywords(self, x, **others):
    return F.relu(self.branch(x) + others.get("shortcut", x))


def _pair(self, x, shortcut):
    return F.relu(self.branch(x) + shortcut), [x]


def _writes_into_its_input(self, x):
    x.mul_(2)
    return F.relu(self.branch(x) + x)


x, other = feature_map(), feature_map()
# The forward, what is fused, and calls with whether they run fused.
CALLS = {
    "mask": (_masked, END, [((x,), {}, True), ((x, other), {}, True), ((x, None), {}, True),
                            ((x,), {"mask": other[:, :1]}, True)]),
    "shortcut": (_shortcut, END, [((x,), {}, True), ((x, other), {}, True),
                                  ((), {"shortcut": other, "x": x}, True)]),
    "two-options": (_two_options, END, [((x,), {}, True), ((x, other), {}, True),
                                        ((x,), {"shortcut": other}, True),
                                        ((x, other), {"shortcut": other}, True)]),
    "switch": (_switched_by_argument, END, [((x,), {}, True), ((x, True), {}, True),
                                            ((x, False), {}, False),
                                            ((x,), {"relu": False}, False)]),
    "any-keywords": (_any_keywords, END, [((x,), {}, True), ((x,), {"shortcut": other}, False)]),
    "required-arguments": (_pair, END, [((x, other), {}, True)]),
    "input-overwritten": (_writes_into_its_input, END, [((x,), {}, True)]),
}  # fmt: skip


@pytest.mark.parametrize("forward, covers, ways", CALLS.values(), ids=CALLS)
def test_each_way_to_call(monkeypatch, forward, covers, ways):
    calls = recorded_calls(monkeypatch)
    library = block(forward)
    fused = copy.deepcopy(library)
    assert [entry.covers for entry in fuse(fused).replaced] == [covers]
    for training in (True, False):
        for args, kwargs, is_fused in ways:
            calls.clear()
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                found = step(fused.train(training), args, kwargs)
            assert bool(calls) == is_fused
            assert not (said and is_fused)
            assert_same(found, step(library.train(training), args, kwargs))


def test_call_that_is_not_fused_says_so_once():
    module = block(_switched_by_argument)
    fuse(module)
    with pytest.warns(UserWarning, match="library's forward, unfused: it is called with arg"):
        module(x, False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module(x, False)
        module(x)


# Forwards that do other things in other cases, or more than they return.


def _asks_for_the_type(self, x):
    return F.relu(self.branch(x) + x) if isinstance(x, torch.Tensor) else self.branch(x)


def _drops_by_numpy(self, x):
    return x if self.training and np.random.rand() < 1e-9 else F.relu(self.branch(x) + x)


def _drops_by_python(self, x):
    return x if self.training and random.random() < 1e-9 else F.relu(self.branch(x) + x)


def _drops_by_a_generator(self, x):
    return x if chance.random() < 1e-9 else F.relu(self.branch(x) + x)


def _drops_by_its_own_generator(self, x):
    return x if self.chance.random() < 1e-9 else F.relu(self.branch(x) + x)


def _checkpoints(self, x):
    return checkpoint(lambda x: F.relu(self.branch(x) + x), x, use_reentrant=False)


def _checkpoints_in_training(self, x):
    return _checkpoints(self, x) if self.training else F.relu(self.branch(x) + x)


def _keeps_on_the_cpu(self, x):
    with torch.autograd.graph.save_on_cpu():
        return F.relu(self.branch(x) + x)


def _collects(self, x):
    y = F.relu(self.branch(x) + x)
    self.maps.append(y)
    return y


def _collects_outside(self, x):
    y = F.relu(self.branch(x) + x)
    MAPS.append(y)
    return y


def _counts(self, x):
    self.calls += 1
    return F.relu(self.branch(x) + x)


def _updates_a_buffer(self, x):
    y = self.branch(x)
    self.mean.lerp_(y.detach().mean((0, 2, 3)), 0.1)
    return F.relu(y + x)


def _switched_by_a_buffer(self, x):
    return F.relu(self.branch(x) + x) if self.on else x


def _asks_for_gradients_of_x(self, x):
    return F.relu(self.branch(x) + x) if x.requires_grad else x


def _asks_for_the_size(self, x):
    return F.relu(self.branch(x) + x) if x.shape[-1] > 4 else x


def _sets_a_global(self, x):
    global last
    last = x.shape
    return F.relu(self.branch(x) + x)


def _any_arguments(self, *maps):
    return F.relu(self.branch(maps[0]) + maps[-1])


SETS = "its block's forward sets attributes or makes tensors of its own"
LEFT = {
    "type": (lambda: block(_asks_for_the_type), "its block's forward computes something else"),
    "numpy": (lambda: block(_drops_by_numpy), "its block's forward draws random numbers"),
    "python": (lambda: block(_drops_by_python), "its block's forward draws random numbers"),
    "generator": (
        lambda: block(_drops_by_a_generator),
        "its forward reads chance, a numpy.random._generator.Generator that may change unseen",
    ),
    "own-generator": (
        lambda: block(_drops_by_its_own_generator, chance=random.Random(1)),
        "its forward reads chance, a random.Random that may change unseen",
    ),
    "checkpoint": (
        lambda: block(_checkpoints), "its block's forward computes something else"
    ),
    "checkpoint-in-training": (lambda: block(_checkpoints_in_training), "its block's forward"),
    "saved-on-the-cpu": (
        lambda: block(_keeps_on_the_cpu), "its block's forward keeps less for the backward pass"
    ),
    "list": (lambda: block(_collects, maps=[]), SETS),
    "list-outside": (lambda: block(_collects_outside), "its block's forward changes MAPS"),
    "counter": (lambda: block(_counts, calls=0), SETS),
    "counter-in-a-buffer": (lambda: block(_counts, calls=torch.tensor(0)), SETS),
    "buffer-for-a-switch": (
        lambda: block(_switched_by_a_buffer, on=torch.tensor(True)),
        "its block's forward cannot be traced",
    ),
    "requires-grad": (
        lambda: block(_asks_for_gradients_of_x), "its block's forward cannot be traced"
    ),
    "size": (lambda: block(_asks_for_the_size), "its block's forward cannot be traced"),
    "global-set": (lambda: block(_sets_a_global), "the forward of a block_with_forward.Other sets"),
    "any-arguments": (
        lambda: block(_any_arguments), "its block's forward takes any number of arguments"
    ),
}  # fmt: skip


@pytest.mark.parametrize("make, reason", LEFT.values(), ids=LEFT)
def test_left(make, reason):
    module = make()
    library = copy.deepcopy(module)
    report = fuse(module)
    assert not report.replaced and report.left[0].reason.startswith(reason)
    assert type(module) is type(library) and not MAPS
    assert vars(module).keys() == vars(library).keys() and not getattr(module, "maps", None)
    assert all(torch.equal(*pair) for pair in zip(module.buffers(), library.buffers()))


def test_buffer_that_the_forward_updates():
    library = block(_updates_a_buffer, mean=torch.zeros(C, dtype=torch.float64))
    fused = copy.deepcopy(library)
    assert [entry.covers for entry in fuse(fused).replaced] == [SE]
    assert_same(step(fused, (x,), {}), step(library, (x,), {}))
    assert fused.mean.abs().max() > 0


def test_layers_that_draw_draw_the_same():
    library = block(lambda self, x: F.relu(self.drop(self.branch(x)) + x), drop=nn.Dropout(0.5))
    fused = copy.deepcopy(library)
    assert [entry.covers for entry in fuse(fused).replaced] == [SE]
    torch.manual_seed(5)
    found = step(fused, (x,), {})
    torch.manual_seed(5)
    assert_same(found, step(library, (x,), {}))


# Inputs that cannot be made from the layers


class Patches(nn.Module):
    """Takes a sequence, of which it makes a map."""

    def __init__(self):
        super().__init__()
        self.tail = block(Residual.forward)

    def forward(self, x):
        return self.tail(x.transpose(1, 2).unflatten(2, (6, 5)))


class Deep(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.se = nn.Conv2d(C, C, 1), nn.BatchNorm2d(C), FusedSE(C)

    def forward(self, x):
        y = self.conv(x.transpose(1, 2).unflatten(2, (6, 5)))
        return F.relu(self.se(self.bn(y)) + y)


def test_example_inputs():
    tokens = torch.randn(2, 30, C, dtype=torch.float64)
    module = Deep().double()
    report = fuse(module)
    assert not report.replaced
    assert report.left[0].reason.startswith("no input could be made for its block (")
    for inputs in (tokens, (tokens,)):
        library, fused = copy.deepcopy(module), copy.deepcopy(module)
        assert [entry.covers for entry in fuse(fused, example_inputs=inputs).replaced] == [END]
        assert_same(step(fused, (tokens,), {}), step(library, (tokens,), {}))
    with pytest.raises(IndexError):
        fuse(module, example_inputs=torch.randn(2, 3))
    assert fuse(Patches()).replaced, "the block inside of it takes a map"
