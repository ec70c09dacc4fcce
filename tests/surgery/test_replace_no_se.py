"""Networks without SE: replace_se finds none in them and leaves none."""

import pytest
import torch
from library_networks import timm
from selection import kept

from se_fused import replace_se


def of_timm(name):
    return lambda: timm.create_model(name)


def of_torchvision(name):
    return lambda: getattr(pytest.importorskip("torchvision").models, name)()


def of_transformers(kind, **arguments):
    def make():
        transformers = pytest.importorskip("transformers")
        config = getattr(transformers, f"{kind}Config")(**arguments)
        return getattr(transformers, f"{kind}Model")(config)

    return make


NETWORKS = {f"timm-{name}": of_timm(name) for name in (
    "vit_tiny_patch16_224", "convnext_tiny", "swin_tiny_patch4_window7_224", "mixer_s16_224",
    "gmlp_s16_224", "poolformer_s12", "xcit_nano_12_p16_224", "densenet121", "dpn68",
)}  # fmt: skip
NETWORKS |= {f"tv-{name}": of_torchvision(name) for name in (
    "resnet18", "convnext_tiny", "vit_b_16", "swin_t", "mobilenet_v2", "densenet121", "googlenet",
)}  # fmt: skip
NETWORKS |= {
    "hf-vit": of_transformers("ViT"),
    "hf-bert": of_transformers("Bert", num_hidden_layers=2),
    "hf-gpt2": of_transformers("GPT2", n_layer=2),
    "hf-swin": of_transformers("Swin"),
}


@kept(pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS),
      "timm-vit_tiny_patch16_224", "timm-poolformer_s12", "tv-convnext_tiny", "tv-swin_t",
      "tv-mobilenet_v2", "hf-bert")
def test_none_is_found(make):
    with torch.device("meta"):
        network = make()
    classes = [type(module) for module in network.modules()]
    report = replace_se(network)
    assert not report.replaced and not report.left
    assert [type(module) for module in network.modules()] == classes
