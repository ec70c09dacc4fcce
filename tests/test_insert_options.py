"""insert_se: its arguments, what is an error, and what else works with what it made."""

import copy
import pickle

import pytest
import torch
from residual_blocks import Block, C, Net, assert_same, images, step
from se_modules import Cadene, Copied, NVIDIAGate
from test_insert import RESNETS, se_blocks
from torch import nn

from se_fused import FusedSE, insert_se, remove_se, replace_se, restore_se
from se_fused.surgery import Report


def resnet(name="torchvision-bottleneck"):
    with torch.device("meta"):
        return RESNETS[name]()


def widths(network):
    return [(se.fc1.in_channels, se.fc1.out_channels) for se in se_blocks(network)]


def test_report():
    network = resnet("torchvision-basic")
    report = insert_se(network, stages=[2, 5])
    assert isinstance(report, Report) and not report.left
    cls = "torchvision.models.resnet.BasicBlock"
    assert str(report).splitlines() == [
        "3 SE modules inserted, 0 left",
        f"inserted  layer1.0.bn2.se  {cls}: 64 channels, 4 hidden",
        f"inserted  layer1.1.bn2.se  {cls}: 64 channels, 4 hidden",
        f"inserted  layer4.0.bn2.se  {cls}: 512 channels, 32 hidden",
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
    assert [entry.name for entry in report.replaced] == ["backbone.layer4.0.bn2.se"]


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


def test_layers_stay_the_same_objects():
    network = resnet("torchvision-basic")
    modules, parameters = list(network.modules()), set(network.parameters())
    insert_se(network)
    assert [module for module in network.modules() if module in modules] == modules
    assert parameters < set(network.parameters())
    assert isinstance(network.layer1[0].bn2, nn.BatchNorm2d)
    assert "SEBatchNorm2d(" in repr(network) and "FusedSE(" in repr(network)


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
    names = ["unit.se", "layers.1.1.se", "taken.inserted_se"]
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
    assert isinstance(network.block.bn.se, FusedSE) and len(se_blocks(network)) == 1


# Errors


def _inserted():
    network = resnet()
    insert_se(network)
    return network


WITH_SE = {
    "fused": lambda: nn.Sequential(Unit(), FusedSE(C)),
    "known-by-class": lambda: nn.Sequential(Unit(), Cadene()),
    "known-and-never-swapped": lambda: nn.Sequential(Unit(), NVIDIAGate()),
    "known-by-layers": lambda: nn.Sequential(Unit(), Copied()),
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
    network.layer2[0].bn3.forward = network.layer2[0].bn3.forward
    return network


def _vgg():
    with torch.device("meta"):
        return pytest.importorskip("torchvision").models.VGG(nn.Sequential(nn.Conv2d(3, 8, 3)))


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
        "no patched forward where SE goes; a torch.*BatchNorm2d of layer2.0 has one",
    ),
    "unknown-stage": (
        resnet, dict(stages=[1]), ValueError, r"stages must be some of 2, 3, 4, 5, .*got \[1\]"
    ),
    "stage-twice": (resnet, dict(stages=[2, 2]), ValueError, r"stages .* each once, got \[2, 2\]"),
    "no-stage": (resnet, dict(stages=[]), ValueError, r"stages must be some of 2, .*got \[\]"),
    "stages-no-list": (resnet, dict(stages=2.5), ValueError, r"stages must be .* got \[2.5\]"),
    "stages-of-chosen-blocks": (
        Unit, dict(stages=[2], blocks=_always(C)), ValueError, "stages must be None"
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
        Unit, dict(gate=["tanh"], blocks=_always(C)), ValueError,
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
    "blocks": (Unit, dict(blocks=C), TypeError, "blocks must be callable, got int"),
    "blocks-and-where": (
        Unit, dict(blocks=_always(C), where="pre"), ValueError, "where must be standard where bloc"
    ),
    "blocks-of-nothing": (Unit, dict(blocks=_always(None)), ValueError, "blocks must choose a mod"),
    "channels-no-number": (
        Unit, dict(blocks=_always(True)), TypeError, "blocks must return the channels .* got True"
    ),
    "channels-below-1": (Unit, dict(blocks=_always(-C)), TypeError, "got -24 for the model"),
    "container": (
        lambda: nn.ModuleList([Unit()]), dict(blocks=_always(C)), ValueError,
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


# With what was inserted


@pytest.fixture
def inserted():
    network = Net(Block(se=nn.Identity())).double()
    insert_se(network, blocks=lambda name, module: C if name == "block.bn" else None)
    return network


def test_deepcopy_and_pickle(inserted):
    x = images()
    copies = copy.deepcopy(inserted), pickle.loads(pickle.dumps(inserted))
    expected = step(inserted, x)
    for network in copies:
        assert type(network.block.bn) is type(inserted.block.bn)
        assert network.block.bn.se is not inserted.block.bn.se
        assert_same(step(network, x), expected)


@pytest.mark.parametrize("where", ["standard", "pre"])
def test_compiled_whole(where):
    network = RESNETS["torchvision-basic"]().layer1.double()
    insert_se(network, where=where)
    x = torch.randn(2, 64, 8, 8, dtype=torch.float64)
    compiled = torch.compile(copy.deepcopy(network), fullgraph=True, backend="aot_eager")
    assert_same(step(compiled, x), step(network, x))


def test_fx_sees_layers_as_such(inserted):
    graph = torch.fx.symbolic_trace(inserted.eval())
    assert "block.bn" in [node.target for node in graph.graph.nodes]
    x = images()
    assert torch.equal(graph(x), inserted(x))


def test_replace_and_restore_leave_it(inserted):
    report = replace_se(inserted)
    assert not report.replaced and not report.left
    reason = "it was built as FusedSE, not replaced"
    assert restore_se(inserted).left == [("block.bn.se", "se_fused.module.FusedSE", reason)]


def test_script_is_refused(inserted):
    with pytest.raises(NotImplementedError, match="torch.jit.script cannot compile"):
        torch.jit.script(inserted)


@pytest.mark.parametrize("where", ["standard", "pre", "post", "identity"])
def test_removed(where):
    network = RESNETS["timm-basic"]().eval()
    plain = copy.deepcopy(network)
    insert_se(network, where=where)
    report = remove_se(network)
    assert len(report.replaced) == 5 and str(report).startswith("5 SE modules removed, 0 left")
    assert list(network.state_dict()) == list(plain.state_dict()) and not se_blocks(network)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(network(x), plain(x))
    assert not remove_se(network).replaced


def test_remove_from_what_is_no_module():
    with pytest.raises(TypeError, match="model must be a torch.nn.Module, got list"):
        remove_se([])
