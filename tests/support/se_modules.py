"""SE modules with the layers, names and formula of a library's, under the library's path.

For libraries that are not installed with the tests.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

C, R = 24, 6


def named(path: str):
    """A minimal module in the place of a library's."""

    def rename(cls):
        cls.__module__, _, name = path.rpartition(".")
        cls.__name__ = cls.__qualname__ = name
        return cls

    return rename


def times(x: Tensor, gate: Tensor) -> Tensor:
    return x * gate.view(gate.shape[:2] + (1,) * (x.dim() - 2))


class Copied(nn.Module):
    """The most copied SE module, in a user's own file."""

    def __init__(self, bias=False):
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(
            nn.Linear(C, R, bias=bias), nn.ReLU(inplace=True),
            nn.Linear(R, C, bias=bias), nn.Sigmoid(),
        )

    def forward(self, x):
        return times(x, self.fc(self.avg_pool(x).flatten(1)))


def gates(self, x):
    """Those of Copied."""
    return self.fc(self.avg_pool(x).flatten(1))


def copy_of(forward, **attributes):
    """A module with the layers of Copied, a forward of its own, and attributes."""
    module = type("Own", (Copied,), {"forward": forward})()
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


@named("senet.se_module.SELayer")
class Moskomule(Copied):
    pass


@named("pretrainedmodels.models.senet.SEModule")
class Cadene(nn.Module):
    def __init__(self):
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(C, R, kernel_size=1, padding=0)
        self.relu = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(R, C, kernel_size=1, padding=0)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x):
        return x * self.sigmoid(self.fc2(self.relu(self.fc1(self.avg_pool(x)))))


@named("src.models.tresnet_v2.layers.squeeze_and_excite.SEModule")
class TResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.avg_pool = nn.Flatten(2)
        self.fc1 = nn.Conv2d(C, R, kernel_size=1, padding=0, bias=True)
        self.relu = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(R, C, kernel_size=1, padding=0, bias=True)
        self.activation = nn.Sigmoid()

    def forward(self, x):
        z = self.avg_pool(x).mean(-1)[:, :, None, None]
        return x * self.activation(self.fc2(self.relu(self.fc1(z))))


@named("mmcv.cnn.bricks.hsigmoid.HSigmoid")
class HSigmoid(nn.Module):
    def __init__(self, bias=3.0, divisor=6.0, min_value=0.0, max_value=1.0):
        super().__init__()
        self.bias, self.divisor = bias, divisor
        self.min_value, self.max_value = min_value, max_value

    def forward(self, x):
        return ((x + self.bias) / self.divisor).clamp(self.min_value, self.max_value)


class ConvModule(nn.Module):
    def __init__(self, inputs, outputs, activate):
        super().__init__()
        self.conv, self.activate = nn.Conv2d(inputs, outputs, 1), activate

    def forward(self, x):
        return self.activate(self.conv(x))


class MMSELayer(nn.Module):
    def __init__(self, gate=None, return_weight=False):
        super().__init__()
        self.return_weight = return_weight
        self.global_avgpool = nn.AdaptiveAvgPool2d(1)
        self.conv1 = ConvModule(C, R, nn.ReLU())
        self.conv2 = ConvModule(R, C, gate or nn.Sigmoid())

    def forward(self, x):
        gate = self.conv2(self.conv1(self.global_avgpool(x)))
        return gate if self.return_weight else x * gate


@named("mmpretrain.models.utils.se_layer.SELayer")
class MMPretrain(MMSELayer):
    pass


@named("mmdet.models.layers.se_layer.SELayer")
class MMDetection(MMSELayer):
    pass


@named("mmdet.models.layers.se_layer.ChannelAttention")
class ChannelAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.global_avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Conv2d(C, C, 1, 1, 0, bias=True)
        self.act = nn.Hardsigmoid(inplace=True)

    def forward(self, x):
        return x * self.act(self.fc(self.global_avgpool(x)))


@named("composer.algorithms.squeeze_excite.squeeze_excite.SqueezeExcite2d")
class Composer(nn.Module):
    def __init__(self):
        super().__init__()
        self.pool_and_mlp = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(C, R, bias=False), nn.ReLU(),
            nn.Linear(R, C, bias=False), nn.Sigmoid(),
        )

    def forward(self, x):
        return times(x, self.pool_and_mlp(x))


class _NVIDIA(nn.Module):
    def __init__(self):
        super().__init__()
        self.squeeze, self.expand = nn.Linear(C, R), nn.Linear(R, C)
        self.activation, self.sigmoid = nn.SiLU(), nn.Sigmoid()

    def _attention(self, x):
        z = x.mean([2, 3])
        return self.sigmoid(self.expand(self.activation(self.squeeze(z))))[:, :, None, None]


@named("image_classification.models.common.SqueezeAndExcitation")
class NVIDIAGate(_NVIDIA):
    def forward(self, x):
        return self._attention(x)


@named("image_classification.models.common.SequentialSqueezeAndExcitation")
class NVIDIASequential(NVIDIAGate):
    def forward(self, x):
        return self._attention(x) * x


def geffnet_sigmoid(x, inplace: bool = False):
    return x.sigmoid_() if inplace else x.sigmoid()


geffnet_sigmoid.__module__ = "geffnet.activations.activations"
geffnet_sigmoid.__qualname__ = geffnet_sigmoid.__name__ = "sigmoid"


@named("geffnet.efficientnet_builder.SqueezeExcite")
class Geffnet(nn.Module):
    def __init__(self, gate_fn=geffnet_sigmoid):
        super().__init__()
        self.conv_reduce = nn.Conv2d(C, R, 1)
        self.act1 = nn.SiLU(inplace=True)
        self.conv_expand = nn.Conv2d(R, C, 1)
        self.gate_fn = gate_fn

    def forward(self, x):
        z = x.mean((2, 3), keepdim=True)
        return x * self.gate_fn(self.conv_expand(self.act1(self.conv_reduce(z))))


@named("pytorchcv.models.common.att.SEBlock")
class PytorchCV(nn.Module):
    def __init__(self, use_conv=True):
        super().__init__()
        self.use_conv = use_conv
        self.pool = nn.AdaptiveAvgPool2d(output_size=1)
        if use_conv:
            self.conv1 = nn.Conv2d(C, R, 1)
        else:
            self.fc1 = nn.Linear(C, R)
        self.activ = nn.ReLU(inplace=True)
        if use_conv:
            self.conv2 = nn.Conv2d(R, C, 1)
        else:
            self.fc2 = nn.Linear(R, C)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x):
        w = self.pool(x)
        if self.use_conv:
            w = self.conv2(self.activ(self.conv1(w)))
        else:
            w = self.fc2(self.activ(self.fc1(w.flatten(1))))
        return times(x, self.sigmoid(w))


@named("catalyst.contrib.layers.se.cSE")
class Catalyst(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(C, R), nn.Linear(R, C)

    def forward(self, x):
        z = x.flatten(2).mean(-1)
        return times(x, torch.sigmoid(self.linear2(F.relu(self.linear1(z), inplace=True))))


class ProdLayer(nn.Module):
    def forward(self, x):
        return x * x.orig


@named("fastai.layers.SequentialEx")
class SequentialEx(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def __getitem__(self, i):
        return self.layers[i]

    def forward(self, x):
        result = x
        for layer in self.layers:
            result.orig = x
            following = layer(result)
            result.orig, following.orig = None, None
            result = following
        return result


def fastai_se_module():
    return SequentialEx(
        nn.AdaptiveAvgPool2d(1),
        nn.Sequential(nn.Conv2d(C, R, 1), nn.ReLU()),
        nn.Sequential(nn.Conv2d(R, C, 1), nn.Sigmoid()),
        ProdLayer(),
    )


class MBConv(nn.Module):
    """The block of efficientnet-pytorch: its SE is spelled out in its forward."""

    def __init__(self, expand_ratio=2, se=True, outputs=None):
        super().__init__()
        inputs, width = C // 2, C // 2 * expand_ratio
        Block = NamedTuple("Block", [(n, int) for n in ("expand_ratio", "stride", "input_filters",
                                                        "output_filters")])
        self._block_args = Block(expand_ratio, 1, inputs, outputs or inputs)
        self.has_se, self.id_skip = se, True
        if expand_ratio != 1:
            self._expand_conv = nn.Conv2d(inputs, width, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(width)
        self._depthwise_conv = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self._bn1 = nn.BatchNorm2d(width)
        if se:
            self._se_reduce, self._se_expand = nn.Conv2d(width, R, 1), nn.Conv2d(R, width, 1)
        self._project_conv = nn.Conv2d(width, outputs or inputs, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(outputs or inputs)
        self._swish = nn.SiLU()

    def forward(self, inputs, drop_connect_rate=None):
        x, block = inputs, self._block_args
        if block.expand_ratio != 1:
            x = self._swish(self._bn0(self._expand_conv(x)))
        x = self._swish(self._bn1(self._depthwise_conv(x)))
        if self.has_se:
            z = F.adaptive_avg_pool2d(x, 1)
            x = torch.sigmoid(self._se_expand(self._swish(self._se_reduce(z)))) * x
        x = self._bn2(self._project_conv(x))
        if self.id_skip and block.stride == 1 and block.input_filters == block.output_filters:
            if drop_connect_rate and self.training:
                keep = 1 - drop_connect_rate
                kept = keep + torch.rand([len(x), 1, 1, 1], dtype=x.dtype, device=x.device)
                x = x / keep * torch.floor(kept)
            x = x + inputs
        return x
