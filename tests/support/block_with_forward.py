"""A residual block with SE and any forward, and a step of it, for the tests of its verification."""

import torch
import torch.nn.functional as F
from residual_blocks import C
from torch import nn

from se_fused import FusedSE

END, SE = "BatchNorm + SE + add + relu", "BatchNorm + SE"


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


def feature_map(batch=2):
    return torch.randn(batch, C, 6, 5, dtype=torch.float64)


def step(module, args, kwargs):
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
