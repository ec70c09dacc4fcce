"""The table of SE modules that ``replace_se`` knows; a family is a row.

Rows name classes by their path, so that no library needs to be installed. A fused class keeps the
attribute names of its family: checkpoints load strictly both ways.
"""

from se_fused.module import FusedSE, Slots


class FusedSEConvReduce(FusedSE):
    """timm's ``SqueezeExcite`` of the EfficientNet and MobileNetV3 families."""

    slots = Slots("conv_reduce", "act1", "conv_expand", "gate", None)


class FusedSELegacy(FusedSE):
    """timm's ``SEModule`` of the legacy SENet models."""

    slots = Slots("fc1", "relu", "fc2", "sigmoid", None)


class FusedSETorchvision(FusedSE):
    """torchvision's ``SqueezeExcitation``."""

    slots = Slots("fc1", "activation", "fc2", "scale_activation", None)


FAMILIES: dict[str, type[FusedSE]] = {
    "timm.layers.squeeze_excite.SEModule": FusedSE,
    "timm.models._efficientnet_blocks.SqueezeExcite": FusedSEConvReduce,
    "timm.models.senet.SEModule": FusedSELegacy,
    "torchvision.ops.misc.SqueezeExcitation": FusedSETorchvision,
}
