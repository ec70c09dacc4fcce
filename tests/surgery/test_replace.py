"""replace_se and restore_se: what they find, keep and report, and their arguments."""

import copy

import pytest
import torch
from se_modules import ChannelAttention, Copied, Moskomule, NVIDIAGate
from torch import nn
from two_modules import Two, names

import se_fused
from se_fused import FusedSE, replace_se, restore_se


def test_report():
    net = Two(Copied(), NVIDIAGate())
    report = replace_se(net)
    assert report.replaced == [("first", "se_modules.Copied", None)]
    cls = "image_classification.models.common.SqueezeAndExcitation"
    assert report.left == [("blocks.0", cls, "it returns the gate; its caller multiplies")]
    assert str(report).splitlines() == [
        "1 SE modules replaced, 1 left",
        "replaced  first     se_modules.Copied",
        f"left      blocks.0  {cls}: it returns the gate; its caller multiplies",
    ]
    assert str(replace_se(nn.Conv2d(1, 1, 1))) == "0 SE modules replaced, 0 left"


def test_twice_is_once():
    net = Two()
    assert names(replace_se(net).replaced) == ["first", "blocks.0"]
    again = replace_se(net)
    assert not again.replaced and not again.left


def test_fused_repr_names_the_library_s_class():
    net = Two(second=ChannelAttention())
    replace_se(net)
    assert "FusedSELayer(" in repr(net.first) and "one operator" in repr(net.first)
    assert "squeeze → fc → gate → rescale, squeeze and rescale fused" in repr(net.blocks)


def test_model_that_is_an_se_module_itself():
    module = Moskomule()
    assert names(replace_se(module).replaced) == ["(model)"]
    assert isinstance(module, FusedSE)
    assert names(restore_se(module).replaced) == ["(model)"]
    assert type(module) is Moskomule


def test_module_shared_by_two_parents():
    net = Two()
    net.again = nn.Sequential(net.first)
    assert names(replace_se(net).replaced) == ["first", "blocks.0"]
    assert net.again[0] is net.first and isinstance(net.again[0], FusedSE)


def test_modes_and_reserved_attributes_are_kept():
    net = Two().eval()
    net.blocks.train()
    net.first.user_note = "mine"
    replace_se(net)
    assert not net.first.training and net.blocks[0].training
    assert net.first.user_note == "mine"


def test_restore_leaves_what_was_built_as_fused():
    net = Two(second=FusedSE(24))
    replace_se(net)
    report = restore_se(net)
    assert names(report.replaced) == ["first"] and names(report.left) == ["blocks.0"]
    assert str(report).splitlines()[0] == "1 SE modules restored, 1 left"
    assert type(net.first) is Moskomule and type(net.blocks[0]) is FusedSE


def test_trial_touches_nothing():
    """Neither the random state, nor gradients, nor running statistics, nor grad mode."""
    net = Two()
    x = torch.randn(2, 24, 5, 5)
    net(x).sum().backward()
    before = copy.deepcopy([net.state_dict(), [p.grad for p in net.parameters()]])
    state = torch.get_rng_state()
    with torch.no_grad():
        assert len(replace_se(net).replaced) == 2
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), state)
    after = [net.state_dict(), [p.grad for p in net.parameters()]]
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert se_fused.backends.forced_backend() is None


def test_on_meta_and_materialised():
    with torch.device("meta"):
        net = Two()
    assert len(replace_se(net).replaced) == 2
    net = net.to_empty(device="cpu").double()
    expected = Two().double()
    net.load_state_dict(expected.state_dict())
    x = torch.randn(2, 24, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(net(x), expected(x))


# Optimizers


def test_optimizer_goes_on():
    x = torch.randn(2, 24, 5, 5, dtype=torch.float64)
    results = []
    for replaced in (False, True):
        torch.manual_seed(0)
        net = Two().double()
        adam = torch.optim.Adam(net.parameters(), lr=0.1)
        for step in range(4):
            if step == 2 and replaced:
                assert len(replace_se(net, optimizers=adam).replaced) == 2
            adam.zero_grad()
            net(x).square().sum().backward()
            adam.step()
        results.append([p.detach() for p in net.parameters()])
    torch.testing.assert_close(*results)


def test_optimizer_of_another_copy_is_refused():
    net = Two()
    of_copy = torch.optim.SGD(copy.deepcopy(net).parameters(), lr=0.1)
    own = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="optimizers: this SGD has no parameter of the model"):
        replace_se(net, optimizers=[own, of_copy])
    with pytest.raises(TypeError, match="optimizers must be .* got str"):
        replace_se(net, optimizers=["sgd"])
    assert type(net.first) is Moskomule, "nothing is replaced before the check"


@pytest.mark.parametrize("function", [replace_se, restore_se])
def test_model_that_is_no_module(function):
    with pytest.raises(TypeError, match="model must be a torch.nn.Module, got list"):
        function([Moskomule()])
