"""fuse on SE that was inserted: the forward of the block around it calls the layer, then SE.

test_fuse_networks.py has whole networks.
"""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from plain_resnets import RESNETS
from residual_blocks import (
    Block,
    C,
    Net,
    Unit,
    assert_same_steps,
    block_with,
    images,
    recorded_calls,
)
from torch import nn

from se_fused import fuse, insert_se, remove_se, unfuse

FUSED = "the class of what calls it was changed after insert_se: unfuse or unwrap that first"
SE, RELU, END = "BatchNorm + SE", "BatchNorm + relu + SE", "BatchNorm + SE + add + relu"


def test_vgg_as_one_block():
    layers = [nn.Conv2d(3, C, 1), nn.BatchNorm2d(C), nn.ReLU(inplace=True), nn.Conv2d(C, C, 1)]
    layers += [nn.BatchNorm2d(C), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    network = nn.Sequential(*layers).double()
    insert_se(network, blocks=lambda name, module: C if isinstance(module, nn.ReLU) else None)
    unfused = copy.deepcopy(network)
    assert [entry.covers for entry in fuse(network).replaced] == [RELU] * 2
    assert_same_steps(network, unfused)


def _adds_a_mean(self, x):
    return F.relu(self.bn(self.conv(x)) + x.mean((2, 3), keepdim=True))


def _activates(self, x):
    return F.relu(self.act(self.bn(self.conv(x))) + x)


def _calls_it_twice(self, x):
    return self.bn(self.bn(self.conv(x)))


class ConvNorm(nn.Sequential):
    """Calls its own SE, which is fused in the block around it."""


def _block(forward=Block.forward, **parts):
    return block_with(forward, se=nn.Identity(), **parts)


# Which layer SE follows, and what is fused.
COVERED = {
    "norm": (_block, "bn", END),
    "norm-in-a-container": (
        lambda: _block(bn=ConvNorm(nn.BatchNorm2d(C))), "bn", END
    ),
    "activation": (
        lambda: _block(_activates, act=nn.SiLU()), "act", "BatchNorm + silu + SE + add + relu"
    ),
}


@pytest.mark.parametrize("make, layer, covers", COVERED.values(), ids=COVERED)
def test_covers(monkeypatch, make, layer, covers):
    calls = recorded_calls(monkeypatch)
    network = Net(make()).double()
    insert_se(network, blocks=lambda name, module: C if name == f"block.{layer}" else None)
    unfused = copy.deepcopy(network)
    report = fuse(network)
    assert [entry[::2] for entry in report.replaced] == [("block", covers)] and not report.left
    assert_same_steps(network, unfused)
    assert calls


def test_sum_with_another_shape_runs_unfused(monkeypatch):
    calls = recorded_calls(monkeypatch)
    network = Net(_block(_adds_a_mean)).double()
    insert_se(network, blocks=lambda name, module: C if name == "block.bn" else None)
    unfused = copy.deepcopy(network)
    assert len(fuse(network).replaced) == 1
    with pytest.warns(UserWarning, match="added to its map is of another shape"):
        assert_same_steps(network, unfused)
    assert not calls


LEFT = {
    "norm-called-twice": (lambda: _block(_calls_it_twice), "bn", "it is called more than once"),
    "after-the-sum": (_block, "relu", "before relu and it stands iadd, no BatchNorm of PyTorch's"),
    "after-a-convolution": (
        lambda: _block(bn=nn.Identity()), "conv",
        "before it stands torch.nn.modules.conv.Conv2d, no BatchNorm of PyTorch's",
    ),
}  # fmt: skip


@pytest.mark.parametrize("make, layer, reason", LEFT.values(), ids=LEFT)
def test_left(make, layer, reason):
    network = Net(make()).double()
    insert_se(network, blocks=lambda name, module: C if name == f"block.{layer}" else None)
    report = fuse(network)
    assert [entry.reason for entry in report.left] == [reason] and not report.replaced


def test_se_before_the_branch_is_left():
    network = RESNETS["torchvision-basic"]()
    insert_se(network, where="pre")
    report = fuse(network)
    assert not report.replaced and len(report.left) == 5
    first, *others = [entry.reason for entry in report.left]
    assert first == "before it stands torch.nn.modules.pooling.MaxPool2d, no BatchNorm of PyTorch's"
    assert all(reason.endswith("relu is used elsewhere too") for reason in others)


def test_block_that_se_follows():
    """The block's class was changed by the insertion and is changed once more."""
    network = Net(nn.Sequential(Unit(), nn.Tanh())).double()
    insert_se(network, blocks=lambda name, module: C if isinstance(module, Unit) else None)
    unfused = copy.deepcopy(network)
    report = fuse(network)
    assert [entry[::2] for entry in report.replaced] == [("block.0", SE)]
    assert_same_steps(network, unfused)
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert type(twin.block[0]) is type(network.block[0])
        assert_same_steps(twin, copy.deepcopy(network))
    assert [entry.reason for entry in remove_se(network).left] == [FUSED]
    unfuse(network)
    assert len(remove_se(network).replaced) == 1 and type(network.block[0]) is Unit


def test_removed_after_unfuse():
    network = Net(_block()).double()
    plain = copy.deepcopy(network)
    insert_se(network, blocks=lambda name, module: C if name == "block.bn" else None)
    fuse(network)
    assert not remove_se(network).replaced
    unfuse(network)
    assert len(remove_se(network).replaced) == 1 and type(network.block) is type(plain.block)
    x = images()
    assert torch.equal(network(x), plain(x))


def test_removed_from_a_container_in_a_fused_block():
    """The fusion sees that the container has no SE any more."""
    network = Net(_block(bn=ConvNorm(nn.BatchNorm2d(C)))).double()
    plain = copy.deepcopy(network)
    insert_se(network, blocks=lambda name, module: C if name == "block.bn" else None)
    fuse(network)
    assert len(remove_se(network).replaced) == 1
    x = images()
    with pytest.warns(UserWarning, match="the children of bn are others"):
        assert torch.equal(network(x), plain(x))
