"""TorchScript, trace, export, ONNX and feature extraction of networks after replace_se and fuse."""

import copy
import io

import pytest
import torch
from library_networks import (
    WITHOUT,
    from_monai,
    from_segmentation_models,
    from_timm,
    from_torchvision,
    without_chance,
)
from ordered import SE, observed
from selection import kept
from torch import nn

from se_fused import fuse, replace_se
from se_fused.surgery.fused_block import FusedBlock

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.*deprecated:FutureWarning")
IN_EVAL_MODE = {"excite"}


def from_blocks(name, *arguments):
    """A module of MONAI after a convolution."""
    blocks = pytest.importorskip("monai.networks.blocks", reason=WITHOUT)
    return nn.Sequential(nn.Conv2d(3, 16, 1), getattr(blocks, name)(2, 16, *arguments)), (8, 8)


def efficientnet_of_monai():
    nets = pytest.importorskip("monai.networks.nets", reason=WITHOUT)
    options = dict(pretrained=False, spatial_dims=2, in_channels=3, num_classes=2)
    return nets.EfficientNetBN("efficientnet-b0", **options), (64, 64)


def unet(encoder):
    smp = pytest.importorskip("segmentation_models_pytorch", reason=WITHOUT)
    return smp.Unet(encoder, encoder_weights=None), (64, 64)


# A network, and how many of its SE modules are replaced and fused.
NETWORKS = {
    "seresnet18": (lambda: from_timm("seresnet18"), 8, 8),
    "timm-efficientnet": (lambda: from_timm("efficientnet_b0"), 16, 16),
    "regnety": (lambda: from_timm("regnety_002"), 13, 13),
    "timm-mobilenetv3": (lambda: from_timm("mobilenetv3_small_050"), 9, 9),
    "ese-vovnet": (lambda: from_timm("ese_vovnet19b_dw"), 4, 0),
    "torchvision-mobilenetv3": (lambda: from_torchvision("mobilenet_v3_small"), 9, 9),
    "torchvision-efficientnet": (lambda: from_torchvision("efficientnet_b0"), 16, 16),
    "monai-2d": (lambda: from_monai(2), 4, 4),
    "monai-3d": (lambda: from_monai(3), 4, 4),
    "monai-efficientnet": (efficientnet_of_monai, 16, 0),
    "monai-layer": (lambda: from_blocks("ChannelSELayer", 4), 1, 0),
    "monai-residual-layer": (lambda: from_blocks("ResidualSELayer", 4), 1, 0),
    "unet": (lambda: unet("se_resnet50"), 16, 16),
    "unet-scse": (lambda: from_segmentation_models("resnet18"), 10, 0),
    "unet-mobileone": (lambda: unet("mobileone_s4"), 12, 0),
}
each_network = pytest.mark.parametrize("make, replaced, fused", NETWORKS.values(), ids=NETWORKS)


def pair(make, dtype=torch.float64):
    """A network as it is and fused, in eval mode, with a batch of images."""
    torch.manual_seed(0)
    network, size = make()
    plain = without_chance(network).to(dtype).eval()
    net = copy.deepcopy(plain)
    counts = [len(surgery(net).replaced) for surgery in (replace_se, fuse)]
    return plain, net, torch.randn(2, 3, *size, dtype=dtype), counts


def tensors(result):
    return result if isinstance(result, (list, tuple)) else [result]


def close(found, expected, tolerance):
    for a, b in zip(tensors(found), tensors(expected), strict=True):
        scale = b.abs().max()
        torch.testing.assert_close(a / scale, b / scale, rtol=0, atol=tolerance)


def classes_and_children(net):
    return [(type(module), dict(module._modules)) for module in net.modules()]


@kept(each_network, "torchvision-mobilenetv3", "monai-layer")
def test_script(make, replaced, fused):
    plain, net, x, counts = pair(make)
    assert counts == [replaced, fused]
    before, keys = classes_and_children(net), list(net.state_dict())
    scripted = torch.jit.script(net)
    assert classes_and_children(net) == before and list(net.state_dict()) == keys
    assert list(scripted.state_dict()) == keys == list(plain.state_dict())
    operators = {node.kind() for node in scripted.inlined_graph.nodes()}
    assert operators and all(name.startswith(("aten::", "prim::")) for name in operators)
    file = io.BytesIO()
    torch.jit.save(scripted, file)
    file.seek(0)
    with torch.no_grad():
        expected = plain(x)
        found, called, said = observed(net, x)
        for one in (scripted, torch.jit.load(file)):
            close(one(x), expected, 0)  # the same operators
    close(found, expected, 1e-9)
    assert bool(called & IN_EVAL_MODE) == bool(fused) and not said


CAPTURED = {name: NETWORKS[name] for name in ("seresnet18", "torchvision-mobilenetv3", "monai-2d")}
each_captured = kept(
    pytest.mark.parametrize("make", [row[0] for row in CAPTURED.values()], ids=CAPTURED),
    "torchvision-mobilenetv3",
)


@each_captured
@pytest.mark.filterwarnings("error::torch.jit.TracerWarning")
def test_trace(make):
    plain, net, x, _ = pair(make)
    traced = torch.jit.trace(net, x, check_trace=False)
    operators = {node.kind() for node in traced.inlined_graph.nodes()}
    assert all(name.startswith(("aten::", "prim::")) for name in operators)
    close(traced(x[:1]), plain(x[:1]), 1e-9)


@each_captured
@kept(pytest.mark.parametrize("strict", [True, False], ids=["strict", "non-strict"]), "non-strict")
def test_export(make, strict):
    plain, net, x, _ = pair(make)
    program = torch.export.export(net, (x,), strict=strict)
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert targets and not any("se_fused" in target for target in targets)
    close(program.module()(x), plain(x), 1e-9)
    assert observed(net, x)[1] & IN_EVAL_MODE


@pytest.mark.thorough
def test_onnx():
    pytest.importorskip("onnx", reason="onnx is not installed; test_export covers the capture")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed; see test_export")
    from onnx.reference import ReferenceEvaluator

    plain, net, x, _ = pair(NETWORKS["torchvision-mobilenetv3"][0], torch.float32)
    model = torch.onnx.export(net, (x,), dynamo=True, verbose=False).model_proto
    assert {node.domain for node in model.graph.node} == {""} and not model.functions
    [found] = ReferenceEvaluator(model).run(None, {model.graph.input[0].name: x.numpy()})
    close(torch.from_numpy(found), plain(x).detach(), 1e-4)


# torchvision's feature extraction

extraction = pytest.importorskip("torchvision.models.feature_extraction", reason=WITHOUT)
FEATURES = {
    "seresnet18": (NETWORKS["seresnet18"][0], "layer3.0.se"),
    "torchvision-mobilenetv3": (NETWORKS["torchvision-mobilenetv3"][0], "features.5.block"),
    "torchvision-regnet": (lambda: from_torchvision("regnet_y_400mf"), "fc"),
}
each_feature = kept(
    pytest.mark.parametrize("make, name", FEATURES.values(), ids=FEATURES),
    "torchvision-mobilenetv3",
)


@each_feature
def test_feature_extractor_runs_blocks_unfused_and_says_so(make, name):
    plain, net, x, _ = pair(make)
    expected = extraction.create_feature_extractor(plain, [name])(x)[name]
    with pytest.warns(UserWarning, match="unfused: torch.fx traces through it: make its class"):
        extractor = extraction.create_feature_extractor(net, [name])
    found, called, _ = observed(extractor, x)
    close(found[name], expected, 1e-9)
    assert called == SE
    report = fuse(extractor)
    reason = "its block's forward is another in training than in eval mode"
    assert not report.replaced and {entry.reason for entry in report.left} == {reason}
    close(extractor(x)[name], expected, 1e-9)


@each_feature
@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_fused_blocks_may_be_leaves_of_a_feature_extractor(make, name, training):
    if name.endswith(".se"):
        name = "layer3.0"  # not inside of a leaf
    plain, net, x, _ = pair(make)
    leaves = [type(module) for module in net.modules() if isinstance(module, FusedBlock)]
    if name.endswith(".block"):
        name = "features.5"
    extractor = extraction.create_feature_extractor(
        net, [name], tracer_kwargs={"leaf_modules": leaves}
    ).train(training)
    expected = extraction.create_feature_extractor(plain, [name]).train(training)(x)[name]
    found, called, said = observed(extractor, x)
    close(found[name], expected, 1e-9)
    assert called and not said


def test_fuse_of_a_traced_network():
    plain, net, x, _ = pair(NETWORKS["torchvision-mobilenetv3"][0])
    with pytest.warns(UserWarning, match="call fuse on the traced module"):
        graph = torch.fx.symbolic_trace(net)
    assert observed(graph, x)[1] == SE
    report = fuse(graph)
    found, called, said = observed(graph, x)
    close(found, plain(x), 1e-9)
    assert report.replaced and called >= IN_EVAL_MODE and not said
