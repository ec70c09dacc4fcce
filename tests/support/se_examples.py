"""SE modules to swap: the libraries' own where they are installed, else those of se_modules.py."""

import importlib
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from se_modules import (
    C,
    Cadene,
    Catalyst,
    ChannelAttention,
    Composer,
    Copied,
    Geffnet,
    HSigmoid,
    MBConv,
    MMDetection,
    MMPretrain,
    Moskomule,
    NVIDIASequential,
    PytorchCV,
    R,
    TResNet,
    fastai_se_module,
)
from torch import nn


class Example(NamedTuple):
    """A module to swap, a size of map that it takes, and whether it becomes one operator."""

    make: Callable[[], nn.Module]
    whole: bool
    size: tuple[int, ...] = (5, 7)
    channels: int = C
    channels_last: bool = True  # whether it takes a map in this layout too


def of(path: str, *args, **kwargs) -> Callable[[], nn.Module]:
    """Builds a library's own module."""

    def make():
        package, _, name = path.rpartition(".")
        reason = f"{package.partition('.')[0]} is not installed; the minimal modules remain"
        pytest.importorskip(package.partition(".")[0], reason=reason)
        return getattr(importlib.import_module(package), name)(*args, **kwargs)

    return make


TIMM = "timm.layers.squeeze_excite"
MONAI = "monai.networks.blocks.squeeze_and_excitation"
MONAI_EFFICIENTNET = "monai.networks.nets.efficientnet"
SMP = "segmentation_models_pytorch"
HF = "transformers.models"
TV = "torchvision.ops.misc.SqueezeExcitation"


class HFConfig:
    squeeze_expansion_ratio, hidden_act = 0.25, "swish"


EXAMPLES = {
    "timm-se": Example(of(f"{TIMM}.SEModule", C), True),
    "timm-se-norm": Example(of(f"{TIMM}.SEModule", C, norm_layer=nn.BatchNorm2d), False),
    "timm-se-maxpool": Example(of(f"{TIMM}.SEModule", C, add_maxpool=True), False),
    "timm-efficientnet": Example(
        of("timm.models._efficientnet_blocks.SqueezeExcite", C, act_layer=nn.SiLU), True
    ),
    "timm-effective-se": Example(of(f"{TIMM}.EffectiveSEModule", C), False),
    "timm-effective-se-maxpool": Example(
        of(f"{TIMM}.EffectiveSEModule", C, add_maxpool=True), False
    ),
    "timm-hgnet": Example(of("timm.models.hgnet.EseModule", C), False),
    "timm-channels-last": Example(of(f"{TIMM}.SqueezeExciteCl", 7), True, (5, 7), 5, False),
    "timm-legacy": Example(of("timm.models.senet.SEModule", C, 4), True),
    "torchvision": Example(of(TV, C, R), True),
    "torchvision-mobilenetv3": Example(of(TV, C, R, scale_activation=nn.Hardsigmoid), True),
    "torchvision-efficientnet": Example(of(TV, C, R, activation=nn.SiLU), True),
    "monai-1d": Example(of(f"{MONAI}.ChannelSELayer", 1, C), True, (7,)),
    "monai-2d": Example(of(f"{MONAI}.ChannelSELayer", 2, C, acti_type_1="leakyrelu"), True),
    "monai-3d": Example(of(f"{MONAI}.ChannelSELayer", 3, C), True, (3, 4, 2)),
    "monai-residual": Example(of(f"{MONAI}.ChannelSELayer", 2, C, add_residual=True), False),
    "monai-residual-3d": Example(of(f"{MONAI}.ResidualSELayer", 3, C), False, (3, 4, 2)),
    "efficientnet-monai": Example(
        of(f"{MONAI_EFFICIENTNET}.MBConvBlock", 2, C // 2, C // 2, 3, 1, [8, 8], 2, 0.5), True,
        channels=C // 2,
    ),
    "efficientnet-monai-3d": Example(
        of(f"{MONAI_EFFICIENTNET}.MBConvBlock", 3, C // 2, C, 3, 2, [8, 8, 8], 2, 0.5), True,
        (3, 4, 2), C // 2,
    ),
    "smp-scse": Example(of(f"{SMP}.base.modules.SCSEModule", C, 4), True),
    "smp-senet": Example(of(f"{SMP}.encoders._senet.SEModule", C, 4), True),
    "smp-mobileone": Example(of(f"{SMP}.encoders.mobileone.SEBlock", C, 0.25), True),
    "hf-efficientnet": Example(
        of(f"{HF}.efficientnet.modeling_efficientnet.EfficientNetSqueezeExciteLayer",
           HFConfig, C, C), True),
    "hf-align": Example(
        of(f"{HF}.align.modeling_align.AlignVisionSqueezeExciteLayer", HFConfig, C, C), True
    ),
    "hf-regnet": Example(of(f"{HF}.regnet.modeling_regnet.RegNetSELayer", C, R), True),
    "hf-pp-lcnet": Example(
        of(f"{HF}.pp_lcnet.modeling_pp_lcnet.PPLCNetSqueezeExcitationModule", C), True
    ),
    "hf-pp-lcnet-v3": Example(
        of(f"{HF}.pp_lcnet_v3.modeling_pp_lcnet_v3.PPLCNetV3SqueezeExcitationModule", C), True
    ),
    "hf-pp-lcnet-v4": Example(
        of(f"{HF}.pp_lcnet_v4.modeling_pp_lcnet_v4.PPLCNetV4SqueezeExcitationModule", C), True
    ),
    "hf-pp-ocr-v5": Example(
        of(f"{HF}.pp_ocrv5_mobile_det.modeling_pp_ocrv5_mobile_det"
           ".PPOCRV5MobileDetSqueezeExcitationModule", C, 4), False),
    "hf-pp-ocr-v6": Example(
        of(f"{HF}.pp_ocrv6_small_det.modeling_pp_ocrv6_small_det"
           ".PPOCRV6SmallDetSqueezeExcitationModule", C, 4), False),
    "hf-qwen-omni": Example(
        of(f"{HF}.qwen2_5_omni.modeling_qwen2_5_omni.SqueezeExcitationBlock", C, R, C), True, (7,)
    ),
    "moskomule": Example(Moskomule, True),
    "a-copy-in-a-user-s-file": Example(Copied, True),
    "pretrainedmodels": Example(Cadene, True),
    "tresnet": Example(TResNet, True),
    "mmpretrain": Example(MMPretrain, True),
    "mmpretrain-mobilenetv3": Example(lambda: MMPretrain(HSigmoid()), True),
    "mmpretrain-other-hsigmoid": Example(lambda: MMPretrain(HSigmoid(1.0, 2.0)), False),
    "mmdet-se": Example(MMDetection, True),
    "mmdet-channel-attention": Example(ChannelAttention, False),
    "composer": Example(Composer, True),
    "nvidia-sequential": Example(NVIDIASequential, True),
    "geffnet": Example(Geffnet, True),
    "geffnet-hardsigmoid": Example(lambda: Geffnet(F.hardsigmoid), True),
    "geffnet-other-gate": Example(lambda: Geffnet(F.softsign), False),
    "pytorchcv-conv": Example(PytorchCV, True),
    "pytorchcv-linear": Example(lambda: PytorchCV(use_conv=False), True),
    "catalyst": Example(Catalyst, True),
    "fastai": Example(fastai_se_module, True),
    "efficientnet-pytorch": Example(MBConv, True, channels=C // 2),
    "efficientnet-pytorch-no-expansion": Example(lambda: MBConv(1), True, channels=C // 2),
    "efficientnet-pytorch-no-skip": Example(lambda: MBConv(outputs=8), True, channels=C // 2),
}


class Net(nn.Module):
    """A network with layers on both sides of the SE module."""

    def __init__(self, example):
        super().__init__()
        self.before = nn.BatchNorm1d(example.channels)
        self.se = example.make()

    def forward(self, x):
        return self.se(self.before(x.flatten(2)).view_as(x))


def network(example, dtype=torch.float64):
    net = Net(example).to(dtype)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_()
    return net


def map_for(example, layout="contiguous"):
    x = torch.randn(3, example.channels, *example.size, dtype=torch.float64)
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    if layout == "channels-last" and example.channels_last and x.dim() in formats:
        x = x.contiguous(memory_format=formats[x.dim()])
    return x
