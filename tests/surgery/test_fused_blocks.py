"""What the user may do with a fused model: change it, copy it, save it, compile and trace it."""

import copy
import pickle
import warnings

import pytest
import torch
from copies import COPIES
from residual_blocks import (
    Block,
    C,
    Net,
    assert_same,
    assert_same_steps,
    block_with,
    fused_net,
    images,
    recorded_calls,
)
from se_modules import Cadene
from torch import nn

from se_fused import FusedSE, replace_se, restore_se
from se_fused.surgery import fuse, unfuse
from se_fused.surgery.fused_block import FusedBlock

ALL = "BatchNorm + SE + add + relu"


def test_object_stays():
    net = Net(Block())
    block, keys, parameters = net.block, list(net.state_dict()), list(net.parameters())
    fuse(net)
    assert net.block is block and isinstance(block, Block) and type(block).__name__ == "FusedBlock"
    assert list(net.state_dict()) == keys
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    net.load_state_dict(Net(Block()).state_dict(), strict=True)
    report = unfuse(net)
    assert type(block) is Block and "__fusion__" not in vars(block)
    assert str(report).splitlines() == [
        "1 SE modules unfused, 0 left",
        f"unfused   block  residual_blocks.Block: {ALL}",
    ]


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_copies(monkeypatch, copied):
    calls = recorded_calls(monkeypatch)
    net = fused_net()
    other = copied(net)
    assert type(other.block) is type(net.block)
    assert_same_steps(other, net)
    assert any(bn is other.block.bn for bn, _, _ in calls)
    assert unfuse(other).replaced and type(other.block) is Block
    assert isinstance(net.block, FusedBlock)


def test_saved_before_the_forward_changed(monkeypatch):
    net = fused_net()
    saved = pickle.dumps(net)
    monkeypatch.setattr(Block, "forward", lambda self, x: self.relu(self.bn(self.conv(x))))
    with pytest.warns(UserWarning, match="library's forward after loading: no forward"):
        other = pickle.loads(saved)
    assert_same_steps(other, copy.deepcopy(other))
    assert not unfuse(other).replaced and type(other.block) is Block


def test_slice_of_a_fused_sequential():
    net = nn.Sequential(nn.BatchNorm2d(3), FusedSE(3), nn.Tanh()).double()
    plain = copy.deepcopy(net)
    fuse(net)
    x = images()
    assert_same(net[:2](x), plain[:2](x))


def _replaced(name, make):
    def change(net):
        net.block.set_submodule(name, make())

    return change


NOT_WHOLE = "FusedSE is not fused with the layers around it: it "
NORM, RELU = "bn is a torch.nn.modules", "relu is a torch.nn.modules.activation.PReLU now"
CHANGES = {
    "another-batch-norm": (_replaced("bn", lambda: nn.BatchNorm2d(C, momentum=None)), None),
    "another-norm": (_replaced("bn", lambda: nn.GroupNorm(2, C)), NORM),
    "another-activation": (_replaced("act", nn.GELU), "act is a"),
    "drop-path": (_replaced("drop_path", lambda: nn.Dropout(1.0)), "drop_path is a"),
    "another-end": (_replaced("relu", nn.PReLU), RELU),
    "another-convolution": (_replaced("conv", lambda: nn.Conv2d(C, C, 1)), None),
    "composed-se": (
        _replaced("se", lambda: FusedSE(C, squeeze="max")), f"{NOT_WHOLE}is not one operator"
    ),
    "hook-on-se": (
        lambda net: net.block.se.register_forward_hook(lambda m, a, y: y + 1),
        f"{NOT_WHOLE}has hooks",
    ),
    "hook-on-a-layer-of-se": (
        lambda net: net.block.se.fc1.register_forward_hook(lambda m, a, y: y + 1),
        f"{NOT_WHOLE}is not one operator",
    ),
    "no-se": (_replaced("se", nn.Identity), "se is a torch.nn.modules.linear.Identity now"),
    "hook": (lambda net: net.block.bn.register_forward_hook(lambda m, a, y: y + 1), "bn has hooks"),
    "hook-on-the-block": (
        lambda net: net.block.register_forward_hook(lambda m, a, y: y + 1), None
    ),
    "patched-norm": (lambda net: setattr(net.block.bn, "forward", torch.tanh), "bn.forward has"),
    "new-layer": (lambda net: net.block.add_module("probe", nn.Identity()), "its children"),
}  # fmt: skip


@pytest.mark.parametrize("change, word", CHANGES.values(), ids=CHANGES)
def test_change_after_the_fusion(monkeypatch, change, word):
    """word: what the warning says, where the block's own forward runs then."""
    calls = recorded_calls(monkeypatch)
    net = fused_net()
    change(net)
    net.double()
    plain = copy.deepcopy(net)
    unfuse(plain)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert_same_steps(net, plain)
    said = [str(w.message) for w in said if issubclass(w.category, UserWarning)]
    assert bool(calls) == (word is None) and len(said) == (word is not None)
    if word is not None:
        assert word in said[0]
        if not word.startswith(NOT_WHOLE):
            assert said[0].startswith("FusedBlock runs its library's forward, unfused: ")


def test_hooks_do_not_run_in_fuse():
    """They would be called with what torch.fx traces by, and with copies."""
    net = Net(Block(bn=nn.Sequential(nn.BatchNorm2d(C))))
    seen, hook = [], lambda *arguments: seen.append(arguments)
    net.block.bn.register_forward_hook(hook)
    handle = nn.modules.module.register_module_forward_hook(hook)
    try:
        report = fuse(net)
    finally:
        handle.remove()
    assert not seen and [entry.reason for entry in report.left] == ["bn has hooks"]
    assert net.block.bn._forward_hooks


def test_change_of_a_container(monkeypatch):
    calls = recorded_calls(monkeypatch)
    net = Net(nn.Sequential(nn.Sequential(nn.BatchNorm2d(C), nn.ReLU()), FusedSE(C))).double()
    fuse(net)
    net.block[0].append(nn.Tanh())
    plain = copy.deepcopy(net)
    unfuse(plain)
    assert_same_steps(net, plain)
    assert not calls


def test_synchronised_batch_norm_stays_fused(monkeypatch):
    calls = recorded_calls(monkeypatch)
    net = nn.SyncBatchNorm.convert_sync_batchnorm(fused_net()).eval()
    assert net.block.__fusion__.difference(net.block) is None
    plain = copy.deepcopy(net)
    unfuse(plain)
    x = images()
    assert_same(net(x), plain(x))
    assert type(calls[0][0]) is nn.SyncBatchNorm


def test_restored_se_in_a_fused_block():
    plain = Net(Block(se=Cadene())).double()
    net = copy.deepcopy(plain)
    replace_se(net)
    assert len(fuse(net).replaced) == 1
    restore_se(net)
    assert type(net.block.se) is Cadene
    assert_same_steps(net, plain)
    replace_se(net)
    assert_same_steps(net, plain)


def _adds_float32(self, x):
    y = self.se(self.bn(self.conv(x)))
    y += x.float()
    return self.relu(y)


def test_addition_in_place_keeps_the_dtype():
    net = Net(block_with(_adds_float32)).bfloat16()
    plain = copy.deepcopy(net)
    fuse(net)
    x = images(dtype=torch.bfloat16)
    with pytest.warns(UserWarning, match="what is added to its map is of another shape or dtype"):
        assert net(x).dtype == torch.bfloat16
    torch.testing.assert_close(net(x), plain(x), rtol=0.02, atol=0.02)


def test_compiled():
    net = fused_net()
    plain = copy.deepcopy(net)
    unfuse(plain)
    assert_same_steps(torch.compile(net, fullgraph=True, backend="aot_eager"), plain)


def test_torch_fx_sees_the_library_s_graph():
    net = fused_net()
    graph = torch.fx.symbolic_trace(net)
    targets = [node.target for node in graph.graph.nodes if node.op == "call_module"]
    assert targets[:4] == ["stem", "block.conv", "block.bn", "block.act"]
    assert graph.get_submodule("block.se") is net.block.se
    x = images()
    assert_same(graph(x), net(x))


def test_exported():
    net = fused_net().eval()
    x = images()
    assert_same(torch.export.export(net, (x,)).module()(x), net(x))


@pytest.mark.filterwarnings("ignore:.torch.jit.*deprecated:FutureWarning")
def test_scripted_is_the_library_forward():
    network, x = fused_net().eval(), images()
    kind = type(network.block)
    assert_same(torch.jit.script(network)(x), network(x))
    assert type(network.block) is kind
