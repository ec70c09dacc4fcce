"""What a library's SE module becomes: the same object, whose forward is fused.

Only the class of the object changes, to one that inherits from FusedSE and from the class it had.
Its layers, attributes, methods, parameters and state-dict keys are the library's, references to it
stay good, isinstance with the library's class holds, and ``unswap`` gives the class back.
"""

import types
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from se_fused.module import FusedSE, Slots, traced


class Origin(NamedTuple):
    """What makes the class of a swapped module."""

    swapped: type["SwappedSE"]
    library: type[nn.Module]
    slots: Slots


class SwappedSE(FusedSE):
    """A library's SE module with FusedSE's forward; comes before the library's class."""

    origin: Origin
    beside = ()  # children that the forward below calls, beside the slots'

    def _fused(self, x: Tensor) -> Tensor:
        dims = self._layer(self.slots.fc1).weight.dim()
        if dims > 2 and x.dim() != dims:
            raise ValueError(
                f"x must have {dims} dims, batch included, as its 1×1 convolutions have; "
                f"got shape {tuple(x.shape)}"
            )
        return super()._fused(x)

    def example_map(self, size: tuple[int, ...]) -> Tensor:
        """A map that the module takes, for the test before the swap."""
        channels = self._layer(self.slots.fc1).weight.shape[1]
        return torch.randn(3, channels, *size, dtype=torch.float64, device="cpu")

    def __reduce_ex__(self, protocol):
        return _rebuild, self.origin, vars(self)


class SwappedChannelsLast(SwappedSE):
    """SE of a map [N, H, W, C]; the same map as [N, C, H, W] is channels_last, which is native."""

    takes_a_plain_map = False

    def _fused(self, x: Tensor) -> Tensor:
        return super()._fused(x.movedim(-1, 1)).movedim(1, -1)

    def example_map(self, size):
        return super().example_map(size).movedim(1, -1).contiguous()


class SwappedSCSE(SwappedSE):
    """SE beside a spatial gate: ``x * cSE(x) + x * sSE(x)``, the first term fused."""

    takes_a_plain_map = False
    beside = ("sSE",)

    def _fused(self, x: Tensor) -> Tensor:
        return super()._fused(x) + x * self.sSE(x)


class SwappedMBConv(SwappedSE):
    """An EfficientNet block whose forward spells its SE out; here it calls the fused one."""

    takes_a_plain_map = False
    beside = ("_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_project_conv", "_bn2")

    def forward(self, inputs: Tensor, drop_connect_rate: float | None = None) -> Tensor:
        if isinstance(inputs, torch.fx.Proxy):
            return traced(self, inputs, drop_connect_rate)
        x = inputs
        if isinstance(self._modules.get("_expand_conv"), nn.Conv2d):
            x = self._swish(self._bn0(self._expand_conv(x)))
        x = self._swish(self._bn1(self._depthwise_conv(x)))
        x = self._fused(x)
        x = self._bn2(self._project_conv(x))
        if self._has_skip():
            if drop_connect_rate and self.training:
                keep = 1 - drop_connect_rate
                chance = torch.rand((x.shape[0], 1, 1, 1), dtype=x.dtype, device=x.device)
                x = x / keep * torch.floor(keep + chance)
            x = x + inputs
        return x

    def _has_skip(self) -> bool:
        if "_has_drop_connect" in vars(self):
            return self._has_drop_connect
        block = self._block_args
        return self.id_skip and block.stride == 1 and block.input_filters == block.output_filters

    def example_map(self, size):
        first = self._modules.get("_expand_conv")
        if not isinstance(first, nn.Conv2d):
            first = self._depthwise_conv
        return torch.randn(3, first.in_channels, *size, dtype=torch.float64, device="cpu")


@cache
def _swapped_class(swapped: type[SwappedSE], library: type[nn.Module], slots: Slots) -> type:
    members = {
        "origin": Origin(swapped, library, slots),
        "slots": slots,
        "__module__": swapped.__module__,
        "__doc__": swapped.__doc__,
    }
    return types.new_class(
        f"Fused{library.__name__}", (swapped, library), exec_body=lambda body: body.update(members)
    )


def _rebuild(*origin) -> nn.Module:
    """An empty module of the class, for pickle and deepcopy."""
    return nn.Module.__new__(_swapped_class(*origin))


def swap(module: nn.Module, swapped: type[SwappedSE], slots: Slots):
    """Fuses the forward of a module, in place."""
    module.__class__ = _swapped_class(swapped, type(module), slots)


def unswap(module: SwappedSE):
    module.__class__ = module.origin.library
