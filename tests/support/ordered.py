"""A network for the order of replace_se and fuse and of what else is done to a model."""

import warnings

import torch
from module_cases import Count
from residual_blocks import Block, C
from se_modules import Moskomule
from torch import nn

from se_fused import fuse, replace_se

# What a fused block and an SE module by itself call, in training.
BLOCK = {"merge_moments", "excite"}
SE = {"squeeze_excite"}
WHOLE = BLOCK | SE


class Network(nn.Module):
    """A block that is fused, and SE that is swapped alone."""

    def __init__(self):
        super().__init__()
        self.stem, self.block = nn.Conv2d(3, C, 1), Block(se=Moskomule())
        self.alone, self.head = Moskomule(), nn.Conv2d(C, 2, 1)

    def forward(self, x):
        return self.head(self.alone(self.block(self.stem(x))))


def network(seed=0):
    """Its running statistics are not those of a new one."""
    torch.manual_seed(seed)
    net = Network().double()
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(), norm.running_var.uniform_(0.5, 1.5)
    return net


def surgery(net) -> list[str]:
    """Both, and the reasons why SE was left."""
    reports = replace_se(net), fuse(net)
    return [entry.reason for report in reports for entry in report.left]


def step(net, x) -> list[torch.Tensor]:
    """The result, the gradients of x and of all parameters, and the buffers after a step."""
    x = x.clone().requires_grad_()
    net.zero_grad()
    y = net(x)
    y.square().sum().backward()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in net.parameters()]
    return [y.detach(), x.grad, *gradients, *(b.clone() for b in net.buffers())]


def observed(function, *arguments):
    """What a function returns, our operators that it calls forward, and what it warns of."""
    with warnings.catch_warnings(record=True) as said, Count() as count:
        warnings.simplefilter("always")
        found = function(*arguments)
    called = {name for name in vars(count).get("called", []) if name in WHOLE}
    return found, called, [str(w.message) for w in said if "fused" in str(w.message)]
