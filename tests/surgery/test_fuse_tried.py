"""What one trace of a block's forward does not show: fuse tries it, and never lies about it.

Each block is called in the ways it can be; what fuse made of it must give what it gave.
"""

import copy
import random
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from residual_blocks import C, assert_same, recorded_calls
from torch import nn
from torch.utils.checkpoint import checkpoint

from se_fused import FusedSE, fuse

END, SE = "BatchNorm + SE + add + relu", "BatchNorm + SE"
MAPS, SWITCHES = [], {"skip": True}
chance = np.random.default_rng(0)


class Switch:
    on = True


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.se = nn.Conv2d(C, C, 3, padding=1), nn.BatchNorm2d(C), FusedSE(C)

    def branch(self, x):
        return self.se(self.bn(self.conv(x)))

    def forward(self, x):
        return F.relu(self.branch(x) + x)


def block(forward, **attributes):
    """A block with another forward, and with attributes of its own."""
    made = type("Other", (Residual,), {"forward": forward})().double()
    for name, value in attributes.items():
        if isinstance(value, torch.Tensor):
            made.register_buffer(name, value)
        else:
            setattr(made, name, value)
    return made


def feature_map(batch=2, **options):
    return torch.randn(batch, C, 6, 5, dtype=torch.float64, **options)


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
                found = _step(fused.train(training), args, kwargs)
            assert bool(calls) == is_fused
            assert not (said and is_fused)
            assert_same(found, _step(library.train(training), args, kwargs))


def _step(module, args, kwargs):
    """The results, the gradients of what it was given and of its parameters, and its buffers."""
    leaves = []

    def leaf(value):
        if not isinstance(value, torch.Tensor):
            return value
        leaves.append(value.clone().requires_grad_())
        return leaves[-1] * 1

    args, kwargs = [leaf(v) for v in args], {name: leaf(v) for name, v in kwargs.items()}
    y = module(*args, **kwargs)
    y = y[0] if isinstance(y, tuple) else y
    wanted = [*leaves, *module.parameters()]
    gradients = torch.autograd.grad(y.square().sum(), wanted, allow_unused=True)
    return [y.detach(), *gradients, *(b.clone() for b in module.buffers())]


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
    "global-set": (lambda: block(_sets_a_global), "the forward of a test_fuse_tried.Other sets"),
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
    assert_same(_step(fused, (x,), {}), _step(library, (x,), {}))
    assert fused.mean.abs().max() > 0


def test_layers_that_draw_draw_the_same():
    library = block(lambda self, x: F.relu(self.drop(self.branch(x)) + x), drop=nn.Dropout(0.5))
    fused = copy.deepcopy(library)
    assert [entry.covers for entry in fuse(fused).replaced] == [SE]
    torch.manual_seed(5)
    found = _step(fused, (x,), {})
    torch.manual_seed(5)
    assert_same(found, _step(library, (x,), {}))


# What the forward reads, changed after the fusion: its own runs, and says so.


def _scaled(self, x):
    return F.relu(self.branch(x) * self.scale + x) if self.options["skip"][0] else self.branch(x)


def _switched_outside(self, x):
    return F.relu(self.branch(x) + x) if SWITCHES["skip"] and Switch.on else self.branch(x)


def _without_the_norm(self, x):
    y = self.conv(x)
    return F.relu(self.se(self.bn(y) if self.bn is not None else y) + x)


def _scaled_block():
    return block(_scaled, scale=2.0, options={"skip": [True]})


CHANGES = {
    "attribute": (_scaled_block, lambda m: setattr(m, "scale", 3.0), "scale is 3.0 now"),
    "inside-of-an-attribute": (
        _scaled_block, lambda m: m.options["skip"].__setitem__(0, False), "options is"
    ),
    "child-set-to-none": (
        lambda: block(_without_the_norm), lambda m: setattr(m, "bn", None), "bn is None now"
    ),
    "method-of-its-own": (
        lambda: block(Residual.forward), lambda m: setattr(m, "branch", m.conv.forward),
        "branch has been set",
    ),
    "class-s-forward": (
        lambda: block(Residual.forward),
        lambda m: setattr(type(m).__made_of__[1] if hasattr(m, "__fusion__") else type(m),
                          "forward", lambda self, x: x * 2),
        "the forward of test_fuse_tried.Other is another",
    ),
}  # fmt: skip


@pytest.mark.parametrize("make, change, word", CHANGES.values(), ids=CHANGES)
def test_changed_later(make, change, word):
    module = make()
    library = copy.deepcopy(module)
    assert fuse(module).replaced
    change(library)
    change(module)
    with pytest.warns(UserWarning, match=word) as said:
        assert_same(_step(module, (x,), {}), _step(library, (x,), {}))
        module(x)
    assert len(said) == 1


OUTSIDE = {"global": (SWITCHES, "skip"), "class": (vars(Switch), "on")}


@pytest.mark.parametrize("where", ["dict", "class"])
def test_changed_outside(monkeypatch, where):
    library = block(_switched_outside)
    module = copy.deepcopy(library)
    assert fuse(module).replaced
    if where == "dict":
        monkeypatch.setitem(SWITCHES, "skip", False)
    else:
        monkeypatch.setattr(Switch, "on", False)
    with pytest.warns(UserWarning, match="library's forward, unfused"):
        assert_same(_step(module, (x,), {}), _step(library, (x,), {}))


def test_fused_again_after_a_change():
    module = _scaled_block()
    library = copy.deepcopy(module)
    fuse(module)
    module.scale = library.scale = 3.0
    report = fuse(module)
    assert len(report.replaced) == 1 and not report.left
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(_step(module, (x,), {}), _step(library, (x,), {}))


def test_what_broke_a_fusion_is_why_it_is_left():
    module = block(Residual.forward)
    fuse(module)
    module.bn.register_forward_hook(lambda *arguments: None)
    report = fuse(module)
    assert [entry.reason for entry in report.left] == ["bn has hooks"]


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
        assert_same(_step(fused, (tokens,), {}), _step(library, (tokens,), {}))
    with pytest.raises(IndexError):
        fuse(module, example_inputs=torch.randn(2, 3))
    assert fuse(Patches()).replaced, "the block inside of it takes a map"


def test_se_that_is_hooked_in_a_fused_block():
    module = block(Residual.forward)
    fuse(module)
    seen = []
    module.se.fc1.register_forward_hook(lambda *arguments: seen.append(1))
    with pytest.warns(UserWarning, match="FusedSE runs apart from the layers around it"):
        module(x)
    module(x)
    assert len(seen) == 2
    report = fuse(module)
    assert [entry.reason for entry in report.left] == ["it does not run as one operator"]
