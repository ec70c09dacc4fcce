"""What fuse leaves and why, and that looking changes nothing."""

import copy
import random

import pytest
import torch
import torch.nn.functional as F
from residual_blocks import Block, C, Net, assert_same_steps, block_with
from torch import nn
from torch.nn.utils import parametrizations

from se_fused import FusedSE
from se_fused.surgery import fuse, unfuse


def _depends_on_the_mode(self, x):
    y = self.se(self.bn(self.conv(x)))
    return y * 2 if self.training else y


def _depends_on_the_data(self, x):
    return self.se(self.bn(x)) if x.sum() > 0 else x


def _drops_at_random(self, x):
    return x if random.random() < 1e-9 else self.se(self.bn(self.conv(x)))


def _counts(self, x):
    self.count = getattr(self, "count", 0) + 1
    return self.se(self.bn(self.conv(x)))


def _makes_a_tensor(self, x):
    return self.se(self.bn(self.conv(x))) * torch.tensor(2.0)


def _switches_autocast_off(self, x):
    with torch.autocast("cuda", enabled=False):
        return self.se(self.bn(self.conv(x)))


def _stops_gradients(self, x):
    y = self.se(self.bn(self.conv(x)))
    with torch.no_grad():
        return y + self.relu(x)


def _asks_for_gradients(self, x):
    y = self.se(self.bn(self.conv(x)))
    return y + 1 if torch.is_grad_enabled() else y


def _writes_into_an_alias(self, x):
    y = self.conv(x)
    alias = y
    z = self.bn(y)
    y += x
    return self.se(z) * alias


def _se_twice(self, x):
    return self.se(self.se(self.bn(x)))


def _bn_twice(self, x):
    return self.se(self.bn(self.bn(x)))


def _bn_used_elsewhere(self, x):
    y = self.bn(self.conv(x))
    return self.se(y) + y


def _x_is_overwritten(self, x):
    y = self.conv(x)
    z = self.bn(y)
    y.mul_(2)
    return self.se(z)


def _two_activations(self, x):
    return self.se(F.relu(self.act(self.bn(x))))


class Norm(nn.BatchNorm2d):
    pass


def _with_hook(name):
    def make():
        block = Block()
        block.get_submodule(name).register_forward_hook(lambda *arguments: None)
        return block

    return make


def _patched():
    block = Block()
    block.bn.forward = block.bn.forward
    return block


def _hook_on_a_container():
    block = nn.Sequential(nn.Sequential(nn.BatchNorm2d(C)), FusedSE(C))
    block[0].register_forward_hook(lambda *arguments: None)
    return block


def _parametrized(name, parameter="weight"):
    def make():
        block = Block()
        parametrizations.weight_norm(block.get_submodule(name), parameter, dim=None)
        return block

    return make


NO_NORM = "before it stands {}, no BatchNorm of PyTorch's"
TRACED = "its block's forward cannot be traced: TraceError: symbolically traced variables cannot"
LEFT = {
    "no-norm": (
        lambda: Block(bn=nn.Identity()), NO_NORM.format("torch.nn.modules.conv.Conv2d")
    ),
    "group-norm": (
        lambda: Block(bn=nn.GroupNorm(2, C)),
        NO_NORM.format("torch.nn.modules.normalization.GroupNorm"),
    ),
    "subclass-of-batch-norm": (lambda: Block(bn=Norm(C)), NO_NORM.format("test_fuse_left.Norm")),
    "norm-behind-an-activation": (
        lambda: Block(bn=Norm(C), act=nn.ReLU()),
        "before relu and it stands test_fuse_left.Norm, no BatchNorm of PyTorch's",
    ),
    "another-activation": (
        lambda: Block(act=nn.PReLU()),
        "between its BatchNorm and it stands torch.nn.modules.activation.PReLU",
    ),
    "two-activations": (
        lambda: block_with(_two_activations, act=nn.SiLU()),
        "before relu and it stands torch.nn.modules.activation.SiLU, no BatchNorm of PyTorch's",
    ),
    "nothing-before": (
        lambda: nn.Sequential(FusedSE(C)), NO_NORM.format("torch.nn.modules.conv.Conv2d")
    ),
    "composed-se": (
        lambda: Block(se=FusedSE(C, add_maxpool=True)), "it does not run as one operator"
    ),
    "mode": (
        lambda: block_with(_depends_on_the_mode),
        "its block's forward is another in training than in eval mode",
    ),
    "grad-mode": (
        lambda: block_with(_asks_for_gradients),
        "its block's forward is another in training than in eval mode",
    ),
    "no-grad": (
        lambda: block_with(_stops_gradients), "its block's forward switches gradients or autocast"
    ),
    "autocast": (
        lambda: block_with(_switches_autocast_off),
        "its block's forward switches gradients or autocast",
    ),
    "data": (lambda: block_with(_depends_on_the_data), TRACED),
    "random": (
        lambda: block_with(_drops_at_random), "its block's forward draws random numbers"
    ),
    "attribute": (
        lambda: block_with(_counts),
        "its block's forward sets attributes or makes tensors of its own",
    ),
    "constant": (
        lambda: block_with(_makes_a_tensor),
        "its block's forward sets attributes or makes tensors of its own",
    ),
    "se-twice": (lambda: block_with(_se_twice), "it is called more than once"),
    "bn-twice": (lambda: block_with(_bn_twice), "its BatchNorm is called more than once"),
    "bn-used": (
        lambda: block_with(_bn_used_elsewhere), "the result of bn is used elsewhere too"
    ),
    "x-overwritten": (
        lambda: block_with(_x_is_overwritten),
        "mul_ may change the feature map before its SE is through",
    ),
    "x-overwritten-as-an-alias": (
        lambda: block_with(_writes_into_an_alias),
        "iadd may change the feature map before its SE is through",
    ),
    "hook-on-the-block": (_with_hook(""), "its block has hooks"),
    "hook-on-the-norm": (_with_hook("bn"), "bn has hooks"),
    "hook-on-the-end": (_with_hook("relu"), "relu has hooks"),
    "hook-on-a-container": (_hook_on_a_container, "0 has hooks"),
    "parametrized-norm": (
        _parametrized("bn"), NO_NORM.format("torch.nn.utils.parametrize.ParametrizedBatchNorm2d")
    ),
    "parametrized-se": (_parametrized("se.fc1"), "it does not run as one operator"),
    "patched-forward": (_patched, "bn has a patched forward"),
}


@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")
@pytest.mark.parametrize("make, reason", LEFT.values(), ids=LEFT)
def test_left(make, reason):
    net = Net(make())
    before = [(type(module), dict(vars(module))) for module in net.modules()]
    state = random.getstate(), torch.get_rng_state()
    report = fuse(net)
    assert not report.replaced and len(report.left) == 1
    assert report.left[0].reason.startswith(reason)
    assert [(type(module), dict(vars(module))) for module in net.modules()] == before
    assert random.getstate() == state[0] and torch.equal(torch.get_rng_state(), state[1])


def test_modes_are_kept():
    net = Net(Block())
    net.block.bn.eval()
    modes = [module.training for module in net.modules()]
    fuse(net)
    assert [module.training for module in net.modules()] == modes


def test_part_of_a_block_that_is_fused_by_itself():
    inner = nn.Sequential(nn.BatchNorm2d(C), FusedSE(C), nn.Conv2d(C, C, 1), nn.BatchNorm2d(C))
    net = Net(nn.Sequential(inner, FusedSE(C))).double()
    plain = copy.deepcopy(net)
    report = fuse(net)
    assert [entry.name for entry in report.replaced] == ["block.0"]
    assert [entry.reason for entry in report.left] == ["0 is fused by itself"]
    assert_same_steps(net, plain)


@pytest.mark.parametrize("function", [fuse, unfuse])
def test_model_that_is_no_module(function):
    with pytest.raises(TypeError, match="model must be a torch.nn.Module, got list"):
        function([Block()])
