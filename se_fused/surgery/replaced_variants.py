"""Replaced modules whose forward is more than SE of a map [N, C, *spatial]."""

import torch
from torch import Tensor, nn

from se_fused.modules.layers import LayerPaths
from se_fused.modules.se import Form, compute
from se_fused.surgery.random_copies import example
from se_fused.surgery.replaced_se import ReplacedSE


class ReplacedChannelsLast(ReplacedSE):
    """SE of a map [N, H, W, C]; the same map as [N, C, H, W] is channels_last, which is native."""

    __is_se_alone__ = False

    @staticmethod
    def __fused__(module, form, found, x):
        return compute(module, x.movedim(-1, 1), form, found).movedim(1, -1)

    @staticmethod
    def __example_map__(module, paths, size, numbers):
        return ReplacedSE.__example_map__(module, paths, size, numbers).movedim(1, -1).contiguous()

    @staticmethod
    def __takes__(form, x):
        return x.shape[-1] == form.channels


class ReplacedSCSE(ReplacedSE):
    """SE beside a spatial gate: ``x * cSE(x) + x * sSE(x)``, the first term fused."""

    __is_se_alone__ = False
    __other_layers__ = ("sSE",)

    @staticmethod
    def __fused__(module, form, found, x):
        return compute(module, x, form, found) + x * module.sSE(x)


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_LAYERS = ("_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_project_conv", "_bn2")


class ReplacedMBConv(ReplacedSE):
    """EfficientNet's block that spells SE out in its forward, with one call for that:
    efficientnet-pytorch's, segmentation-models-pytorch's and MONAI's (1-D to 3-D)."""

    __is_se_alone__ = False
    __other_layers__ = (*_LAYERS, *(f"{name}_padding" for name in _LAYERS))

    @staticmethod
    def __fused__(module, form: Form, found, inputs, drop_connect_rate=None) -> Tensor:
        layers = module._modules

        def convolved(name: str, x: Tensor) -> Tensor:
            padding = layers.get(f"{name}_padding")
            return layers[name](x if padding is None else padding(x))

        x = inputs
        if isinstance(layers.get("_expand_conv"), _CONVOLUTIONS):
            x = module._swish(module._bn0(convolved("_expand_conv", x)))
        x = module._swish(module._bn1(convolved("_depthwise_conv", x)))
        x = compute(module, x, form, found)
        x = module._bn2(convolved("_project_conv", x))
        if _has_skip(module):
            rate = getattr(module, "drop_connect_rate", drop_connect_rate)
            if rate and module.training:
                keep = 1 - rate
                chance = torch.rand(
                    (x.shape[0],) + (1,) * (x.dim() - 1), dtype=x.dtype, device=x.device
                )
                x = x / keep * torch.floor(keep + chance)
            x = x + inputs
        return x

    @staticmethod
    def __bound__(first, args, kwargs):
        if args and len(args) + len(kwargs) <= 2 and kwargs.keys() <= {"drop_connect_rate"}:
            return (*args, *kwargs.values())
        return ReplacedSE.__bound__(first, args, kwargs)

    @staticmethod
    def __takes__(form, x):
        return x.dim() == form.dims

    @staticmethod
    def __example_map__(module: nn.Module, paths: LayerPaths, size: tuple, numbers) -> Tensor:
        first = module._modules.get("_expand_conv")
        if not isinstance(first, _CONVOLUTIONS):
            first = module._depthwise_conv
        return example((3, first.in_channels, *size), numbers)


def _has_skip(module: nn.Module) -> bool:
    own = vars(module)
    if "_has_drop_connect" in own:
        return own["_has_drop_connect"]
    block = own.get("_block_args")
    if block is not None:
        return module.id_skip and block.stride == 1 and block.input_filters == block.output_filters
    return module.id_skip and module.stride == 1 and module.in_channels == module.out_channels
