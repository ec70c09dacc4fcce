"""Every family that replace_se knows: the same function, the same parameters, the same names."""

import copy

import pytest
import torch
from copies import COPIES
from module_cases import Count
from se_examples import EXAMPLES, map_for, network
from se_modules import C, MBConv, MMPretrain
from torch import nn

from se_fused import FusedSE, replace_se, restore_se
from se_fused.surgery.registry import FAMILIES
from se_fused.surgery.report import path_of


@pytest.fixture(params=EXAMPLES.values(), ids=EXAMPLES)
def example(request):
    return request.param


def gradients(net, x, seed=1):
    torch.manual_seed(seed)
    x = x.clone().requires_grad_()
    y = net.se(x)
    found = torch.autograd.grad(y.square().sum(), [x, *net.se.parameters()])
    return [y.detach(), *found]


@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
def test_same_function(example, layout):
    eager = network(example)
    fused = copy.deepcopy(eager)
    names, parameters = list(fused.state_dict()), list(fused.parameters())
    report = replace_se(fused)
    assert [entry.name for entry in report.replaced] == ["se"] and not report.left
    assert isinstance(fused.se, FusedSE)
    assert list(fused.state_dict()) == names
    assert all(a is b for a, b in zip(fused.parameters(), parameters, strict=True))
    x = map_for(example, layout)
    for training in (True, False):
        with Count() as count:
            found = gradients(fused.train(training), x)
        expected = gradients(eager.train(training), x)
        for ours, theirs in zip(found, expected, strict=True):
            # PyTorch's own hardsigmoid has a float32 1/6 in its float64 gradient.
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
        if fused.se.__se_fused__.swapped_squeeze == "avg_max":
            assert count.called[0] == "reduce_forward"
        kind = "squeeze_excite" if example.whole else "apply_forward"
        assert kind in count.called and ("squeeze_excite" in count.called) == example.whole
        assert found[0].stride() == expected[0].stride()


def test_checkpoints_load_both_ways(example):
    eager, fused = network(example), network(example)
    replace_se(fused)
    eager.load_state_dict(fused.state_dict(), strict=True)
    x = map_for(example)
    torch.testing.assert_close(fused.eval()(x), eager.eval()(x), rtol=1e-6, atol=1e-7)
    other = network(example)
    fused.load_state_dict(other.state_dict(), strict=True)
    torch.testing.assert_close(fused.eval()(x), other.eval()(x), rtol=1e-6, atol=1e-7)


def test_restored(example):
    net = network(example)
    before = {name: (type(m), vars(m).copy()) for name, m in net.named_modules()}
    assert replace_se(net).replaced
    report = restore_se(net)
    assert [entry.name for entry in report.replaced] == ["se"]
    assert before == {name: (type(m), vars(m)) for name, m in net.named_modules()}


@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("name", ["timm-se-norm", "hf-pp-ocr-v5", "smp-mobileone", "monai-3d"])
def test_copies_of_the_replaced(name, duplicate):
    example = EXAMPLES[name]
    net = network(example).eval()
    replace_se(net)
    x = map_for(example)
    expected = net(x)
    twin = duplicate(net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    torch.testing.assert_close(twin(x), expected, rtol=0, atol=0)
    assert isinstance(twin.se, FusedSE)
    restore_se(twin)
    torch.testing.assert_close(twin(x), expected, rtol=1e-6, atol=1e-7)


def test_attributes_that_users_touch():
    net = network(EXAMPLES["timm-efficientnet"])
    replace_se(net)
    assert net.se.conv_reduce.weight.shape == (6, C, 1, 1) and isinstance(net.se.act1, nn.SiLU)
    assert type(net.se).__name__ == "FusedSqueezeExcite"
    net = network(EXAMPLES["torchvision"])
    library = type(net.se)
    replace_se(net)
    assert isinstance(net.se, library) and isinstance(net.se, FusedSE)
    x = map_for(EXAMPLES["torchvision"])
    torch.testing.assert_close(net.se(x), x * net.se._scale(x))
    net = network(EXAMPLES["monai-2d"])
    replace_se(net)
    assert isinstance(net.se.fc[0], nn.Linear) and net.se.fc[2].weight.shape == (C, C // 2)
    assert net.se.add_residual is False
    net = network(EXAMPLES["fastai"])
    replace_se(net)
    assert isinstance(net.se[1][0], nn.Conv2d)


def test_drop_connect_of_mbconv():
    eager = MBConv().double().train()
    fused = copy.deepcopy(eager)
    assert replace_se(fused).replaced
    x = torch.randn(64, C // 2, 3, 3, dtype=torch.float64)
    results = []
    for block in (eager, fused):
        torch.manual_seed(7)
        results.append(block(x, drop_connect_rate=0.4))
    torch.testing.assert_close(*results)
    torch.testing.assert_close(fused.eval()(x, 0.4), eager.eval()(x, 0.4))
    without = nn.Sequential(MBConv(se=False))
    assert not replace_se(without).replaced and "0 left" in str(replace_se(without))


def test_map_without_a_batch_runs_as_the_library_s():
    net = network(EXAMPLES["torchvision"])
    x = torch.randn(C, 5, 7, dtype=torch.float64)
    expected = net.se(x)
    replace_se(net)
    with pytest.warns(UserWarning, match="library's forward, unfused: .* map of shape"):
        assert torch.equal(net.se(x), expected)


def test_every_family_has_an_example():
    missing = {path for family in FAMILIES for path in family.classes}
    for example in EXAMPLES.values():
        try:
            missing.discard(path_of(type(example.make())))
        except pytest.skip.Exception:
            pytest.skip("a library is not installed")
    assert not missing


def test_gate_only_module_is_left():
    net = nn.Sequential(MMPretrain(return_weight=True))
    report = replace_se(net)
    assert [entry.reason for entry in report.left] == ["it returns the gate; its caller multiplies"]
