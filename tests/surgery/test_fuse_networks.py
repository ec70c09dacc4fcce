"""fuse on whole networks of libraries: what of each is fused, and that it trains the same."""

import copy
from collections import Counter

import pytest
import torch
from library_networks import (
    assert_same,
    from_monai,
    from_timm,
    from_torchvision,
    from_transformers,
    without_chance,
)
from plain_resnets import RESNETS
from residual_blocks import recorded_calls
from selection import kept
from torch import nn

from se_fused import insert_se, replace_se
from se_fused.surgery import fuse, unfuse

WITHOUT = "not installed; test_fuse.py covers the pattern"
timm = pytest.importorskip("timm", reason=WITHOUT)

SE, END = "BatchNorm + SE", "BatchNorm + SE + add + relu"
RELU, SILU, HARDSWISH = (f"BatchNorm + {act} + SE" for act in ("relu", "silu", "hardswish"))


def from_edge_blocks(squeeze_excite):
    blocks = pytest.importorskip("timm.models._efficientnet_blocks", reason=WITHOUT)
    layers = [
        blocks.EdgeResidual(
            width, 16, stride=stride, exp_ratio=4, act_layer=nn.SiLU,
            se_layer=getattr(blocks, squeeze_excite),
        )
        for width, stride in ((3, 2), (16, 1))
    ]  # fmt: skip
    return nn.Sequential(*layers), (32, 32)


def from_timm_with_4_blocks(name):
    return from_timm(name, layers=(1, 1, 1, 1))


def from_small_resnets(name):
    return RESNETS[name](), (64, 64)


# What is fused of each, and how often.
NETWORKS = {
    "timm-seresnet": (from_timm_with_4_blocks, "seresnet18", {END: 4}),
    "timm-seresnext": (from_timm_with_4_blocks, "seresnext26d_32x4d", {END: 4}),
    "timm-legacy-seresnet": (
        from_timm_with_4_blocks, "legacy_seresnet18", {"BatchNorm + relu + SE + add + relu": 4}
    ),
    "timm-legacy-seresnext": (from_timm_with_4_blocks, "legacy_seresnext26_32x4d", {END: 4}),
    "timm-efficientnet-b0": (from_timm, "efficientnet_b0", {SILU: 16}),
    "timm-edge-residual": (from_edge_blocks, "SqueezeExcite", {SILU: 2}),
    "timm-mobilenetv3": (from_timm, "mobilenetv3_large_100", {RELU: 3, HARDSWISH: 5}),
    "timm-regnety": (from_timm, "regnety_002", {RELU: 13}),
    "tv-mobilenet-v3": (from_torchvision, "mobilenet_v3_small", {RELU: 1, HARDSWISH: 8}),
    "tv-efficientnet-b0": (from_torchvision, "efficientnet_b0", {SILU: 16}),
    "tv-regnet-y": (from_torchvision, "regnet_y_400mf", {RELU: 16}),
    "monai-2d": (from_monai, 2, {END: 4}),
    "monai-3d": (from_monai, 3, {END: 4}),
    "hf-regnet": (from_transformers, "regnet", {RELU: 4}),
}


STEPS = 2


def train(network, x):
    """The result and all gradients and buffers of the first step; the result in eval mode."""
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4)
    for index in range(STEPS):
        x_now = x.clone().requires_grad_()
        optimizer.zero_grad()
        y = network(x_now)
        y.square().mean().backward()
        if index == 0:
            first = [y.detach(), x_now.grad, *(p.grad.clone() for p in network.parameters())]
            first += [b.clone() for b in network.buffers()]
        optimizer.step()
    network.eval()
    with torch.no_grad():
        return [*first, network(x)]


@kept(pytest.mark.parametrize("make, name, covered", NETWORKS.values(), ids=NETWORKS),
      "timm-regnety", "tv-mobilenet-v3", "monai-2d", "hf-regnet")
def test_same_training(monkeypatch, make, name, covered):
    calls = recorded_calls(monkeypatch)
    eager, size = make(name)
    eager = without_chance(eager.double())
    fused = copy.deepcopy(eager)
    classes = [type(module) for module in fused.modules()]
    replace_se(fused)
    report = fuse(fused)
    assert Counter(entry.covers for entry in report.replaced) == covered and not report.left

    x = torch.randn(4, 3, *size, dtype=torch.float64)
    assert_same(train(fused, x), train(eager, x))
    assert len(calls) == (STEPS + 1) * sum(covered.values())
    fused.load_state_dict(eager.state_dict(), strict=True)
    assert len(unfuse(fused).replaced) == sum(covered.values())
    assert sum(type(m) is not c for m, c in zip(fused.modules(), classes)) == sum(covered.values())


# The same of networks without SE, into which it was put.
INSERTED = {
    "tv-basic-blocks": (from_small_resnets, "torchvision-basic", {END: 5}),
    "tv-bottlenecks": (from_small_resnets, "torchvision-bottleneck", {END: 5}),
    "timm-basic-blocks": (from_small_resnets, "timm-basic", {END: 5}),
    "timm-mobilenet-v2": (from_timm, "mobilenetv2_035", {"BatchNorm + SE + add": 10, SE: 7}),
    "tv-shufflenet-v2": (from_torchvision, "shufflenet_v2_x0_5", {RELU: 16}),
}


@kept(pytest.mark.parametrize("make, name, covered", INSERTED.values(), ids=INSERTED),
      "tv-shufflenet-v2")
def test_same_training_with_inserted_se(monkeypatch, make, name, covered):
    calls = recorded_calls(monkeypatch)
    unfused, size = make(name)
    unfused = without_chance(unfused.double())
    insert_se(unfused, reduction=8)
    fused = copy.deepcopy(unfused)
    report = fuse(fused)
    assert Counter(entry.covers for entry in report.replaced) == covered and not report.left

    x = torch.randn(4, 3, *size, dtype=torch.float64)
    assert_same(train(fused, x), train(unfused, x))
    assert len(calls) == (STEPS + 1) * sum(covered.values())
    assert len(unfuse(fused).replaced) == sum(covered.values())
    assert [type(m) for m in fused.modules()] == [type(m) for m in unfused.modules()]


def test_drop_path_ends_the_fusion():
    network = timm.create_model("seresnet18", num_classes=5, drop_path_rate=0.2)
    replace_se(network)
    covers = [entry.covers for entry in fuse(network).replaced]
    assert covers == [END] + 7 * [SE]


@kept(pytest.mark.parametrize("name, covered", [("efficientnet_b0", {SILU: 16}),
                                                ("regnety_002", {RELU: 13})],
                              ids=["efficientnet-b0", "regnety"]), "regnety")
@pytest.mark.parametrize("converted_first", [True, False], ids=["before-fuse", "after-fuse"])
def test_synchronised_norms_of_timm_in_eval_mode(monkeypatch, name, covered, converted_first):
    """In training they need CUDA by themselves; test_distributed_batch_norm.py trains a block."""
    calls = recorded_calls(monkeypatch)
    eager, size = from_timm(name)
    eager = without_chance(eager.double().eval())
    fused = copy.deepcopy(eager)
    replace_se(fused)
    if converted_first:
        fused = timm.layers.convert_sync_batchnorm(fused)
    report = fuse(fused)
    assert Counter(entry.covers for entry in report.replaced) == covered and not report.left
    if not converted_first:
        fused = timm.layers.convert_sync_batchnorm(fused)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    results = []
    for network in (fused, eager):
        x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0)).double()
        y = network(x.requires_grad_())
        inputs = x, *network.parameters()
        results.append([y.detach(), *torch.autograd.grad(y.square().mean(), inputs)])
    assert_same(*results)
    assert len(calls) == sum(covered.values())
