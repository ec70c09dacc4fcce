"""The table of SE modules that ``replace_se`` knows by class; a family is a row.

Classes are named by their path, so that no library needs to be installed. SE modules of other
classes are found by their layers (``surgery/structure.py``), and all are tried before they are
swapped (``surgery/trial.py``).
"""

from operator import attrgetter
from typing import NamedTuple

import torch
from torch import Tensor, nn

from se_fused.modules.layers import Slots
from se_fused.surgery.report import path_of
from se_fused.surgery.swapped import SwappedChannelsLast, SwappedSCSE, SwappedSE


class Family(NamedTuple):
    """Classes of one form: where they have their layers, and what they become."""

    classes: tuple[str, ...]
    slots: Slots
    swapped: type[SwappedSE] = SwappedSE


def clamp_gate(p: Tensor) -> Tensor:
    """PaddlePaddle's hard sigmoid: slope 0.2, where torch's has 1/6."""
    return torch.clamp(0.2 * p + 0.5, 0.0, 1.0)


FAMILIES = (
    Family(("timm.layers.squeeze_excite.SEModule",), Slots()),
    Family(
        ("timm.models._efficientnet_blocks.SqueezeExcite",),
        Slots("conv_reduce", "act1", "conv_expand", "gate", None),
    ),
    Family(
        ("timm.layers.squeeze_excite.EffectiveSEModule",),
        Slots("fc", None, None, "gate", None),
    ),
    Family(("timm.models.hgnet.EseModule",), Slots("conv", None, None, "sigmoid", None)),
    Family(
        ("timm.layers.squeeze_excite.SqueezeExciteCl",),
        Slots(norm=None),
        SwappedChannelsLast,
    ),
    Family(
        (
            "timm.models.senet.SEModule",
            "pretrainedmodels.models.senet.SEModule",
            "segmentation_models_pytorch.encoders._senet.SEModule",
        ),
        Slots("fc1", "relu", "fc2", "sigmoid", None),
    ),
    Family(
        ("torchvision.ops.misc.SqueezeExcitation",),
        Slots("fc1", "activation", "fc2", "scale_activation", None),
    ),
    Family(
        (
            "monai.networks.blocks.squeeze_and_excitation.ChannelSELayer",
            "monai.networks.blocks.squeeze_and_excitation.ResidualSELayer",
            "senet.se_module.SELayer",
        ),
        Slots("fc.0", "fc.1", "fc.2", "fc.3", None),
    ),
    Family(
        ("segmentation_models_pytorch.base.modules.SCSEModule",),
        Slots("cSE.1", "cSE.2", "cSE.3", "cSE.4", None),
        SwappedSCSE,
    ),
    Family(
        ("segmentation_models_pytorch.encoders.mobileone.SEBlock",),
        Slots("reduce", torch.relu, "expand", torch.sigmoid, None),
    ),
    Family(
        (
            "transformers.models.efficientnet.modeling_efficientnet.EfficientNetSqueezeExciteLayer",
            "transformers.models.align.modeling_align.AlignVisionSqueezeExciteLayer",
        ),
        Slots("reduce", "act_reduce", "expand", "act_expand", None),
    ),
    Family(
        ("transformers.models.regnet.modeling_regnet.RegNetSELayer",),
        Slots("attention.0", "attention.1", "attention.2", "attention.3", None),
    ),
    Family(
        (
            "transformers.models.pp_lcnet.modeling_pp_lcnet.PPLCNetSqueezeExcitationModule",
            "transformers.models.pp_lcnet_v3.modeling_pp_lcnet_v3.PPLCNetV3SqueezeExcitationModule",
            "transformers.models.pp_lcnet_v4.modeling_pp_lcnet_v4.PPLCNetV4SqueezeExcitationModule",
        ),
        Slots("convolutions.0", "convolutions.1", "convolutions.2", "convolutions.3", None),
    ),
    Family(
        (
            "transformers.models.pp_ocrv5_mobile_det.modeling_pp_ocrv5_mobile_det"
            ".PPOCRV5MobileDetSqueezeExcitationModule",
            "transformers.models.pp_ocrv6_small_det.modeling_pp_ocrv6_small_det"
            ".PPOCRV6SmallDetSqueezeExcitationModule",
        ),
        Slots("conv1", "act_fn", "conv2", clamp_gate, None),
    ),
    Family(
        ("transformers.models.qwen2_5_omni.modeling_qwen2_5_omni.SqueezeExcitationBlock",),
        Slots("conv1", "relu", "conv2", "sigmoid", None),
    ),
    Family(
        (
            "mmpretrain.models.utils.se_layer.SELayer",
            "mmdet.models.layers.se_layer.SELayer",
        ),
        Slots("conv1.conv", "conv1.activate", "conv2.conv", "conv2.activate", None),
    ),
    Family(
        ("mmdet.models.layers.se_layer.ChannelAttention",),
        Slots("fc", None, None, "act", None),
    ),
    Family(
        ("composer.algorithms.squeeze_excite.squeeze_excite.SqueezeExcite2d",),
        Slots("pool_and_mlp.2", "pool_and_mlp.3", "pool_and_mlp.4", "pool_and_mlp.5", None),
    ),
    Family(
        ("image_classification.models.common.SequentialSqueezeAndExcitation",),
        Slots("squeeze", "activation", "expand", "sigmoid", None),
    ),
    Family(
        ("geffnet.efficientnet_builder.SqueezeExcite",),
        Slots("conv_reduce", "act1", "conv_expand", "gate_fn", None),
    ),
    Family(
        ("pytorchcv.models.common.att.SEBlock",),
        Slots("conv1", "activ", "conv2", "sigmoid", None),
    ),
    Family(
        ("catalyst.contrib.layers.se.cSE",),
        Slots("linear1", torch.relu, "linear2", torch.sigmoid, None),
    ),
    Family(
        ("src.models.tresnet_v2.layers.squeeze_and_excite.SEModule",),
        Slots("fc1", "relu", "fc2", "activation", None),
    ),
)

# SE that cannot be swapped, and why.
LEFT = {
    "nemo.collections.asr.parts.submodules.jasper.SqueezeExcite": (
        "its mean leaves out the padding of each sample; FusedSE's mean is over the whole map"
    ),
    "speechbrain.lobes.models.ECAPA_TDNN.SEBlock": (
        "its mean leaves out the padding of each sample; FusedSE's mean is over the whole map"
    ),
    "image_classification.models.common.SqueezeAndExcitation": (
        "it returns the gate; its caller multiplies"
    ),
    "torchvision.models.quantization.mobilenetv3.QuantizableSqueezeExcitation": (
        "it is quantizable: quantization needs its own multiplication"
    ),
}

BY_CLASS = {path: family for family in FAMILIES for path in family.classes}
_NAMES = {path.rpartition(".")[2] for path in (*BY_CLASS, *LEFT)}


def known_family(module: nn.Module) -> tuple[Family | None, str | None]:
    """The family of a module by its class, or why a module of that class is left."""
    if isinstance(module, torch.jit.ScriptModule):
        is_known = getattr(module, "original_name", None) in _NAMES
        return None, "it is compiled by torch.jit" if is_known else None
    path = path_of(type(module))
    if path in LEFT:
        return None, LEFT[path]
    family = BY_CLASS.get(path)
    if family is not None:
        # With other layers it is of another version; it may still be found by its layers.
        return (family if _has_layers(module, family.slots) else None), None
    for base in map(path_of, type(module).__mro__[1:]):
        if base in BY_CLASS or base in LEFT:
            return None, f"it is a subclass of {base}, whose forward may differ"
    return None, None


def _has_layers(module: nn.Module, slots: Slots) -> bool:
    try:
        for slot in slots:
            if isinstance(slot, str):
                attrgetter(slot)(module)
    except Exception:  # whatever a library's property raises
        return False
    return True
