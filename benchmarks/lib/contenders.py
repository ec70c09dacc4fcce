"""The SE blocks that FusedSE is measured against, all with the same weights."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from lib.maps import Map
from lib.verification import copy_weights
from torch import nn

from se_fused import FusedSE

_FUNCTIONS = {
    "relu": F.relu, "silu": F.silu, "sigmoid": torch.sigmoid, "hardsigmoid": F.hardsigmoid
}
_MODULES = {"relu": nn.ReLU, "silu": nn.SiLU, "sigmoid": nn.Sigmoid, "hardsigmoid": nn.Hardsigmoid}


class FunctionalSE(nn.Module):
    """The block as one writes it by hand, with linear layers, for maps of any rank."""

    def __init__(self, channels, hidden, act="relu", gate="sigmoid"):
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)
        self.act, self.gate = _FUNCTIONS[act], _FUNCTIONS[gate]

    def forward(self, x):
        z = x.mean(tuple(range(2, x.dim())))
        g = self.gate(self.fc2(self.act(self.fc1(z))))
        return x * g.view(g.shape + (1,) * (x.dim() - 2))


def timm(map: Map) -> nn.Module:
    from timm.layers import SEModule

    return SEModule(
        map.shape[1], rd_channels=map.hidden,
        act_layer=_MODULES[map.act], gate_layer=_MODULES[map.gate],
    )


def torchvision(map: Map) -> nn.Module:
    from torchvision.ops import SqueezeExcitation

    return SqueezeExcitation(
        map.shape[1], map.hidden,
        activation=_MODULES[map.act], scale_activation=_MODULES[map.gate],
    )


def functional(map: Map) -> nn.Module:
    return FunctionalSE(map.shape[1], map.hidden, map.act, map.gate)


EAGER: dict[str, Callable[[Map], nn.Module]] = {
    "timm": timm,
    "torchvision": torchvision,
    "functional": functional,
}
COMPILED = {f"{name}, compiled": make for name, make in EAGER.items()}


def fused(map: Map) -> nn.Module:
    return FusedSE(
        map.shape[1], rd_channels=map.hidden,
        act_layer=_MODULES[map.act], gate_layer=_MODULES[map.gate],
    )


def takes(name: str, map: Map) -> bool:
    """timm's and torchvision's blocks are for images."""
    return len(map.shape) == 4 or name.startswith("functional")


def pair(name: str, map: Map, dtype: torch.dtype, device) -> tuple[nn.Module, nn.Module]:
    """A contender and FusedSE with the same weights."""
    make = EAGER.get(name) or COMPILED[name]
    ours = fused(map).to(device, dtype)
    theirs = make(map).to(device, dtype)
    copy_weights(theirs, ours)
    if name in COMPILED:
        torch._dynamo.reset()
        theirs = torch.compile(theirs, fullgraph=True, dynamic=False)
    return theirs, ours
