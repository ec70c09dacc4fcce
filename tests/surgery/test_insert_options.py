"""insert_se: its arguments; test_inserted.py has what works with what it made."""

import copy

import pytest
import torch
from plain_resnets import RESNETS, resnet, se_blocks
from residual_blocks import Block, C, Net
from torch import nn

from se_fused import FusedSE, insert_se
from se_fused.surgery import Report


def widths(network):
    return [(se.fc1.in_channels, se.fc1.out_channels) for se in se_blocks(network)]


def test_report():
    network = resnet("torchvision-basic")
    report = insert_se(network, stages=[2, 5])
    assert isinstance(report, Report) and not report.left
    cls = "torchvision.models.resnet.BasicBlock"
    assert str(report).splitlines() == [
        "3 SE modules inserted, 0 left",
        f"inserted  layer1.0.se  {cls}: 64 channels, 4 hidden",
        f"inserted  layer1.1.se  {cls}: 64 channels, 4 hidden",
        f"inserted  layer4.0.se  {cls}: 512 channels, 32 hidden",
    ]
    assert all(isinstance(network.get_submodule(e.name), FusedSE) for e in report.replaced)


def test_one_value_for_each_stage():
    network = resnet()
    insert_se(network, reduction=[2, 4, 8, 16], gate=["sigmoid", "tanh", "hardsigmoid", nn.ReLU])
    assert widths(network) == [(256, 128)] * 2 + [(512, 128), (1024, 128), (2048, 128)]
    gates = [type(se.gate) for se in se_blocks(network)]
    assert gates == [nn.Sigmoid, nn.Sigmoid, nn.Tanh, nn.Hardsigmoid, nn.ReLU]


def test_one_value_for_each_chosen_stage():
    network = resnet()
    insert_se(network, stages=(4, 2), reduction=(8, 2.5))
    assert widths(network) == [(256, 102)] * 2 + [(1024, 128)]


def test_arguments_of_the_block():
    network = resnet()
    insert_se(network, bias=False, act="silu", gate="hard_sigmoid")
    for se in se_blocks(network):
        assert se.fc1.bias is None and se.fc2.bias is None
        assert (type(se.act), type(se.gate)) == (nn.SiLU, nn.Hardsigmoid)


@pytest.mark.parametrize("squeeze", ["max", ["max", "avg", "avg", "max"]], ids=["one", "by-stage"])
def test_squeeze_is_handed_on(monkeypatch, squeeze):
    given = []

    class Squeezing(FusedSE):
        def __init__(self, *args, squeeze="avg", **kwargs):
            super().__init__(*args, **kwargs)
            given.append(squeeze)

    monkeypatch.setattr("se_fused.surgery.insert.FusedSE", Squeezing)
    insert_se(resnet(), squeeze=squeeze)
    by_stage = [squeeze] * 4 if squeeze == "max" else squeeze
    assert given == [by_stage[0], *by_stage]


def test_as_a_part_of_another_model():
    network = nn.ModuleDict({"backbone": resnet("timm-basic"), "head": nn.Conv2d(64, 3, 1)})
    report = insert_se(network, stages=[5])
    assert [entry.name for entry in report.replaced] == ["backbone.layer4.0.bn2_se"]


@pytest.mark.parametrize("where, layer", [("standard", "bn2"), ("identity", "downsample")])
def test_device_dtype_and_mode_of_the_layer(where, layer):
    network = RESNETS["torchvision-basic"]().bfloat16()
    network.layer2.to(torch.float64)
    network.layer3.to("meta")
    network.layer1.eval()
    insert_se(network, where=where)
    for i, dtype in ((1, torch.bfloat16), (2, torch.float64), (3, torch.bfloat16)):
        for se in se_blocks(getattr(network, f"layer{i}")):
            assert {p.dtype for p in se.parameters()} == {dtype}
            assert {p.is_meta for p in se.parameters()} == {i == 3}
            assert {module.training for module in se.modules()} == {i != 1}
    assert not network.layer1[1].get_submodule(layer).training


@pytest.mark.parametrize("where", ["standard", "pre", "post", "identity"])
@pytest.mark.parametrize("name", ["torchvision-basic", "timm-basic"])
def test_checkpoint_of_the_plain_network(name, where):
    plain, network = RESNETS[name](), RESNETS[name]()
    report = insert_se(network, where=where)
    missing, unexpected = network.load_state_dict(plain.state_dict(), strict=False)
    blocks = {key.rsplit(".", 2)[0] for key in missing}
    assert blocks == {entry.name for entry in report.replaced} and len(missing) == 4 * len(blocks)
    assert not unexpected
    for key, value in plain.state_dict().items():
        assert torch.equal(network.state_dict()[key], value)


# Blocks chosen by the user


class Unit(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(C, C, 3, padding=1), nn.BatchNorm2d(C)

    def forward(self, x, *, scale=1.0):
        return self.bn(self.conv(x)) * scale


class Units(nn.Module):
    """A unit, a Sequential, and a unit with an attribute that is called se."""

    def __init__(self):
        super().__init__()
        self.unit = Unit()
        self.layers = nn.Sequential(nn.Conv2d(C, C, 1), nn.Sequential(nn.Tanh(), nn.ELU()))
        self.taken = Unit()
        self.taken.se = None

    def forward(self, x):
        return self.taken(self.layers(self.unit(x=x, scale=2.0)))


def test_chosen_blocks():
    network = Units().double()
    plain = copy.deepcopy(network)
    chosen = {"unit": C, "layers": C, "taken": C}
    report = insert_se(network, blocks=lambda name, module: chosen.get(name), reduction=3)
    names = ["unit.se", "layers.1.1_se", "taken.inserted_se"]
    assert [entry.name for entry in report.replaced] == names
    first, second, third = (network.get_submodule(name) for name in names)
    x = torch.randn(3, C, 6, 5, dtype=torch.float64)
    y = third(plain.taken(second(plain.layers(first(plain.unit(x, scale=2.0))))))
    torch.testing.assert_close(network(x), y)
    assert not torch.allclose(network(x), plain(x))


def test_blocks_are_chosen_by_name_and_module():
    network = Net(Block(se=nn.Identity()))
    modules = dict(network.named_modules())
    asked = {}

    def blocks(name, module):
        asked[name] = module
        return module.num_features if isinstance(module, nn.BatchNorm2d) else None

    insert_se(network, blocks=blocks)
    assert asked == modules
    assert isinstance(network.block.bn_se, FusedSE) and len(se_blocks(network)) == 1
