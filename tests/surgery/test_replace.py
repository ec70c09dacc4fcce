"""replace_se and restore_se: what they find, what they leave and why, and what they report."""

import copy

import pytest
import torch
from se_modules import Cadene, ChannelAttention, Copied, Moskomule, NVIDIAGate, named
from torch import nn
from torch.nn.utils import parametrizations

import se_fused
from se_fused import FusedSE, replace_se, restore_se
from se_fused.surgery.families import LEFT


class Two(nn.Module):
    """Two SE modules, a convolution between them."""

    def __init__(self, first=None, second=None):
        super().__init__()
        self.first = first or Moskomule()
        self.conv = nn.Conv2d(24, 24, 3)
        self.blocks = nn.Sequential(second or Cadene())

    def forward(self, x):
        return self.blocks(self.conv(self.first(x)))


def names(entries):
    return [entry.name for entry in entries]


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


# What is left alone: how to make it of an SE module, and what the report says.


class Sub(Cadene):
    def forward(self, x):
        return super().forward(x) + 1


def _with_patched_forward():
    module = Cadene()
    forward = module.forward
    module.forward = lambda x: forward(x) + 1
    return module


def _with_hook(register, *where):
    def make():
        module = Cadene()
        target = module.get_submodule(*where) if where else module
        getattr(target, register)(lambda *arguments: None)
        return module

    return make


def _parametrized():
    module = Cadene()
    parametrizations.weight_norm(module.fc1)
    return module


@named("senet.se_module.SELayer")
class WithExtraLayer(Copied):
    def __init__(self):
        super().__init__()
        self.extra = nn.BatchNorm2d(24)


def _copied_with(forward):
    cls = type("Other", (nn.Module,), {"forward": forward})
    module = cls()
    for name, layer in Cadene().named_children():
        module.add_module(name, layer)
    return module


def _squared(self, x):
    return Cadene.forward(self, x) * x


def _dropped_out(self, x):
    return Cadene.forward(self, nn.functional.dropout(x, 0.5, self.training))


def _detached(self, x):
    return x * Cadene.forward(self, x.detach()) / x.detach()


def _pair(self, x):
    return Cadene.forward(self, x), x


def _later_version():
    module = Cadene()
    module.excite = module.fc2
    del module.fc2
    return module


def _with_one_layer():
    module = Cadene()
    del module.fc2, module.sigmoid
    return module


KNOWN = "it is a subclass of pretrainedmodels.models.senet.SEModule, whose forward may differ"
LEFT_ALONE = {
    "subclass": (Sub, KNOWN),
    "patched-forward": (_with_patched_forward, "its forward has been patched"),
    "forward-hook": (_with_hook("register_forward_hook"), "it has hooks"),
    "forward-pre-hook": (_with_hook("register_forward_pre_hook"), "it has hooks"),
    "backward-hook": (_with_hook("register_full_backward_hook"), "it has hooks"),
    "hook-on-a-layer": (_with_hook("register_forward_hook", "avg_pool"), "it has hooks"),
    "parametrized": (_parametrized, "it is parametrized"),
    "another-layer": (WithExtraLayer, "its layer extra is none of SE's"),
    "another-formula": (
        lambda: _copied_with(_squared), "it computes something else than SE of its layers"
    ),
    "dropout-in-training": (
        lambda: _copied_with(_dropped_out), "it computes something else than SE of its layers"
    ),
    "same-values-other-gradients": (
        lambda: _copied_with(_detached), "it computes something else than SE of its layers"
    ),
    "two-results": (lambda: _copied_with(_pair), "it returns a tuple, not a tensor"),
    "another-version": (
        _later_version,
        "it takes no map of 3×5: AttributeError: 'SEModule' object has no attribute 'fc2'",
    ),
    "another-layout": (_with_one_layer, "it has not the layers that se_fused knows of its class"),
}


@pytest.mark.parametrize("make, reason", LEFT_ALONE.values(), ids=LEFT_ALONE)
def test_left_alone(make, reason):
    net = Two(make())
    kept = net.first
    cls, attributes = type(kept), dict(vars(kept))
    report = replace_se(net)
    assert names(report.replaced) == ["blocks.0"]
    assert [(entry.name, entry.reason) for entry in report.left] == [("first", reason)]
    assert net.first is kept and type(kept) is cls and vars(kept) == attributes


def test_hooks_on_state_dicts_stay():
    """As they do where a parametrization has been removed."""
    net, seen = Two(Cadene()), []
    net.first.register_state_dict_post_hook(lambda *arguments: seen.append(1))
    net.first.register_load_state_dict_pre_hook(lambda *arguments: seen.append(2))
    assert len(replace_se(net).replaced) == 2
    net.load_state_dict(net.state_dict())
    assert seen == [1, 2]


def test_global_hooks_do_not_run_in_the_trial():
    """With them a swapped module runs unfused: it would be compared with itself."""
    net, seen = Two(_copied_with(_squared)), []
    handle = nn.modules.module.register_module_forward_hook(lambda *arguments: seen.append(1))
    try:
        report = replace_se(net)
    finally:
        handle.remove()
    assert not seen
    assert [entry.reason for entry in report.left] == [LEFT_ALONE["another-formula"][1]]
    assert names(report.replaced) == ["blocks.0"]


@pytest.mark.parametrize("path", LEFT)
def test_families_that_are_always_left(path):
    cls = named(path)(type("X", (nn.Module,), {"forward": Cadene.forward}))
    report = replace_se(nn.Sequential(cls()))
    assert report.left == [("0", path, LEFT[path])] and not report.replaced


def test_torchvision_s_quantizable_subclass():
    quantization = pytest.importorskip("torchvision.models.quantization")
    net = quantization.mobilenet_v3_large(num_classes=3)
    report = replace_se(net)
    assert len(report.left) == 8 and not report.replaced
    assert all("quantiz" in entry.reason for entry in report.left)


class Gating(nn.Module):
    """SE whose gate is a Sequential of its own, and that multiplies outside of it."""

    def __init__(self):
        super().__init__()
        self.gating = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(24, 6, 1), nn.ReLU(), nn.Conv2d(6, 24, 1),
            nn.Sigmoid(),
        )

    def forward(self, x):
        return x * self.gating(x)


def test_parts_and_containers_are_not_taken_for_the_module():
    net = nn.Sequential(nn.Sequential(Gating()), nn.Sequential(Copied()), Gating().gating)
    report = replace_se(net)
    assert names(report.replaced) == ["0.0", "1.0"]
    assert names(report.left) == ["2"] and "returns the gate" in report.left[0].reason


def test_mlp_with_the_layers_of_se_is_no_se():
    mlp = nn.Sequential(nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 16), nn.Sigmoid())
    convolutions = nn.Sequential(
        nn.Conv2d(16, 4, 1), nn.Identity(), nn.GELU(), nn.Conv2d(4, 16, 1), nn.Dropout()
    )
    pixels = nn.Sequential(nn.Conv2d(16, 4, 1), nn.ReLU(), nn.Conv2d(4, 16, 1), nn.Sigmoid())
    report = replace_se(nn.Sequential(convolutions, pixels, nn.Flatten(), mlp))
    assert not report.replaced and not report.left


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
    assert se_fused.ops.forced_backend() is None


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
    for swapped in (False, True):
        torch.manual_seed(0)
        net = Two().double()
        adam = torch.optim.Adam(net.parameters(), lr=0.1)
        for step in range(4):
            if step == 2 and swapped:
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
