"""Whole models that were saved by the version before load, run fused and compute what they did.

A file has the model, what it was called with and its result in eval mode, random parameters.
"""

import gzip
import warnings
from collections import OrderedDict
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from se_fused import FusedBatchNormSE, FusedSE, fuse, insert_se, remove_se, replace_se, restore_se
from se_fused.surgery.fused_block import FusedBlock

PICKLES = Path(__file__).parent / "pickles"
C, R = 4, 1


def replaced(make) -> nn.Module:
    module = make()
    assert replace_se(module).replaced
    return module


def timm_se(channels=C, **factory):
    squeeze_excite = pytest.importorskip("timm.layers.squeeze_excite")
    return squeeze_excite.SEModule(channels, rd_channels=R)


def channels_last():
    return pytest.importorskip("timm.layers.squeeze_excite").SqueezeExciteCl(C, rd_channels=R)


def scse():
    return pytest.importorskip("segmentation_models_pytorch.base.modules").SCSEModule(C, C)


def clamped():
    pp_ocr = "transformers.models.pp_ocrv5_mobile_det.modeling_pp_ocrv5_mobile_det"
    return pytest.importorskip(pp_ocr).PPOCRV5MobileDetSqueezeExcitationModule(C, C)


def mbconv():
    encoders = pytest.importorskip("segmentation_models_pytorch.encoders")
    return encoders.get_encoder("efficientnet-b0", weights=None)._blocks[0]


def timm_net():
    resnet = pytest.importorskip("timm.models.resnet")
    net = nn.Sequential(resnet.BasicBlock(C, C, attn_layer=timm_se))
    assert replace_se(net).replaced and fuse(net).replaced
    return net


def torchvision_net(is_fused=False):
    resnet = pytest.importorskip("torchvision.models.resnet")
    net = nn.Sequential(OrderedDict(layer1=nn.Sequential(resnet.BasicBlock(C, C))))
    assert insert_se(net, reduction=C // R).replaced
    assert not is_fused or fuse(net).replaced
    return net


MODELS = {
    "built": lambda: FusedSE(C, rd_channels=R),
    "built_excitation": lambda: FusedSE(C, excitation=nn.Linear(C, C)),
    "built_batch_norm": lambda: FusedBatchNormSE(C, rd_channels=R, add=True, post_act="relu"),
    "replaced": partial(replaced, timm_se),
    "replaced_channels_last": partial(replaced, channels_last),
    "replaced_scse": partial(replaced, scse),
    "replaced_clamp": partial(replaced, clamped),
    "replaced_mbconv": partial(replaced, mbconv),
    "fused": timm_net,
    "inserted": torchvision_net,
    "inserted_fused": partial(torchvision_net, is_fused=True),
}


def load(name: str) -> dict:
    with gzip.open(PICKLES / f"{name}.pt.gz") as file:
        return torch.load(file, weights_only=False)


def classes(model: nn.Module) -> list[type]:
    return [type(module) for module in model.modules()]


def step(model, args):
    y = model(*args)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [*model.parameters()])]


def unfused_blocks(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if isinstance(m, FusedBlock) and m.__fusion__.calls is None]


@pytest.mark.parametrize("name, make", MODELS.items(), ids=MODELS)
def test_saved_by_the_version_before(name, make):
    new = make().eval()  # first: the library may be missing
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a module that does not run fused warns
        model, args, result = load(name).values()
        assert classes(model) == classes(new) and not unfused_blocks(model)
        new.load_state_dict(model.state_dict())
        torch.testing.assert_close(model(*args), result)
        for training in (False, True):
            found, expected = (step(each.train(training), args) for each in (model, new))
            torch.testing.assert_close(found, expected)
        torch.testing.assert_close([*model.buffers()], [*new.buffers()])


def test_surgery_on_a_loaded_model_is_undone():
    timm_se()
    model, args, result = load("replaced").values()
    assert restore_se(model).replaced and type(model) is type(timm_se())
    torch.testing.assert_close(model(*args), result)
    torchvision_net()
    model = load("inserted")["model"]
    assert [entry.name for entry in remove_se(model).replaced] == ["layer1.0.se"]
    assert not any(isinstance(module, FusedSE) for module in model.modules())


def test_every_file_is_loaded():
    assert {path.name for path in PICKLES.iterdir()} == {f"{name}.pt.gz" for name in MODELS}
