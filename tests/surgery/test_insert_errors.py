"""insert_se: what it refuses, with one line that says why and what is accepted."""

import pytest
import torch
from plain_resnets import WITHOUT, resnet
from residual_blocks import Block, C, Net
from se_modules import Cadene, Copied, NVIDIAGate
from torch import nn

from se_fused import FusedSE, insert_se


def _inserted():
    network = resnet()
    insert_se(network)
    return network


WITH_SE = {
    "fused": lambda: nn.Sequential(nn.Tanh(), FusedSE(C)),
    "known-by-class": lambda: nn.Sequential(nn.Tanh(), Cadene()),
    "known-and-never-replaced": lambda: nn.Sequential(nn.Tanh(), NVIDIAGate()),
    "known-by-layers": lambda: nn.Sequential(nn.Tanh(), Copied()),
    "inserted": _inserted,
}


@pytest.mark.parametrize("make", WITH_SE.values(), ids=WITH_SE)
def test_model_with_se(make):
    with pytest.raises(ValueError, match=r"model must have no SE; .+ is a .+\..+"):
        insert_se(make(), blocks=lambda name, module: C)


def _of_another_version():
    network = resnet()
    del network.layer1[0].conv3
    return network


def _patched():
    network = resnet()
    network.layer2[0].forward = network.layer2[0].forward
    return network


def _vgg():
    with torch.device("meta"):
        vgg = pytest.importorskip("torchvision.models.vgg", reason=WITHOUT)
        return vgg.VGG(nn.Sequential(nn.Conv2d(3, 8, 3)))


def _always(value):
    return lambda name, module: value


WRONG = {
    "model": (lambda: [], {}, TypeError, "model must be a torch.nn.Module, got list"),
    "where": (resnet, dict(where="middle"), ValueError, "where must be one of standard, pre, post"),
    "where-in-a-basic-block": (
        lambda: resnet("torchvision-basic"), dict(where="conv3x3"), ValueError,
        "one of standard, pre, post, identity in a torchvision.models.resnet.BasicBlock, got 'conv",
    ),
    "where-in-vgg": (
        _vgg, dict(where="identity"), ValueError, "where must be one of standard in a .*'identity'"
    ),
    "unknown-network": (
        lambda: Net(Block(se=nn.Identity())), {}, ValueError,
        "model must have blocks that se_fused knows, got a residual_blocks.Net; .* give blocks=",
    ),
    "other-layers": (
        _of_another_version, {}, ValueError,
        "model must have the layers .* of a .*Bottleneck; layer1.0 has not: .* 'conv3'",
    ),
    "patched-forward": (
        _patched, {}, ValueError,
        "no patched forward where SE goes; layer2.0, a torchvision.*Bottleneck, has one",
    ),
    "unknown-stage": (
        resnet, dict(stages=[1]), ValueError, r"stages must be some of 2, 3, 4, 5, .*got \[1\]"
    ),
    "stage-twice": (resnet, dict(stages=[2, 2]), ValueError, r"stages .* each once, got \[2, 2\]"),
    "no-stage": (resnet, dict(stages=[]), ValueError, r"stages must be some of 2, .*got \[\]"),
    "stages-no-list": (resnet, dict(stages=2.5), ValueError, r"stages must be .* got \[2.5\]"),
    "stages-of-chosen-blocks": (
        nn.Tanh, dict(stages=[2], blocks=_always(C)), ValueError, "stages must be None"
    ),
    "block-outside-of-stages": (
        lambda: nn.ModuleList([resnet(), resnet().layer1]), dict(stages=[2]), ValueError,
        "stages must be None, as the name of 1.0 does not tell its stage",
    ),
    "length-of-reduction": (
        resnet, dict(reduction=[4, 8]), ValueError,
        "reduction must be one value, or one for each of the stages 2, 3, 4, 5; got 2",
    ),
    "length-of-gate": (
        resnet, dict(stages=[3, 4], gate=["tanh"]), ValueError,
        "gate must be one value, or one for each of the stages 3, 4; got 1",
    ),
    "length-of-squeeze": (
        resnet, dict(squeeze=["avg"] * 5), ValueError, "squeeze must be one value, .* got 5"
    ),
    "list-for-chosen-blocks": (
        nn.Tanh, dict(gate=["tanh"], blocks=_always(C)), ValueError,
        "gate must be one value where there are no stages, got 1",
    ),
    "list-for-a-block-outside-of-stages": (
        lambda: nn.ModuleList([resnet(), resnet().layer1]), dict(gate=["tanh"] * 4), ValueError,
        "gate must be one value, as the name of 1.0 does not tell its stage",
    ),
    "reduction": (resnet, dict(reduction=0), ValueError, "reduction must be a positive number"),
    "reduction-of-a-stage": (
        resnet, dict(reduction=[1, 2, "4", 8]), ValueError, "reduction must be .* got '4'"
    ),
    "no-hidden-unit": (
        resnet, dict(reduction=300), ValueError,
        "reduction must leave a hidden unit; 300 leaves none of the 256 channels of layer1.0 in "
        "stage 2",
    ),
    "gate": (resnet, dict(gate="step"), ValueError, "gate must be .*'step'"),
    "gate-of-a-stage": (resnet, dict(gate=["tanh"] * 3 + ["step"]), ValueError, "gate must be"),
    "act": (resnet, dict(act="step"), ValueError, "act must be .*'step'"),
    "blocks": (nn.Tanh, dict(blocks=C), TypeError, "blocks must be callable, got int"),
    "blocks-and-where": (
        nn.Tanh, dict(blocks=_always(C), where="pre"), ValueError, "where must be standard where"
    ),
    "blocks-of-nothing": (nn.Tanh, dict(blocks=_always(None)), ValueError, "blocks must choose a"),
    "channels-no-number": (
        nn.Tanh, dict(blocks=_always(True)), TypeError, "blocks must return .* got True"
    ),
    "channels-below-1": (nn.Tanh, dict(blocks=_always(-C)), TypeError, "got -24 for the model"),
    "container": (
        lambda: nn.ModuleList([nn.Tanh()]), dict(blocks=_always(C)), ValueError,
        "does not go over their children, got the model, a torch.*ModuleList",
    ),
}  # fmt: skip


@pytest.mark.parametrize("make, options, kind, message", WRONG.values(), ids=WRONG)
def test_errors_change_nothing(make, options, kind, message):
    model = make()
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    classes = list(map(type, modules))
    with pytest.raises(kind, match=message):
        insert_se(model, **options)
    assert list(map(type, modules)) == classes
