"""Small ResNets of torchvision and timm, which have no SE, and what insert_se put into them."""

import pytest
import torch

from se_fused import FusedSE

LAYERS = [2, 1, 1, 1]
WITHOUT = "not installed; the tests with blocks that the user chooses cover the mechanism"


def _torchvision(block, **options):
    resnet = pytest.importorskip("torchvision.models.resnet", reason=WITHOUT)
    return resnet.ResNet(getattr(resnet, block), LAYERS, num_classes=3, **options)


def _timm(block, **options):
    resnet = pytest.importorskip("timm.models.resnet", reason=WITHOUT)
    return resnet.ResNet(getattr(resnet, block), LAYERS, num_classes=3, **options)


RESNETS = {
    "torchvision-basic": lambda: _torchvision("BasicBlock"),
    "torchvision-bottleneck": lambda: _torchvision("Bottleneck", width_per_group=16),
    "timm-basic": lambda: _timm("BasicBlock", channels=(32, 32, 48, 64)),
    "timm-bottleneck": lambda: _timm("Bottleneck", channels=(16, 16, 24, 32), avg_down=True),
}


def resnet(name="torchvision-bottleneck"):
    """One without memory."""
    with torch.device("meta"):
        return RESNETS[name]()


def se_blocks(network):
    return [module for module in network.modules() if isinstance(module, FusedSE)]
