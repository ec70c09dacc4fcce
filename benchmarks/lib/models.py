"""The network under test, once with eager SE and once with FusedSE, from the same weights."""

import copy

import torch.nn.functional as F
from lib.errors import RequestError
from torch import nn

from se_fused import FusedSE, insert_se, replace_se
from se_fused.surgery import Report, fuse

DEFAULT = "se_resnet20"
INSERTED = "se_"  # before the name of a network without SE


class SqueezeExcite(nn.Module):
    """The SE block in plain PyTorch, as in timm's ``SEModule``."""

    def __init__(self, channels, rd_channels, act_layer=nn.ReLU):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, rd_channels, 1)
        self.act = act_layer(inplace=True)
        self.fc2 = nn.Conv2d(rd_channels, channels, 1)
        self.gate = nn.Sigmoid()

    def forward(self, x):
        z = x.mean((2, 3), keepdim=True)
        return x * self.gate(self.fc2(self.act(self.fc1(z))))


class BasicBlock(nn.Module):
    """conv → BN → ReLU → conv → BN → SE, plus the shortcut, ReLU (SENet paper, figure 3)."""

    def __init__(self, in_channels, channels, stride, has_se):
        super().__init__()
        self.branch = nn.Identity()  # the residual branch begins here
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        # The paper's reduction of 16 would leave one hidden unit at 16 channels. 4 costs no
        # accuracy there (table 10) and is what EfficientNet, MobileNetV3 and RegNetY use.
        self.se = SqueezeExcite(channels, channels // 4) if has_se else nn.Identity()
        self.shortcut = Shortcut(stride, channels - in_channels)

    def forward(self, x):
        y = self.conv1(self.branch(x))
        residual = self.se(self.bn2(self.conv2(F.relu(self.bn1(y)))))
        return F.relu(residual + self.shortcut(x))


class Shortcut(nn.Module):
    """He's option A: every second pixel, new channels filled with zeros."""

    def __init__(self, stride, new_channels):
        super().__init__()
        self.stride, self.new_channels = stride, new_channels

    def forward(self, x):
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, 0, self.new_channels)) if self.new_channels else x


class ResNet20(nn.Module):
    """ResNet-20 for small images (He et al., arXiv 1512.03385, section 4.2)."""

    def __init__(self, num_classes, has_se, width=16):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        blocks = []
        in_channels = width
        for channels in (width, 2 * width, 4 * width):
            for _ in range(3):
                stride = 1 if channels == in_channels else 2
                blocks.append(BasicBlock(in_channels, channels, stride, has_se))
                in_channels = channels
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(4 * width, num_classes)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
                nn.init.kaiming_normal_(layer.weight)

    def forward(self, x):
        x = self.blocks(F.relu(self.bn(self.conv(x))))
        return self.fc(x.mean((2, 3)))


def eager_and_fused(name: str, num_classes: int) -> tuple[nn.Module, nn.Module]:
    """The network ``name`` and a copy of it, same weights, whose SE blocks are replaced.

    Names are looked up in timm, then in torchvision; ``se_<name>`` is the network ``name`` with SE
    put into it.
    """
    if name != DEFAULT and name.startswith(INSERTED):
        return _inserted(name, num_classes)
    eager = ResNet20(num_classes, True) if name == DEFAULT else from_library(name, num_classes)
    fused = copy.deepcopy(eager)
    replace_se(fused)
    if not se_names(fused):
        raise RequestError(f"--model {name}: contains no SE block that FusedSE can replace")
    return eager, fused


def _inserted(name: str, num_classes: int) -> tuple[nn.Module, nn.Module]:
    fused = from_library(name.removeprefix(INSERTED), num_classes)
    try:
        insert_se(fused)
    except ValueError as error:
        reason = str(error).partition(";")[0]
        raise RequestError(f"--model {name}: {reason}") from None
    eager = copy.deepcopy(fused)
    for block in se_names(fused):
        se = eager.get_submodule(block)
        plain = SqueezeExcite(se.fc1.in_channels, se.fc1.out_channels)
        plain.load_state_dict(se.state_dict())
        eager.set_submodule(block, plain)
    return eager, fused


def copies(name: str, num_classes: int) -> dict[str, nn.Module]:
    """The network as it is, swapped, with the blocks around SE fused as well, and without SE: with
    the identity in place of each SE block."""
    eager, fused = eager_and_fused(name, num_classes)
    blocks, without = copy.deepcopy(fused), copy.deepcopy(fused)
    fuse(blocks)
    for block in se_names(without):
        parent, _, child = block.rpartition(".")
        setattr(without.get_submodule(parent), child, nn.Identity())
    return {"eager": eager, "fused": fused, "fused blocks": blocks, "without SE": without}


def se_names(fused: nn.Module) -> list[str]:
    """Where the SE blocks are, in the fused network and in the eager one."""
    return [name for name, module in fused.named_modules() if isinstance(module, FusedSE)]


def around_se(names: list[str], report: Report) -> list[str]:
    """Instead of each SE block, the block around it where ``fuse`` has fused that."""
    fused = [entry.name for entry in report.replaced]

    def runs(name):
        inside = [block for block in fused if name.startswith(f"{block}.")]
        return max(inside, key=len, default=name)

    return list(dict.fromkeys(map(runs, names)))


def from_library(name: str, num_classes: int) -> nn.Module:
    """The network of this name in timm, or else in torchvision."""
    libraries = []
    try:
        import timm
    except ImportError:
        libraries.append("timm (not installed)")
    else:
        if timm.is_model(name):
            return timm.create_model(name, num_classes=num_classes)
        libraries.append("timm")
    try:
        import torchvision.models as zoo
    except ImportError:
        libraries.append("torchvision (not installed)")
    else:
        if name in zoo.list_models(module=zoo):
            # These return their auxiliary classifiers' results in training, else.
            has_aux = name in ("googlenet", "inception_v3")
            options = {"aux_logits": False, "init_weights": True} if has_aux else {}
            return zoo.get_model(name, weights=None, num_classes=num_classes, **options)
        libraries.append("torchvision")
    raise RequestError(
        f"--model {name}: not {DEFAULT}, and not found in {' or '.join(libraries)}"
    )
