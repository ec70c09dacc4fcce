"""Layers beside which insert_se cannot put SE: it says which and why, and changes nothing."""

import pytest
import torch
from residual_blocks import C, Unit
from torch import nn
from torch.utils.checkpoint import checkpoint

from se_fused import insert_se
from se_fused.surgery.wrap_calls import Insertion, methods_with_se


def _as_an_argument(self, x):
    return checkpoint(self.bn, self.conv(x), use_reentrant=False)


def _under_another_name(self, x):
    bn = self.bn
    return bn(self.bn(self.conv(x)))


def _by_its_forward(self, x):
    return self.bn.forward(self.conv(x))


def _by_getattr(self, x):
    return getattr(self, "bn")(self.bn(self.conv(x)))  # noqa: B009


def _among_the_children(self, x):
    return self._modules["bn"](self.bn(x))


def _if_it_is_there(self, x):
    return (self.bn or self.conv)(x)


def _never(self, x):
    return self.conv(x) + self.bn.weight[:, None, None]


def _without_source():
    names = {}
    exec("def forward(self, x):\n    return self.bn(self.conv(x))", names)
    return names["forward"]


class CallsTheHidden(Unit):
    def forward(self, x):
        return super().forward(x) + x


class HasAnAlias(Unit):
    def __init__(self):
        super().__init__()
        self.steps = [self.conv, self.bn]

    def forward(self, x):
        return self.bn(self.conv(x))


class HasAProperty(Unit):
    @property
    def norm(self):
        return self.bn

    def forward(self, x):
        return self.norm(self.bn(self.conv(x)))


class ReturnsTwo(Unit):
    def forward(self, x):
        return self.bn(x), x


class Twice(Unit):
    def __init__(self):
        super().__init__()
        self.again = self.bn


def unit(forward):
    return type("Other", (Unit,), {"forward": forward})()


def _scripted():
    with pytest.warns(FutureWarning, match="deprecated"):
        return torch.jit.script(Unit())


REFUSED = {
    "as-an-argument": (
        lambda: unit(_as_an_argument), "bn", r"has checkpoint\(self.bn, self.conv\(x\), use_r"
    ),
    "under-another-name": (lambda: unit(_under_another_name), "bn", "has bn = self.bn"),
    "by-its-forward": (lambda: unit(_by_its_forward), "bn", "has self.bn.forward"),
    "by-getattr": (lambda: unit(_by_getattr), "bn", r"has getattr\(self, 'bn'\)"),
    "by-children": (lambda: unit(_among_the_children), "bn", r"has self._modules\['bn'\]"),
    "or-another": (lambda: unit(_if_it_is_there), "bn", "has self.bn or self.conv"),
    "never": (lambda: unit(_never), "bn", r"no method of .*Other calls self.bn\(…\)"),
    "no-source": (lambda: unit(_without_source()), "bn", "forward has no source"),
    "no-source-of-a-block": (lambda: unit(_without_source()), "", "forward has no source"),
    "hidden-but-called": (
        CallsTheHidden, "bn", "Unit.forward calls it, and CallsTheHidden.forward calls that"
    ),
    "alias": (HasAnAlias, "bn", r"HasAnAlias.__init__ has \[self.conv, self.bn\]"),
    "property": (HasAProperty, "bn", "HasAProperty.norm has return self.bn"),
    "two-results": (ReturnsTwo, "", r"ReturnsTwo.forward has return \(self.bn\(x\), x\)"),
    "two-names": (Twice, "bn", "1.block.bn and 1.block.again are one module"),
    "scripted": (_scripted, "bn", "it is a ScriptModule, whose class cannot be changed"),
    "list": (lambda: nn.ModuleList([nn.BatchNorm2d(C)]), "0", "it is in a torch.*ModuleList"),
}  # fmt: skip


@pytest.mark.parametrize("make, layer, reason", REFUSED.values(), ids=REFUSED)
def test_refused_and_nothing_is_changed(make, layer, reason):
    """A site before it, which can have SE, gets none."""
    network = nn.Sequential(Unit(), nn.ModuleDict({"block": make()}))
    modules, classes = list(network.modules()), [type(module) for module in network.modules()]
    chosen = "0.bn", f"1.block.{layer}".rstrip(".")
    message = rf"blocks must choose layers .*1\.block.* cannot have SE: .*{reason}"
    with pytest.raises(ValueError, match=message):
        insert_se(network, blocks=lambda name, module: C if name in chosen else None)
    assert list(network.modules()) == modules
    assert [type(module) for module in network.modules()] == classes


def _with_keywords(self, x):
    return self.bn(self.conv(input=x))


def test_se_before_a_layer_needs_its_first_argument():
    library = type(unit(_with_keywords))
    reason = r"has self.conv\(input=x\), without a first argument"
    with pytest.raises(ValueError, match=reason):
        methods_with_se(library, (Insertion("conv", "se", before=True),))
    assert methods_with_se(library, (Insertion("conv", "se"),)).keys() == {"forward"}


def test_model_that_is_a_layer():
    with pytest.raises(ValueError, match="the model cannot have SE: it is in no block"):
        insert_se(nn.Tanh(), blocks=lambda name, module: C)


def test_layer_of_a_known_network_that_is_called_otherwise():
    resnet = pytest.importorskip("torchvision.models.resnet", reason="test_refused covers it")
    network = resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1])
    network.layer4[0].alias = network.layer4[0].bn2
    message = "model must have layers .*layer4.0.bn2 and layer4.0.alias are one module"
    with pytest.raises(ValueError, match=message):
        insert_se(network)
    assert type(network.layer1[0]) is resnet.BasicBlock
