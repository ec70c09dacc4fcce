"""SE that calls its activation or gate as a function is found, and replaced right."""

import copy
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from module_cases import Count
from near_misses import C, InFile, Layers, One, hard, mean, on_vectors, se
from torch import nn

from se_fused import FusedSE, insert_se, replace_se, restore_se

sigmoid = torch.sigmoid


def conv3d(inputs, outputs):
    return nn.Conv3d(inputs, outputs, 1)


def of_module_act(self, x):
    return x * self.expand(self.act(self.reduce(mean(x)))).sigmoid()


def of_module_gate(self, x):
    return x * self.gate(self.expand(F.relu(self.reduce(mean(x)))))


def of_3d(self, x):
    return x * sigmoid(self.expand(F.relu(self.reduce(F.adaptive_avg_pool3d(x, 1)))))


def in_place(self, x):
    p = F.relu(self.reduce(mean(x)), inplace=True)
    return x.mul(self.expand(p).sigmoid_())


# How to make one, and the sizes of a map; the last: whether all of it is one operator.
FOUND = {
    "relu-sigmoid": (lambda: Layers(se(F.relu, sigmoid)), (5, 7), True),
    "method-of-tensor": (lambda: Layers(se(torch.relu, lambda p: p.sigmoid())), (5, 7), True),
    "in-place": (lambda: Layers(in_place), (5, 7), True),
    "silu-hardsigmoid": (lambda: Layers(se(F.silu, F.hardsigmoid, mean)), (5, 7), True),
    "hardswish-of-relu6": (
        lambda: Layers(se(lambda p: p * F.relu6(p + 3) / 6, hard, mean)), (5, 7), True
    ),
    "leaky-tanh": (lambda: Layers(se(F.leaky_relu, torch.tanh)), (5, 7), True),
    "gelu-relu": (lambda: Layers(se(F.gelu, F.relu)), (5, 7), True),
    "no-act": (lambda: Layers(se(lambda p: p, sigmoid)), (5, 7), True),
    "no-gate": (lambda: Layers(se(F.silu, lambda p: p)), (5, 7), True),
    "linear": (lambda: Layers(on_vectors(F.relu, sigmoid), nn.Linear), (5, 7), True),
    "linear-1d": (lambda: Layers(on_vectors(F.relu, sigmoid), nn.Linear), (9,), True),
    "conv-3d": (lambda: Layers(of_3d, conv3d), (3, 4, 2), True),
    "act-is-a-module": (lambda: Layers(of_module_act, act=nn.ReLU(True)), (5, 7), True),
    "gate-is-a-module": (lambda: Layers(of_module_gate, gate=nn.Hardsigmoid()), (5, 7), True),
    "one-layer": (lambda: One(lambda self, x: x * hard(self.fc(mean(x)))), (5, 7), False),
    "wide-hidden": (lambda: Layers(se(F.relu, sigmoid), width=40), (5, 7), True),
}  # fmt: skip


def double(make):
    torch.manual_seed(3)
    return nn.Sequential(make()).double()


def result_and_gradients(net, x):
    x = x.clone().requires_grad_()
    y = net(x)
    return [y, *torch.autograd.grad(y.square().sum(), [x, *net.parameters()])]


@pytest.mark.parametrize("make, size, is_whole", FOUND.values(), ids=FOUND)
def test_found(make, size, is_whole):
    net = double(make)
    library = copy.deepcopy(net)
    report = replace_se(net)
    assert [entry.name for entry in report.replaced] == ["0"] and not report.left
    assert isinstance(net[0], FusedSE)
    for scale in (1, 20):  # beyond the bounds of the hard functions
        x = scale * torch.randn(3, C, *size, dtype=torch.float64)
        with Count() as count, warnings.catch_warnings():
            warnings.simplefilter("error")
            found = result_and_gradients(net, x)
        expected = result_and_gradients(library, x)
        for ours, theirs in zip(found, expected, strict=True):
            # PyTorch's own hardsigmoid has a float32 1/6 in its float64 gradient.
            most = theirs.abs().max()
            torch.testing.assert_close(ours / most, theirs / most, rtol=0, atol=1e-7)
        assert ("squeeze_excite" if is_whole else "apply_forward") in count.called
    restore_se(net)
    assert torch.equal(net(x), library(x))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))],
                         ids=["deepcopy", "pickle"])
def test_copy_of_one_with_functions(duplicate):
    net = double(InFile)
    library = copy.deepcopy(net)
    assert len(replace_se(net).replaced) == 1
    twin = duplicate(net)
    x = torch.randn(2, C, 4, 3, dtype=torch.float64)
    with Count() as count:
        torch.testing.assert_close(twin(x), library(x), rtol=1e-12, atol=1e-12)
    assert count.called == ["squeeze_excite"]


def auto_encoder(self, x):
    return sigmoid(self.expand(F.relu(self.reduce(x))))


def test_insert_se_finds_one_with_functions():
    net = nn.Sequential(nn.Conv2d(3, C, 3), InFile())
    with pytest.raises(ValueError, match="model must have no SE; 1 is a .*InFile"):
        insert_se(net, blocks=lambda name, module: C if name == "0" else None)
    added = insert_se(
        nn.Sequential(nn.Conv2d(3, C, 1), Layers(auto_encoder)),
        blocks=lambda name, module: C if name == "0" else None,
    )
    assert len(added.replaced) == 1
