"""The end of a residual block with SE: as networks have it, swapped, fused, and without SE."""

from typing import NamedTuple

from lib.maps import Map
from lib.models import SqueezeExcite
from torch import Tensor, nn

from se_fused import FusedBatchNormSE, FusedSE
from se_fused.functional import squeeze_excite_add_act

_ACTS = {"relu": nn.ReLU, "silu": nn.SiLU}


class Parts(nn.Module):
    """One module after another, in place where timm is.

    But for silu: in place PyTorch copies its input for the backward pass, two passes more.
    """

    def __init__(self, bn: nn.Module, act: nn.Module, se: nn.Module, add: bool):
        super().__init__()
        self.bn, self.act, self.se = bn, act, se
        self.relu = nn.ReLU(inplace=True) if add else None

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        y = self.se(self.act(self.bn(x)))
        if self.relu is None:
            return y
        y += residual
        return self.relu(y)


class SqueezeExciteAddReLU(nn.Module):
    def __init__(self, se: FusedSE):
        super().__init__()
        self.se = se

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        fc1, fc2 = self.se.fc1, self.se.fc2
        return squeeze_excite_add_act(x, residual, fc1.weight, fc1.bias, fc2.weight, fc2.bias)


class Tail(NamedTuple):
    """Which parts there are; each method makes them for a map, parameters in the same order."""

    name: str
    norm: bool = True
    act: str | None = None  # between BatchNorm and SE
    add: bool = False  # a residual, and ReLU then

    def eager(self, map: Map) -> nn.Module:
        return self._parts(map, SqueezeExcite(map.shape[1], map.hidden, _ACTS[map.act]))

    def without_se(self, map: Map) -> nn.Module:
        return self._parts(map, nn.Identity())

    def swapped(self, map: Map) -> nn.Module:
        return self._parts(map, _fused_se(map))

    def fused(self, map: Map) -> nn.Module:
        if not self.norm:
            return SqueezeExciteAddReLU(_fused_se(map))
        return FusedBatchNormSE(
            map.shape[1], act=self.act, add=self.add, post_act="relu" if self.add else None,
            rd_channels=map.hidden, act_layer=_ACTS[map.act],
        )

    def _parts(self, map: Map, se: nn.Module) -> Parts:
        bn = nn.BatchNorm2d(map.shape[1]) if self.norm else nn.Identity()
        act = _ACTS[self.act]() if self.act else nn.Identity()
        return Parts(bn, act, se, self.add)


def _fused_se(map: Map) -> FusedSE:
    return FusedSE(map.shape[1], rd_channels=map.hidden, act_layer=_ACTS[map.act])


RESIDUAL = Tail("BN + SE + add + ReLU", add=True)
MBCONV = Tail("BN + SiLU + SE", act="silu")
AFTER_SE = Tail("SE + add + ReLU", norm=False, add=True)
