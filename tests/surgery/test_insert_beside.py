"""SE that insert_se puts beside a layer: what is done to the layer later leaves SE alone."""

import copy
from abc import ABCMeta

import pytest
import torch
from library_networks import assert_same, without_chance
from plain_resnets import RESNETS, se_blocks
from residual_blocks import Block, C, Net, images
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from se_fused import insert_se, remove_se


def at(*names):
    return lambda name, module: C if name in names else None


@pytest.mark.parametrize("name", RESNETS)
def test_layers_keep_their_objects_and_classes(name):
    network = RESNETS[name]()
    layers = [module for module in network.modules() if not isinstance(module, nn.Sequential)]
    classes = [type(module) for module in layers if not module._modules]
    parameters = list(network.parameters())
    insert_se(network)
    of_se = {m for se in se_blocks(network) for m in se.modules()}
    kept = [module for module in network.modules() if module in set(layers)]
    assert kept == layers
    assert [type(module) for module in kept if not module._modules] == classes
    own = {p for module in of_se for p in module.parameters()}
    assert [p for p in network.parameters() if p not in own] == parameters
    block = network.layer1[0]
    assert isinstance(block, type(RESNETS[name]().layer1[0]))
    assert f"SE{type(block).__mro__[1].__name__}(" in repr(network) and "FusedSE(" in repr(network)


@pytest.mark.parametrize("where", ["standard", "pre", "post", "identity"])
@pytest.mark.parametrize("name", RESNETS)
def test_freezing_batch_norm_leaves_se_trainable(name, where):
    network = RESNETS[name]()
    insert_se(network, where=where)
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm)):
            module.eval()
            for parameter in module.parameters():
                parameter.requires_grad = False
    for se in se_blocks(network):
        assert all(p.requires_grad for p in se.parameters()) and se.training
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert not any(p.requires_grad for m in norms for p in m.parameters())


def pairs(block):
    """Convolutions of a block, each with the norm after it."""
    names = [name for name, m in block.named_children() if isinstance(m, nn.Conv2d)]
    return [(name, name.replace("conv", "bn")) for name in names]


def by_attribute(block, conv, bn):
    setattr(block, conv, fuse_conv_bn_eval(getattr(block, conv), getattr(block, bn)))
    setattr(block, bn, nn.Identity())


def by_child(block, conv, bn):
    modules = block._modules
    modules[conv] = fuse_conv_bn_eval(modules[conv], modules[bn])
    modules[bn] = nn.Identity()


@pytest.mark.parametrize("where", ["standard", "pre", "post", "identity"])
@pytest.mark.parametrize("fold", [by_attribute, by_child], ids=["attribute", "child"])
@pytest.mark.parametrize("name", ["torchvision-basic", "timm-bottleneck"])
def test_folding_batch_norm_into_convolutions(name, fold, where):
    network = without_chance(RESNETS[name]().double()).eval()
    insert_se(network, where=where)
    folded = copy.deepcopy(network)
    for layer in (folded.layer1, folded.layer2, folded.layer3, folded.layer4):
        for block in layer:
            for conv, bn in pairs(block):
                fold(block, conv, bn)
    assert len(se_blocks(folded)) == 5
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.layer1[1].children())
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(folded(x), network(x), rtol=1e-10, atol=1e-10)
    for se in se_blocks(folded):
        nn.init.constant_(se.fc2.bias, -3.0)
    assert not torch.allclose(folded(x), network(x))


def test_converted_to_sync_batch_norm():
    plain = RESNETS["torchvision-basic"]().double().eval()
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(plain))
    insert_se(converted)
    network = copy.deepcopy(plain)
    insert_se(network)
    before = se_blocks(network)
    network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    assert se_blocks(network) == before and len(before) == 5
    assert isinstance(network.layer1[0].bn2, nn.SyncBatchNorm)
    assert list(network.state_dict()) == list(converted.state_dict())
    converted.load_state_dict(network.state_dict())
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    assert torch.equal(network(x), converted(x))


# Other blocks


class Abstract(nn.Module, metaclass=ABCMeta):
    """As mmengine's modules have it."""


class AbstractBlock(Abstract):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(C, C, 1), nn.BatchNorm2d(C)

    def forward(self, x):
        return self.bn(self.conv(x)) + x


@pytest.mark.parametrize("layer", ["block", "block.bn"])
def test_blocks_of_another_metaclass(layer):
    network = Net(AbstractBlock()).double()
    plain = copy.deepcopy(network)
    insert_se(network, blocks=at(layer))
    se = copy.deepcopy(network).block.se
    plain.get_submodule(layer).register_forward_hook(lambda module, args, y: se(y))
    x = images()
    assert_same([network(x)], [plain(x)])
    remove_se(network)
    assert type(network.block) is AbstractBlock


class Listed(nn.Module):
    def __init__(self):
        super().__init__()
        self.units = nn.ModuleList([AbstractBlock(), AbstractBlock()])

    def forward(self, x):
        for unit in self.units:
            x = unit(x)
        return x


def test_blocks_in_a_list():
    network = Net(Listed()).double()
    plain = copy.deepcopy(network)
    report = insert_se(network, blocks=lambda _, m: C if isinstance(m, AbstractBlock) else None)
    assert [entry.name for entry in report.replaced] == [f"block.units.{i}.se" for i in (0, 1)]
    for unit, se in zip(plain.block.units, se_blocks(network)):
        unit.register_forward_hook(lambda module, args, y, se=se: se(y))
    x = images()
    assert_same([network(x)], [plain(x)])


class NormAct(nn.BatchNorm2d):
    """A norm with its activation, as timm has it: a layer, though it has children."""

    def __init__(self):
        super().__init__(C)
        self.act = nn.SiLU()

    def forward(self, x):
        return self.act(super().forward(x))


def test_norm_with_children_is_a_layer():
    network = Net(Block(bn=NormAct(), se=nn.Identity())).double()
    insert_se(network, blocks=at("block.bn"))
    assert type(network.block.bn) is NormAct and list(network.block.bn._modules) == ["act"]
    assert network.block.bn_se is se_blocks(network)[0]


def test_order_and_names_in_a_sequential():
    layers = nn.Sequential(nn.Conv2d(C, C, 1), nn.BatchNorm2d(C), nn.ReLU())
    network = Net(layers)
    insert_se(network, blocks=at("block.0", "block.2"))
    assert list(layers._modules) == ["0", "0_se", "1", "2", "2_se"]
    assert type(layers) is nn.Sequential and isinstance(layers[2], nn.BatchNorm2d)
    remove_se(network)
    assert list(layers._modules) == ["0", "1", "2"]


def test_block_that_is_in_two_places_is_one():
    block = AbstractBlock()
    network = Net(nn.Sequential(block, block)).double()
    plain = copy.deepcopy(network)
    assert len(insert_se(network, blocks=at("block.0.bn")).replaced) == 1
    plain.block[0].bn.register_forward_hook(lambda module, args, y: block.se(y))
    x = images()
    assert_same([network(x)], [plain(x)])
