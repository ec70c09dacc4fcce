"""Small networks with SE blocks and their twins in plain PyTorch: equal names, equal parameters.

For the tests of what PyTorch does with whole networks: capture, transform, distribute, train them.
"""

import copy
from functools import partial

import pytest
import torch
from se_modules import Cadene, Moskomule
from torch import Tensor, nn

from se_fused import FusedSE, replace_se

C, R = 24, 6


class PlainSE(nn.Module):
    """FusedSE with these arguments, as users write it."""

    def __init__(self, norm_layer=nn.Identity, add_maxpool=False):
        super().__init__()
        self.add_maxpool = add_maxpool
        self.fc1, self.bn, self.act = nn.Conv2d(C, R, 1), norm_layer(R), nn.ReLU()
        self.fc2, self.gate = nn.Conv2d(R, C, 1), nn.Sigmoid()

    def forward(self, x):
        z = x.mean((2, 3), keepdim=True)
        if self.add_maxpool:
            z = 0.5 * z + 0.5 * x.amax((2, 3), keepdim=True)
        return x * self.gate(self.fc2(self.act(self.bn(self.fc1(z)))))


class Net(nn.Module):
    """Two SE blocks, convolutions around them, a linear head on the mean."""

    def __init__(self, first, second):
        super().__init__()
        self.stem = nn.Conv2d(3, C, 3, padding=1, bias=False)
        self.first, self.act = first, nn.Tanh()
        self.conv = nn.Conv2d(C, C, 3, padding=1)
        self.blocks = nn.Sequential(second)
        self.head = nn.Linear(C, 5)

    def forward(self, x):
        x = self.act(self.first(self.stem(x)))
        return self.head(self.blocks(self.conv(x)).mean((2, 3)))


COMPOSED = dict(norm_layer=nn.BatchNorm2d, add_maxpool=True)
# By kind: the SE blocks of the plain twin, and of the fused one unless they are swapped into it.
KINDS = {
    "one-operator": ((PlainSE, PlainSE), (partial(FusedSE, C, rd_channels=R),) * 2),
    "composed": (
        (partial(PlainSE, **COMPOSED), partial(PlainSE, add_maxpool=True)),
        (
            partial(FusedSE, C, rd_channels=R, **COMPOSED),
            partial(FusedSE, C, rd_channels=R, squeeze="avg_max"),
        ),
    ),
    "swapped": ((Moskomule, Cadene), None),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def twins(kind: str, dtype=torch.float64, device="cpu") -> tuple[Net, Net]:
    """The plain network and the fused one, with the same random parameters."""
    (first, second), fused_blocks = KINDS[kind]
    plain = Net(first(), second()).to(device, dtype)
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.normal_(std=0.4)
    if fused_blocks is None:
        fused = copy.deepcopy(plain)
        assert len(replace_se(fused).replaced) == 2
    else:
        fused = Net(*(make() for make in fused_blocks)).to(device, dtype)
        fused.load_state_dict(plain.state_dict())
    assert isinstance(fused.first, FusedSE)
    return plain, fused


def images(batch=4, size=(6, 5), dtype=torch.float64, device="cpu") -> Tensor:
    return torch.randn(batch, 3, *size, dtype=torch.float64).to(device, dtype)


def gradients(net: nn.Module, x: Tensor, function=None) -> dict[str, Tensor]:
    """The result, and the gradients of x and of every parameter, by name."""
    x = x.detach().requires_grad_()
    net.zero_grad()
    y = (net if function is None else function)(x)
    y.square().sum().backward()
    found = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    return {"y": y.detach(), "dx": x.grad} | found


def assert_same(found, expected, rtol=1e-10):
    torch.testing.assert_close(found, expected, rtol=rtol, atol=rtol / 10)
