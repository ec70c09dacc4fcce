"""The table of networks that ``insert_se`` knows: a family is a row, a placement an entry of it.

As in ``surgery/registry.py``, classes are named by their path, so that no library needs to be
installed. Placements are those of Hu et al., arXiv 1709.01507: figures 2, 3 and 5, section 3.3
("Instantiations") and section 6.5.
"""

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch import nn

from se_fused.surgery.report import path_of

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
WHERE = ("standard", "pre", "post", "identity", "conv3x3")


class Site(NamedTuple):
    """Where one SE block goes: after a layer, or before it."""

    block: str  # the name of the block that the layer is in
    cls: str
    layer: nn.Module | None  # None: SE itself goes there, into an attribute of the block
    channels: int
    stage: int | None
    before: bool = False
    attribute: str | None = None

    @property
    def key(self):
        """The same where blocks share a layer."""
        return self.block if self.layer is None else id(self.layer)


class Place(NamedTuple):
    """Where SE stands in a block; a path is one of attributes and of indices of a Sequential."""

    layer: str  # "" is the block itself; of a Sequential it is the last in it, or the first
    channels: tuple[str, ...]  # paths of numbers, whose sum it is
    before: bool = False
    optional: bool = False  # None there stands for no layer


class BlockFamily(NamedTuple):
    """Classes of blocks of one form."""

    classes: tuple[str, ...]
    places: dict[str, Place]
    stage: Callable[[nn.Module, str], int | None]  # of the model and a block's name

    def sites(self, model: nn.Module, name: str, block: nn.Module, where: str) -> Iterator[Site]:
        place = self.places[where]
        channels = sum(_at(block, path) for path in place.channels)
        layer = _at(block, place.layer)
        if layer is None and not place.optional:
            raise AttributeError(f"its {place.layer} is None")
        layer = end_of(layer, 0 if place.before else -1)
        of_block = name, path_of(type(block))
        stage = self.stage(model, name)
        yield Site(*of_block, layer, channels, stage, place.before, place.layer)


class Chain(NamedTuple):
    """Networks that are one Sequential of convolutions and poolings: SE after each convolution
    with its norm and its activation; a stage ends at a pooling."""

    classes: tuple[str, ...]
    layers: str
    places = ("standard",)

    def sites(self, model: nn.Module, name: str, block: nn.Module, where: str) -> Iterator[Site]:
        layers = list(_at(block, self.layers))
        channels, stage = None, 1
        for layer, following in zip(layers, [*layers[1:], nn.Identity()]):
            if isinstance(layer, nn.Conv2d):
                channels = layer.out_channels
            if isinstance(layer, _POOLS):
                stage += 1
            elif isinstance(following, (nn.Conv2d, nn.Identity, *_POOLS)):
                yield Site(name, path_of(type(block)), layer, channels, stage)


_POOLS = (nn.MaxPool2d, nn.AvgPool2d)


def end_of(module: nn.Module | None, index: int = -1) -> nn.Module | None:
    """The last module that a Sequential calls, or the first; anything else is that itself."""
    while getattr(type(module), "forward", None) is nn.Sequential.forward and len(module):
        module = module[index]
    return module


def _at(block: nn.Module, path: str):
    for name in path.split(".") if path else ():
        block = block[int(name)] if name.lstrip("-").isdigit() else getattr(block, name)
    return block


def _numbered(pattern: str, first: int = 0) -> Callable:
    """The stage by a number in the name of the block, counted from ``first``."""
    number = re.compile(rf"(?:^|\.){pattern}")

    def stage(model: nn.Module, name: str) -> int | None:
        found = number.search(name)
        return int(found[1]) + first if found else None

    return stage


def _always(stage: int) -> Callable:
    return lambda model, name: stage


def _by_row(model: nn.Module, name: str) -> int:
    """The row of MobileNetV2's table 2: a new one at another width or at a stride."""
    parent, _, own = name.rpartition(".")
    block = model.get_submodule(name)
    row, width = 0, None
    for key, sibling in model.get_submodule(parent).named_children():
        if type(sibling) is type(block):
            row += sibling.stride > 1 or sibling.out_channels != width
            width = sibling.out_channels
        if key == own:
            break
    return row


_RESNET_STAGE = _numbered(r"layer(\d+)", 1)
_INCEPTION_STAGE = _numbered(r"Mixed_(\d)")
_BLOCKS_STAGE = _numbered(r"blocks\.(\d+)", 1)
_INCEPTION = ("torchvision.models.inception.Inception{}", "timm.models.inception_v3.Inception{}")
_MIXED = "timm.models.inception_resnet_v2.Mixed_{}"
_BLOCK = "timm.models.inception_resnet_v2.Block{}"


def _outputs(*convolutions: str, pooled: str | None = None) -> tuple[str, ...]:
    """The channels of a concatenation: of its convolutions, and of x itself, pooled, which is what
    one of them takes."""
    outputs = tuple(f"{path}.conv.out_channels" for path in convolutions)
    return outputs if pooled is None else (*outputs, f"{pooled}.conv.in_channels")


def _inception(letter: str, *outputs: str) -> BlockFamily:
    classes = tuple(path.format(letter) for path in _INCEPTION)
    return BlockFamily(classes, {"standard": Place("", outputs)}, _INCEPTION_STAGE)


def _mixed(name: str, stage: int, *outputs: str) -> BlockFamily:
    return BlockFamily((_MIXED.format(name),), {"standard": Place("", outputs)}, _always(stage))


def _residual_inception(name: str, stage: int) -> BlockFamily:
    """SE before the scaled sum, as in a ResNet."""
    place = Place("conv2d", ("conv2d.out_channels",))
    return BlockFamily((_BLOCK.format(name),), {"standard": place}, _always(stage))


FAMILIES = (
    BlockFamily(
        ("torchvision.models.resnet.BasicBlock", "timm.models.resnet.BasicBlock"),
        {
            "standard": Place("bn2", ("conv2.out_channels",)),
            "pre": Place("conv1", ("conv1.in_channels",), before=True),
            "post": Place("", ("conv2.out_channels",)),
            "identity": Place("downsample", ("conv2.out_channels",), optional=True),
        },
        _RESNET_STAGE,
    ),
    BlockFamily(
        ("torchvision.models.resnet.Bottleneck", "timm.models.resnet.Bottleneck"),
        {
            "standard": Place("bn3", ("conv3.out_channels",)),
            "pre": Place("conv1", ("conv1.in_channels",), before=True),
            "post": Place("", ("conv3.out_channels",)),
            "identity": Place("downsample", ("conv3.out_channels",), optional=True),
            "conv3x3": Place("bn2", ("conv2.out_channels",)),
        },
        _RESNET_STAGE,
    ),
    Chain(("torchvision.models.vgg.VGG", "timm.models.vgg.VGG"), "features"),
    BlockFamily(
        ("torchvision.models.googlenet.Inception",),
        {"standard": Place("", _outputs("branch1", "branch2.1", "branch3.1", "branch4.1"))},
        _numbered(r"inception(\d)"),
    ),
    _inception("A", *_outputs("branch1x1", "branch5x5_2", "branch3x3dbl_3", "branch_pool")),
    _inception("B", *_outputs("branch3x3", "branch3x3dbl_3", pooled="branch3x3")),
    _inception("C", *_outputs("branch1x1", "branch7x7_3", "branch7x7dbl_5", "branch_pool")),
    _inception("D", *_outputs("branch3x3_2", "branch7x7x3_4", pooled="branch3x3_1")),
    _inception(
        "E",
        *_outputs(
            "branch1x1", "branch3x3_2a", "branch3x3_2b", "branch3x3dbl_3a", "branch3x3dbl_3b",
            "branch_pool",
        ),
    ),  # fmt: skip
    _mixed("5b", 5, *_outputs("branch0", "branch1.1", "branch2.2", "branch3.1")),
    _residual_inception("35", 5),
    _mixed("6a", 6, *_outputs("branch0", "branch1.2", pooled="branch0")),
    _residual_inception("17", 6),
    _mixed("7a", 7, *_outputs("branch0.1", "branch1.1", "branch2.2", pooled="branch0.0")),
    _residual_inception("8", 7),
    BlockFamily(
        ("torchvision.models.mobilenetv2.InvertedResidual",),
        {
            "standard": Place("conv", ("out_channels",)),
            "pre": Place("conv", ("conv.0.0.in_channels",), before=True),
            "post": Place("", ("out_channels",)),
            "conv3x3": Place("conv.-3", ("conv.-3.0.out_channels",)),
        },
        _by_row,
    ),
    BlockFamily(
        ("timm.models._efficientnet_blocks.InvertedResidual",),
        {
            "standard": Place("bn3", ("conv_pwl.out_channels",)),
            "pre": Place("conv_pw", ("conv_pw.in_channels",), before=True),
            "post": Place("", ("conv_pwl.out_channels",)),
            "conv3x3": Place("bn2", ("conv_dw.out_channels",)),
        },
        _BLOCKS_STAGE,
    ),
    BlockFamily(
        ("timm.models._efficientnet_blocks.DepthwiseSeparableConv",),  # MobileNetV1, V2's first
        {
            "standard": Place("bn2", ("conv_pw.out_channels",)),
            "pre": Place("conv_dw", ("conv_dw.in_channels",), before=True),
            "post": Place("", ("conv_pw.out_channels",)),
            "conv3x3": Place("bn1", ("conv_dw.out_channels",)),
        },
        _BLOCKS_STAGE,
    ),
    BlockFamily(
        ("torchvision.models.shufflenetv2.InvertedResidual",),
        {"standard": Place("branch2", ("branch2.5.out_channels",))},
        _numbered(r"stage(\d)"),
    ),
)
BY_CLASS = {path: family for family in FAMILIES for path in family.classes}
