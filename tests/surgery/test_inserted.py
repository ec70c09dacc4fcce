"""What else works with SE that insert_se put into a network, and remove_se, in each form."""

import copy
import pickle

import pytest
import torch
from plain_resnets import RESNETS, se_blocks
from residual_blocks import Block, C, Net, Unit, assert_same, images, step
from torch import nn

from se_fused import FusedSE, insert_se, remove_se, replace_se, restore_se

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.*deprecated:FutureWarning")


def plain_net():
    torch.manual_seed(3)
    layers = nn.Sequential(nn.Conv2d(C, C, 1), nn.Tanh())
    return Net(nn.Sequential(Unit(), layers, Block(se=nn.Identity()))).double()


# The layer that SE follows, the name that SE has, and the modules whose class changes.
FORMS = {
    "in-a-sequential": ("block.1.1", "block.1.1_se", []),
    "after-a-block": ("block.0", "block.0.se", ["block.0"]),
    "in-a-block": ("block.0.bn", "block.0.se", ["block.0"]),
    "in-a-block-that-has-se": ("block.2.bn", "block.2.bn_se", ["block.2"]),
}
each_form = pytest.mark.parametrize("layer, name, changed", FORMS.values(), ids=FORMS)


def inserted_net(*layers):
    network = plain_net()
    insert_se(network, blocks=lambda name, module: C if name in layers else None, reduction=4)
    return network


def by_hand(network, layer, name):
    """The plain network with the inserted block after the result of a layer."""
    plain, se = plain_net(), network.get_submodule(name)
    plain.get_submodule(layer).register_forward_hook(lambda module, args, y: se(y))
    return plain


def types_of(network):
    return {name: type(module) for name, module in network.named_modules()}


@each_form
def test_what_changes(layer, name, changed):
    plain, network = plain_net(), inserted_net(layer)
    se = network.get_submodule(name)
    assert type(se) is FusedSE and se_blocks(network) == [se]
    found, before = types_of(network), types_of(plain)
    assert [key for key in before if found[key] is not before[key]] == changed
    assert all(issubclass(found[key], before[key]) for key in before)
    added = network.state_dict().keys() - plain.state_dict().keys()
    assert {key.rsplit(".", 2)[0] for key in added} == {name} and len(added) == 4
    x = images()
    assert_same(network(x), by_hand(network, layer, name)(x))


@each_form
def test_copies(layer, name, changed, tmp_path):
    network, x = inserted_net(layer), images()
    torch.save(network, tmp_path / "network.pt")
    copies = (
        copy.deepcopy(network),
        pickle.loads(pickle.dumps(network)),
        torch.load(tmp_path / "network.pt", weights_only=False),
    )
    expected = step(network, x)
    for twin in copies:
        assert types_of(twin) == types_of(network)
        assert twin.get_submodule(name) is not network.get_submodule(name)
        assert_same(step(twin, x), expected)
        assert [entry.name for entry in remove_se(twin).replaced] == [name]
        assert types_of(twin) == types_of(plain_net())


@each_form
def test_scripted(layer, name, changed):
    network = inserted_net(layer).eval()
    before, keys = types_of(network), list(network.state_dict())
    scripted, x = torch.jit.script(network), images()
    assert_same(scripted(x), network(x))
    assert_same(network(x), by_hand(network, layer, name).eval()(x))
    assert types_of(network) == before and list(network.state_dict()) == keys
    assert len(remove_se(network).replaced) == 1


@each_form
def test_compiled_whole(layer, name, changed):
    network, x = inserted_net(layer), images()
    compiled = torch.compile(copy.deepcopy(network), fullgraph=True, backend="aot_eager")
    assert_same(step(compiled, x), step(network, x))


@pytest.mark.parametrize("where", ["standard", "pre", "post", "identity"])
def test_library_network_compiled_and_scripted(where):
    network = RESNETS["torchvision-basic"]().layer1.double()
    insert_se(network, where=where)
    x = torch.randn(2, 64, 8, 8, dtype=torch.float64)
    compiled = torch.compile(copy.deepcopy(network), fullgraph=True, backend="aot_eager")
    assert_same(step(compiled, x), step(network, x))
    network.eval()
    assert_same(torch.jit.script(network)(x), network(x))


@each_form
def test_fx_sees_layers_and_se(layer, name, changed):
    network = inserted_net(layer).eval()
    graph = torch.fx.symbolic_trace(network)
    targets = [node.target for node in graph.graph.nodes if node.op == "call_module"]
    last = "block.0.bn" if layer == "block.0" else layer
    assert targets[targets.index(last) + 1] == name and targets.count(name) == 1
    x = images()
    assert_same(graph(x), network(x))


def test_exported():
    network, x = inserted_net("block.0.bn", "block.1", "block.2").eval(), images()
    exported = torch.export.export(network, (x,)).module()
    assert_same(exported(x), network(x))


def test_replace_and_restore_leave_it():
    network = inserted_net("block.2.bn")
    report = replace_se(network)
    assert not report.replaced and not report.left
    reason = "it was built as FusedSE, not replaced"
    assert restore_se(network).left == [("block.2.bn_se", "se_fused.modules.se.FusedSE", reason)]


# remove_se


def structure_of(network):
    """Classes, children in their order, and attributes that are None."""
    return {
        name: (type(m), list(m._modules), {key for key, value in vars(m).items() if value is None})
        for name, m in network.named_modules()
    }


@pytest.mark.parametrize("where", ["standard", "pre", "post", "identity"])
@pytest.mark.parametrize("name", ["torchvision-basic", "timm-bottleneck"])
def test_removed(name, where):
    network = RESNETS[name]().eval()
    plain = copy.deepcopy(network)
    insert_se(network, where=where)
    assert len(se_blocks(network)) == 5
    report = remove_se(network)
    assert len(report.replaced) == 5 and str(report).startswith("5 SE modules removed, 0 left")
    assert structure_of(network) == structure_of(plain)
    assert list(network.state_dict()) == list(plain.state_dict())
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(network(x), plain(x))
    assert not remove_se(network).replaced
    assert len(insert_se(network, where=where).replaced) == 5


def test_several_in_one_network():
    network = inserted_net("block.0", "block.0.conv", "block.0.bn", "block.1.0", "block.1.1")
    names = ["block.0.se", "block.0.conv_se", "block.0.bn_se", "block.1.0_se", "block.1.1_se"]
    of = dict(zip(names, map(network.get_submodule, names)))
    plain = plain_net()
    for layer, name in zip(("block.0", *(name[:-3] for name in names[1:])), names):
        plain.get_submodule(layer).register_forward_hook(lambda m, args, y, se=of[name]: se(y))
    x = images()
    assert_same(network(x), plain(x))
    assert_same(torch.jit.script(network.eval())(x), plain.eval()(x))
    assert {entry.name for entry in remove_se(network).replaced} == set(names)
    assert structure_of(network) == structure_of(plain_net())


def test_removed_after_the_block_was_put_elsewhere():
    """By a slice, and where the layer and SE were exchanged for others."""
    network = inserted_net("block.0.bn", "block.1")
    part = nn.Sequential(*network.block)
    part[0].bn, part[0].se = nn.Identity(), nn.Identity()
    part[1] = part[1][1:]
    report = remove_se(part)
    assert [entry.name for entry in report.replaced] == ["0.se", "1.1_se"]
    assert type(part[0]) is Unit and list(part[0]._modules) == ["conv", "bn"]
    assert list(part[1]._modules) == ["1"]


def test_left_where_it_was_moved():
    network = inserted_net("block.1")
    network.head = nn.ModuleDict({"se": network.block[1].get_submodule("1_se")})
    del network.block[1]._modules["1_se"]
    (left,) = remove_se(network).left
    assert left == ("head.se", "se_fused.modules.se.FusedSE", "it is not where insert_se put it")


def test_remove_from_what_is_no_module():
    with pytest.raises(TypeError, match="model must be a torch.nn.Module, got list"):
        remove_se([])
