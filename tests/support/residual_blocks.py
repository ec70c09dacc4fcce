"""Residual blocks with SE whose steps a test may replace, and what a step with them gives."""

import torch
from torch import nn

from se_fused import FusedSE
from se_fused.surgery import fuse, fused_end
from se_fused.tracing import must_decompose

C = 24


class Block(nn.Module):
    """A residual block; its parts and its steps are to be replaced by the tests."""

    def __init__(self, **parts):
        super().__init__()
        self.conv, self.bn, self.se = nn.Conv2d(C, C, 3, padding=1), nn.BatchNorm2d(C), FusedSE(C)
        self.act, self.drop_path, self.relu = nn.Identity(), nn.Identity(), nn.ReLU()
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        y = self.drop_path(self.se(self.act(self.bn(self.conv(x)))))
        y += x
        return self.relu(y)


def block_with(forward, **parts):
    return type("Other", (Block,), {"forward": forward})(**parts)


class Unit(nn.Module):
    """A convolution and its norm."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(C, C, 3, padding=1), nn.BatchNorm2d(C)

    def forward(self, x):
        return self.bn(self.conv(x))


class Net(nn.Module):
    """A block between convolutions."""

    def __init__(self, block):
        super().__init__()
        self.stem, self.block, self.head = nn.Conv2d(3, C, 1), block, nn.Conv2d(C, 2, 1)

    def forward(self, x):
        return self.head(self.block(self.stem(x)))


def images(batch=3, dtype=torch.float64):
    return torch.randn(batch, 3, 6, 5, dtype=dtype)


def fused_net(**parts):
    net = Net(Block(**parts)).double()
    assert len(fuse(net).replaced) == 1
    return net


def step(net, x):
    """The result, the gradients of x and of all parameters, and the buffers after the step."""
    x = x.clone().requires_grad_()
    y = net(x)
    gradients = torch.autograd.grad(
        y.square().sum(), [x, *net.parameters()], allow_unused=True, materialize_grads=True
    )
    return [y.detach(), *gradients, *(b.clone() for b in net.buffers())]


def assert_same(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def assert_same_steps(found, expected):
    found.train(), expected.train()
    for _ in range(2):
        x = images()
        assert_same(step(found, x), step(expected, x))
    found.eval(), expected.eval()
    assert_same(found(x), expected(x))


def recorded_calls(monkeypatch):
    """The modules of each fused call, of blocks fused from now on; not while they are verified."""
    calls, function = [], fused_end.fused

    def fused(bn, act, se, *others):
        if not must_decompose():
            calls.append((bn, act, se))
        return function(bn, act, se, *others)

    monkeypatch.setattr(fused_end, "fused", fused)
    return calls
