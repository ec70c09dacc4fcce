"""SE modules that replace_se leaves, with the reason, and what is no SE beside them."""

import pytest
from se_modules import Cadene, Copied, named
from torch import nn
from torch.nn.utils import parametrizations
from two_modules import Two, names

from se_fused import replace_se
from se_fused.surgery.registry import NOT_FUSIBLE

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
    """With them a replaced module runs unfused: it would be compared with itself."""
    net, seen = Two(_copied_with(_squared)), []
    handle = nn.modules.module.register_module_forward_hook(lambda *arguments: seen.append(1))
    try:
        report = replace_se(net)
    finally:
        handle.remove()
    assert not seen
    assert [entry.reason for entry in report.left] == [LEFT_ALONE["another-formula"][1]]
    assert names(report.replaced) == ["blocks.0"]


@pytest.mark.parametrize("path", NOT_FUSIBLE)
def test_families_that_are_always_left(path):
    cls = named(path)(type("X", (nn.Module,), {"forward": Cadene.forward}))
    report = replace_se(nn.Sequential(cls()))
    assert report.left == [("0", path, NOT_FUSIBLE[path])] and not report.replaced


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
