"""fuse: which blocks, and how much of them; test_fuse_left.py has what is left."""

import copy
import operator

import pytest
import torch
import torch.nn.functional as F
from residual_blocks import Block, C, Net, assert_same_steps, block_with, fused_net, recorded_calls
from torch import nn

from se_fused import FusedSE
from se_fused.surgery import fuse, unfuse
from se_fused.surgery.fused_block import FusedBlock


def _spelled(add, relu=F.relu, act=None):
    def forward(self, x):
        y = self.bn(self.conv(x))
        y = self.se(y if act is None else act(y))
        return relu(add(y, x))

    return forward


def _functions(self, x):
    return torch.relu(x + self.se(F.relu(self.bn(self.conv(x)), inplace=True)))


def _methods(self, x):
    return self.se(self.bn(self.conv(x)).relu()).add(x).relu_()


def _only_se(self, x):
    return self.conv(self.se(self.bn(x)))


def _into_the_residual(self, x):
    y = self.conv(x)
    y += self.se(self.bn(x * 1))
    return y


def _with_alpha(self, x):
    return torch.add(self.se(self.bn(self.conv(x))), x, alpha=2)


def _with_constant(self, x):
    return F.relu(self.se(self.bn(self.conv(x))) + 1)


def _used_twice(self, x):
    y = self.se(self.bn(self.conv(x)))
    return (y + x) * y


def _in_containers():
    inner = nn.Sequential(nn.Conv2d(C, C, 1), nn.Sequential(nn.BatchNorm2d(C), nn.SiLU()))
    return nn.Sequential(inner, FusedSE(C), nn.Conv2d(C, C, 1))


ALL = "BatchNorm + SE + add + relu"
COVERED = {
    "modules": (Block, ALL),
    "activation": (lambda: Block(act=nn.Hardswish()), "BatchNorm + hardswish + SE + add + relu"),
    "functions": (lambda: block_with(_functions), "BatchNorm + relu + SE + add + relu"),
    "methods": (lambda: block_with(_methods), "BatchNorm + relu + SE + add + relu"),
    "operator": (lambda: block_with(_spelled(operator.add, F.silu)), "BatchNorm + SE + add"),
    "torch-add": (lambda: block_with(_spelled(torch.add)), ALL),
    "hardswish-function": (
        lambda: block_with(_spelled(torch.add, act=F.hardswish)),
        "BatchNorm + hardswish + SE + add + relu",
    ),
    "silu-function": (
        lambda: block_with(_spelled(torch.add, act=F.silu)), "BatchNorm + silu + SE + add + relu"
    ),
    "in-place": (lambda: block_with(_spelled(lambda y, x: y.add_(x))), ALL),
    "se-alone": (lambda: block_with(_only_se), "BatchNorm + SE"),
    "drop-path": (lambda: Block(drop_path=nn.Dropout(0.0)), "BatchNorm + SE"),
    "another-end": (lambda: Block(relu=nn.PReLU()), "BatchNorm + SE + add"),
    "into-the-residual": (lambda: block_with(_into_the_residual), "BatchNorm + SE"),
    "with-alpha": (lambda: block_with(_with_alpha), "BatchNorm + SE"),
    "constant": (lambda: block_with(_with_constant), "BatchNorm + SE"),
    "used-twice": (lambda: block_with(_used_twice), "BatchNorm + SE"),
    "in-containers": (_in_containers, "BatchNorm + silu + SE"),
}


@pytest.mark.parametrize("make, covers", COVERED.values(), ids=COVERED)
def test_covers(monkeypatch, make, covers):
    calls = recorded_calls(monkeypatch)
    net = Net(make()).double()
    plain = copy.deepcopy(net)
    report = fuse(net)
    assert [entry[::2] for entry in report.replaced] == [("block", covers)] and not report.left
    assert_same_steps(net, plain)
    assert calls


def test_report():
    net = nn.Sequential(Block(), nn.Sequential(nn.BatchNorm2d(C), nn.GELU(), FusedSE(C)))
    report = fuse(net)
    reason = "between its BatchNorm and it stands torch.nn.modules.activation.GELU"
    assert report.replaced == [("0", "residual_blocks.Block", "BatchNorm + SE + add + relu")]
    assert report.left == [("1.2", "se_fused.modules.se.FusedSE", reason)]
    assert str(report).splitlines() == [
        "1 SE modules fused, 1 left",
        "fused     0    residual_blocks.Block: BatchNorm + SE + add + relu",
        f"left      1.2  se_fused.modules.se.FusedSE: {reason}",
    ]
    assert str(fuse(nn.Conv2d(1, 1, 1))) == "0 SE modules fused, 0 left"


class Residual(nn.Module):
    """The addition and the ReLU stand outside of what has the SE."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(C, C, 1), nn.BatchNorm2d(C), FusedSE(C))
        self.tail = nn.Sequential(nn.BatchNorm2d(C), nn.Sequential(FusedSE(C)), nn.Tanh())

    def forward(self, x):
        return self.tail(F.relu(self.body(x) + x))


def test_outermost_with_more_to_fuse_else_the_smallest():
    net = Net(nn.Sequential(Residual())).double()
    plain = copy.deepcopy(net)
    covers = {name: covers for name, _, covers in fuse(net).replaced}
    assert covers == {"block.0": ALL, "block.0.tail": "BatchNorm + SE"}
    assert_same_steps(net, plain)


def test_two_in_one_block():
    net = Net(nn.Sequential(nn.BatchNorm2d(C), FusedSE(C), nn.BatchNorm2d(C), FusedSE(C))).double()
    plain = copy.deepcopy(net)
    assert [entry.name for entry in fuse(net).replaced] == ["block", "block"]
    assert_same_steps(net, plain)
    assert len(unfuse(net).replaced) == 2


def test_model_that_is_a_block_itself():
    block = Block()
    assert fuse(block).replaced == [("(model)", "residual_blocks.Block", ALL)]
    assert isinstance(block, FusedBlock)
    assert [entry.name for entry in unfuse(block).replaced] == ["(model)"]
    assert type(block) is Block


def test_twice_is_once():
    net = fused_net()
    fusion = net.block.__fusion__
    again = fuse(net)
    assert not again.replaced and net.block.__fusion__ is fusion
    assert again.left == [("block.se", "se_fused.modules.se.FusedSE", "it is fused already")]


def test_se_replaced_later_joins_the_block():
    layers = nn.BatchNorm2d(C), FusedSE(C), nn.BatchNorm2d(C), nn.Identity()
    net = Net(nn.Sequential(*layers)).double()
    fuse(net)
    net.block[3] = FusedSE(C).double()
    plain = copy.deepcopy(net)
    unfuse(plain)
    assert len(fuse(net).replaced) == 2
    assert net.block.__fusion__.names == ("1", "3")
    assert_same_steps(net, plain)
