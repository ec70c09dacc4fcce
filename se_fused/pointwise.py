"""Layers that are ``F.linear`` over the channels of a map of one position."""

from torch import nn

_POINTWISE = {nn.Linear: None, nn.Conv1d: (1,), nn.Conv2d: (1, 1), nn.Conv3d: (1, 1, 1)}
_NO_PADDING = {"same", "valid", (0,), (0, 0), (0, 0, 0)}
# Convolutions padded to "same", which a kernel of 1 is without padding.
_SAME_PADDED = {
    ("segmentation_models_pytorch.encoders._efficientnet", "Conv2dStaticSamePadding"),
    ("segmentation_models_pytorch.encoders._efficientnet", "Conv2dDynamicSamePadding"),
    ("efficientnet_pytorch.utils", "Conv2dStaticSamePadding"),
    ("efficientnet_pytorch.utils", "Conv2dDynamicSamePadding"),
}


def is_pointwise(layer: nn.Module) -> bool:
    cls = type(layer)
    if cls not in _POINTWISE:
        if (cls.__module__, cls.__qualname__) not in _SAME_PADDED:
            return False
        cls = nn.Conv2d
    one = _POINTWISE[cls]
    return one is None or (
        layer.kernel_size == one and layer.groups == 1 and layer.padding in _NO_PADDING
    )
