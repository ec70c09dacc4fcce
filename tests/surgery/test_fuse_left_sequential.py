"""What fuse says of SE behind a Sequential without BatchNorm: the layer that decides, and where."""

import pytest
from residual_blocks import Block, C, Net
from torch import nn

from se_fused import FusedSE
from se_fused.surgery import fuse

NO_NORM = "before it stands {}, no BatchNorm of PyTorch's"
BETWEEN = "between its BatchNorm and it stands {}"
GROUP_NORM = "torch.nn.modules.normalization.GroupNorm"
SEQUENTIAL = "torch.nn.modules.container.Sequential"


class Gated(nn.Sequential):
    """Not read: its forward is another."""

    def forward(self, x):
        return super().forward(x).tanh() * x


def _norm_in(*layers, container=nn.Sequential):
    return lambda: Block(bn=container(nn.Conv2d(C, C, 1), *layers))


def _in_torchvision_s():
    misc = pytest.importorskip("torchvision.ops.misc", reason="the case activation-last covers it")
    conv = misc.Conv2dNormActivation(
        C, C, 3, norm_layer=lambda channels: nn.GroupNorm(2, channels), activation_layer=nn.SiLU
    )
    return nn.Sequential(conv, FusedSE(C))


def _in_monai_s():
    blocks = pytest.importorskip("monai.networks.blocks", reason="the case nested covers it")
    return nn.Sequential(blocks.Convolution(2, C, C, norm="INSTANCE", dropout=0.1), FusedSE(C))


LEFT = {
    "norm-last": (
        _norm_in(nn.GroupNorm(2, C)), NO_NORM.format(f"{GROUP_NORM} (in bn, a {SEQUENTIAL})")
    ),
    "activation-last": (
        _norm_in(nn.GroupNorm(2, C), nn.PReLU()),
        NO_NORM.format(f"{GROUP_NORM} (in bn, a {SEQUENTIAL})"),
    ),
    "nested": (
        _norm_in(
            nn.Sequential(nn.GroupNorm(2, C), nn.Dropout2d(0.1)), nn.Sequential(nn.Tanh()),
            nn.Identity(), nn.Sequential(),
        ),
        NO_NORM.format(f"{GROUP_NORM} (in bn, a {SEQUENTIAL})"),
    ),
    "no-norm": (
        _norm_in(nn.ReLU()),
        NO_NORM.format(f"torch.nn.modules.conv.Conv2d (in bn, a {SEQUENTIAL})"),
    ),
    "behind-an-activation": (
        lambda: Block(bn=nn.Sequential(nn.GroupNorm(2, C)), act=nn.SiLU()),
        f"before silu and it stands {GROUP_NORM} (in bn, a {SEQUENTIAL}), "
        "no BatchNorm of PyTorch's",
    ),
    "behind-batch-norm": (
        lambda: Block(act=nn.Sequential(nn.GroupNorm(2, C), nn.ReLU())),
        BETWEEN.format(f"{GROUP_NORM} (in act, a {SEQUENTIAL})"),
    ),
    "activations-alone": (
        lambda: Block(act=nn.Sequential(nn.PReLU(), nn.Dropout())), BETWEEN.format(SEQUENTIAL)
    ),
    "another-forward": (
        _norm_in(nn.GroupNorm(2, C), container=Gated),
        NO_NORM.format("test_fuse_left_sequential.Gated"),
    ),
    "torchvision": (
        _in_torchvision_s,
        NO_NORM.format(f"{GROUP_NORM} (in 0, a torchvision.ops.misc.Conv2dNormActivation)"),
    ),
    "monai": (
        _in_monai_s,
        NO_NORM.format(
            "torch.nn.modules.instancenorm.InstanceNorm2d "
            "(in 0, a monai.networks.blocks.convolutions.Convolution)"
        ),
    ),
}


@pytest.mark.parametrize("make, reason", LEFT.values(), ids=LEFT)
def test_reason(make, reason):
    report = fuse(Net(make()))
    assert not report.replaced
    assert [entry.reason for entry in report.left] == [reason]
