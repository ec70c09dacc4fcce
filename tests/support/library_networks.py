"""Whole networks of libraries, each with the size of its images; what their comparisons share."""

import pytest
import torch
from torch import nn

WITHOUT = "not installed; test_families.py covers the SE modules"
timm = pytest.importorskip("timm", reason=WITHOUT)
torchvision = pytest.importorskip("torchvision", reason=WITHOUT)


def from_timm(name, **options):
    network = timm.create_model(name, num_classes=5, **options).eval()
    try:
        with torch.no_grad():
            network(torch.zeros(1, 3, 64, 64))
    except (AssertionError, RuntimeError, ValueError):  # a fixed or a least size
        return network, network.default_cfg["input_size"][1:]
    return network, (64, 64)


def from_torchvision(name):
    return torchvision.models.get_model(name, weights=None, num_classes=5), (64, 64)


def from_segmentation_models(encoder):
    smp = pytest.importorskip("segmentation_models_pytorch", reason=WITHOUT)
    return smp.Unet(encoder, encoder_weights=None, decoder_attention_type="scse"), (64, 64)


def from_monai(spatial_dims):
    """SEResNet50 with one block in each stage."""
    nets = pytest.importorskip("monai.networks.nets", reason=WITHOUT)
    network = nets.SEResNet50(
        layers=(1, 1, 1, 1), spatial_dims=spatial_dims, in_channels=3, num_classes=2
    )
    return network, (32,) * spatial_dims


class LastHiddenState(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x).last_hidden_state


def from_transformers(name):
    transformers = pytest.importorskip("transformers", reason=WITHOUT)
    if name == "efficientnet":
        config = transformers.EfficientNetConfig(
            width_coefficient=0.5, depth_coefficient=0.5, hidden_dim=640
        )
        return LastHiddenState(transformers.EfficientNetModel(config)), (64, 64)
    config = transformers.RegNetConfig(
        embedding_size=16, hidden_sizes=[16, 32, 32, 64], depths=[1, 1, 1, 1], groups_width=8
    )
    return LastHiddenState(transformers.RegNetModel(config)), (64, 64)


def without_chance(network):
    """Weights of BatchNorm away from 0 and 1; no dropout of elements or samples."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
        for name in ("p", "drop_prob", "drop_rate"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return network


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        if b.is_floating_point():
            # PyTorch's own hardsigmoid has a float32 1/6 in its float64 gradient.
            # A gradient below 1e-6 may be nothing but rounding.
            scale = b.abs().max().clamp(min=1e-6)
            torch.testing.assert_close(a / scale, b / scale, rtol=0, atol=1e-6)
        else:
            assert torch.equal(a, b)
