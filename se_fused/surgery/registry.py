"""What se_fused knows of libraries: SE modules, and the layers that stand in and around them.

Classes are named by their path, so that no library needs to be installed; a row is added here, and
nowhere else. SE modules of other classes are found by their layers (``find_se.py``), and all are
verified before they are replaced (``verify.py``). The networks of ``insert_se`` are a table of
their own (``networks.py``).
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from se_fused import activations
from se_fused.modules import layers
from se_fused.modules.layers import LayerPaths
from se_fused.surgery.replaced_se import ReplacedSE
from se_fused.surgery.replaced_variants import (
    ReplacedChannelsLast,
    ReplacedMBConv,
    ReplacedSCSE,
)


class Family(NamedTuple):
    """Classes of one form: where they have their layers, and what they become."""

    classes: tuple[str, ...]
    paths: LayerPaths
    kind: type[ReplacedSE] = ReplacedSE


def clamp_gate(p: Tensor) -> Tensor:
    """PaddlePaddle's hard sigmoid: slope 0.2, where torch's has 1/6."""
    return torch.clamp(0.2 * p + 0.5, 0.0, 1.0)


def _at(fc1: str, act, fc2: str | None, gate) -> LayerPaths:
    return LayerPaths(fc1, act, fc2, gate, norm=None)


_HF = "transformers.models"
FAMILIES = (
    Family(("timm.layers.squeeze_excite.SEModule",), LayerPaths()),
    Family(("timm.models._efficientnet_blocks.SqueezeExcite",),
           _at("conv_reduce", "act1", "conv_expand", "gate")),
    Family(("timm.layers.squeeze_excite.EffectiveSEModule",), _at("fc", None, None, "gate")),
    Family(("timm.models.hgnet.EseModule",), _at("conv", None, None, "sigmoid")),
    Family(("timm.layers.squeeze_excite.SqueezeExciteCl",),
           _at("fc1", "act", "fc2", "gate"), ReplacedChannelsLast),
    Family(("timm.models.senet.SEModule",
            "pretrainedmodels.models.senet.SEModule",
            "segmentation_models_pytorch.encoders._senet.SEModule"),
           _at("fc1", "relu", "fc2", "sigmoid")),
    Family(("torchvision.ops.misc.SqueezeExcitation",),
           _at("fc1", "activation", "fc2", "scale_activation")),
    Family(("monai.networks.blocks.squeeze_and_excitation.ChannelSELayer",
            "monai.networks.blocks.squeeze_and_excitation.ResidualSELayer",
            "senet.se_module.SELayer"),
           _at("fc.0", "fc.1", "fc.2", "fc.3")),
    Family(("segmentation_models_pytorch.base.modules.SCSEModule",),
           _at("cSE.1", "cSE.2", "cSE.3", "cSE.4"), ReplacedSCSE),
    Family(("segmentation_models_pytorch.encoders.mobileone.SEBlock",),
           _at("reduce", torch.relu, "expand", torch.sigmoid)),
    Family((f"{_HF}.efficientnet.modeling_efficientnet.EfficientNetSqueezeExciteLayer",
            f"{_HF}.align.modeling_align.AlignVisionSqueezeExciteLayer"),
           _at("reduce", "act_reduce", "expand", "act_expand")),
    Family((f"{_HF}.regnet.modeling_regnet.RegNetSELayer",),
           _at("attention.0", "attention.1", "attention.2", "attention.3")),
    Family((f"{_HF}.pp_lcnet.modeling_pp_lcnet.PPLCNetSqueezeExcitationModule",
            f"{_HF}.pp_lcnet_v3.modeling_pp_lcnet_v3.PPLCNetV3SqueezeExcitationModule",
            f"{_HF}.pp_lcnet_v4.modeling_pp_lcnet_v4.PPLCNetV4SqueezeExcitationModule"),
           _at("convolutions.0", "convolutions.1", "convolutions.2", "convolutions.3")),
    Family((f"{_HF}.pp_ocrv5_mobile_det.modeling_pp_ocrv5_mobile_det"
            ".PPOCRV5MobileDetSqueezeExcitationModule",
            f"{_HF}.pp_ocrv6_small_det.modeling_pp_ocrv6_small_det"
            ".PPOCRV6SmallDetSqueezeExcitationModule"),
           _at("conv1", "act_fn", "conv2", clamp_gate)),
    Family((f"{_HF}.qwen2_5_omni.modeling_qwen2_5_omni.SqueezeExcitationBlock",),
           _at("conv1", "relu", "conv2", "sigmoid")),
    Family(("mmpretrain.models.utils.se_layer.SELayer", "mmdet.models.layers.se_layer.SELayer"),
           _at("conv1.conv", "conv1.activate", "conv2.conv", "conv2.activate")),
    Family(("mmdet.models.layers.se_layer.ChannelAttention",), _at("fc", None, None, "act")),
    Family(("composer.algorithms.squeeze_excite.squeeze_excite.SqueezeExcite2d",),
           _at("pool_and_mlp.2", "pool_and_mlp.3", "pool_and_mlp.4", "pool_and_mlp.5")),
    Family(("image_classification.models.common.SequentialSqueezeAndExcitation",),
           _at("squeeze", "activation", "expand", "sigmoid")),
    Family(("geffnet.efficientnet_builder.SqueezeExcite",),
           _at("conv_reduce", "act1", "conv_expand", "gate_fn")),
    Family(("pytorchcv.models.common.att.SEBlock",), _at("conv1", "activ", "conv2", "sigmoid")),
    Family(("catalyst.contrib.layers.se.cSE",),
           _at("linear1", torch.relu, "linear2", torch.sigmoid)),
    Family(("src.models.tresnet_v2.layers.squeeze_and_excite.SEModule",),
           _at("fc1", "relu", "fc2", "activation")),
)  # fmt: skip

# SE modules that cannot be replaced, and why.
_PADDED = "its mean leaves out the padding of each sample; FusedSE's mean is over the whole map"
NOT_FUSIBLE = {
    "nemo.collections.asr.parts.submodules.jasper.SqueezeExcite": _PADDED,
    "speechbrain.lobes.models.ECAPA_TDNN.SEBlock": _PADDED,
    "image_classification.models.common.SqueezeAndExcitation": (
        "it returns the gate; its caller multiplies"
    ),
    "torchvision.models.quantization.mobilenetv3.QuantizableSqueezeExcitation": (
        "it is quantizable: quantization needs its own multiplication"
    ),
}

BY_CLASS = {path: family for family in FAMILIES for path in family.classes}
# efficientnet-pytorch, segmentation-models-pytorch and MONAI spell SE out in the block's forward:
# known by the layers of the block, whatever its class.
MBCONV = Family((), _at("_se_reduce", "_swish", "_se_expand", torch.sigmoid), ReplacedMBConv)
MBCONV_LAYERS = (
    "_depthwise_conv", "_bn1", "_se_reduce", "_swish", "_se_expand", "_project_conv", "_bn2",
)  # fmt: skip

# Activations and gates, functions and modules, that compute one of se_fused's; by module.

_SIMPLE = {
    **dict.fromkeys(("swish", "Swish"), "silu"),
    **dict.fromkeys(("sigmoid", "Sigmoid"), "sigmoid"),
    **dict.fromkeys(("tanh", "Tanh"), "tanh"),
    **dict.fromkeys(("hard_swish", "HardSwish"), "hardswish"),
    **dict.fromkeys(("hard_sigmoid", "HardSigmoid"), "hardsigmoid"),
}
_MEMORY_EFFICIENT = {
    **dict.fromkeys(("swish_me", "SwishMe"), "silu"),
    **dict.fromkeys(("hard_swish_me", "HardSwishMe"), "hardswish"),
    **dict.fromkeys(("hard_sigmoid_me", "HardSigmoidMe"), "hardsigmoid"),
}
ACTIVATIONS = {
    "timm.layers.activations": _SIMPLE | dict.fromkeys(("gelu", "GELU"), "gelu"),
    "timm.layers.activations_me": _MEMORY_EFFICIENT,
    "geffnet.activations.activations": _SIMPLE,
    "geffnet.activations.activations_me": _MEMORY_EFFICIENT,
    "transformers.activations": {
        "SiLUActivation": "silu",
        "GELUActivation": "gelu",
        "LinearActivation": "identity",
    },
    "monai.networks.blocks.activation": dict.fromkeys(
        ("Swish", "MemoryEfficientSwish", "monai_swish"), "silu"
    ),
    "efficientnet_pytorch.utils": dict.fromkeys(("Swish", "MemoryEfficientSwish"), "silu"),
    "mmcv.cnn.bricks.activation": {"GELU": "gelu"},
    "mmcv.cnn.bricks.hsigmoid": {"HSigmoid": "hardsigmoid"},
    "mmcv.cnn.bricks.hswish": {"HSwish": "hardswish"},
    "mmcv.cnn.bricks.swish": {"Swish": "silu"},
    "pytorchcv.models.common.activ": {
        "Swish": "silu", "HSwish": "hardswish", "HSigmoid": "hardsigmoid",
    },
}  # fmt: skip
activations.NAMES_BY_PATH.update(
    {(module, each): name for module, known in ACTIVATIONS.items() for each, name in known.items()}
)
activations.ARGUMENTS.update(
    Swish={"alpha": 1.0},
    HSigmoid={"bias": 3.0, "divisor": 6.0, "min_value": 0.0, "max_value": 1.0},
)

# Convolutions padded to "same": with a kernel of 1 that is without padding.
layers.POINTWISE_BY_PATH.update({
    (module, f"Conv2d{kind}SamePadding"): nn.Conv2d
    for kind in ("Static", "Dynamic")
    for module in (
        "segmentation_models_pytorch.encoders._efficientnet", "efficientnet_pytorch.utils",
    )
})  # fmt: skip


class NormWithAct(NamedTuple):
    """A norm with its activation inside (``act``, after ``drop``)."""

    extends: type[nn.Module]
    converted: str  # its class after a conversion to SyncBatchNorm or back


NORMS_WITH_ACT = {
    ("timm.layers.norm_act", "BatchNormAct2d"): NormWithAct(nn.BatchNorm2d, "SyncBatchNormAct"),
    ("timm.layers.norm_act", "SyncBatchNormAct"): NormWithAct(nn.SyncBatchNorm, "BatchNormAct2d"),
}
