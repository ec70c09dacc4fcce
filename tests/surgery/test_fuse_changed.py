"""A fused block whose forward reads something that has changed since: its own runs, and says so."""

import copy
import warnings

import pytest
import torch.nn.functional as F
from block_with_forward import Residual, block, feature_map, step
from residual_blocks import assert_same

from se_fused import fuse

SWITCHES = {"skip": True}
x = feature_map()


class Switch:
    on = True


def _scaled(self, x):
    return F.relu(self.branch(x) * self.scale + x) if self.options["skip"][0] else self.branch(x)


def _switched_outside(self, x):
    return F.relu(self.branch(x) + x) if SWITCHES["skip"] and Switch.on else self.branch(x)


def _without_the_norm(self, x):
    y = self.conv(x)
    return F.relu(self.se(self.bn(y) if self.bn is not None else y) + x)


def _scaled_block():
    return block(_scaled, scale=2.0, options={"skip": [True]})


CHANGES = {
    "attribute": (_scaled_block, lambda m: setattr(m, "scale", 3.0), "scale is 3.0 now"),
    "inside-of-an-attribute": (
        _scaled_block, lambda m: m.options["skip"].__setitem__(0, False), "options is"
    ),
    "child-set-to-none": (
        lambda: block(_without_the_norm), lambda m: setattr(m, "bn", None), "bn is None now"
    ),
    "method-of-its-own": (
        lambda: block(Residual.forward), lambda m: setattr(m, "branch", m.conv.forward),
        "branch has been set",
    ),
    "class-s-forward": (
        lambda: block(Residual.forward),
        lambda m: setattr(type(m).__made_of__[1] if hasattr(m, "__fusion__") else type(m),
                          "forward", lambda self, x: x * 2),
        "the forward of block_with_forward.Other is another",
    ),
}  # fmt: skip


@pytest.mark.parametrize("make, change, word", CHANGES.values(), ids=CHANGES)
def test_changed_later(make, change, word):
    module = make()
    library = copy.deepcopy(module)
    assert fuse(module).replaced
    change(library)
    change(module)
    with pytest.warns(UserWarning, match=word) as said:
        assert_same(step(module, (x,), {}), step(library, (x,), {}))
        module(x)
    assert len(said) == 1


@pytest.mark.parametrize("where", ["dict", "class"])
def test_changed_outside(monkeypatch, where):
    library = block(_switched_outside)
    module = copy.deepcopy(library)
    assert fuse(module).replaced
    if where == "dict":
        monkeypatch.setitem(SWITCHES, "skip", False)
    else:
        monkeypatch.setattr(Switch, "on", False)
    with pytest.warns(UserWarning, match="library's forward, unfused"):
        assert_same(step(module, (x,), {}), step(library, (x,), {}))


def test_fused_again_after_a_change():
    module = _scaled_block()
    library = copy.deepcopy(module)
    fuse(module)
    module.scale = library.scale = 3.0
    report = fuse(module)
    assert len(report.replaced) == 1 and not report.left
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(step(module, (x,), {}), step(library, (x,), {}))


def test_what_broke_a_fusion_is_why_it_is_left():
    module = block(Residual.forward)
    fuse(module)
    module.bn.register_forward_hook(lambda *arguments: None)
    report = fuse(module)
    assert [entry.reason for entry in report.left] == ["bn has hooks"]


def test_se_that_is_hooked_in_a_fused_block():
    module = block(Residual.forward)
    fuse(module)
    seen = []
    module.se.fc1.register_forward_hook(lambda *arguments: seen.append(1))
    with pytest.warns(UserWarning, match="FusedSE is not fused with the layers around it"):
        module(x)
    module(x)
    assert len(seen) == 2
    report = fuse(module)
    assert [entry.reason for entry in report.left] == ["it does not run as one operator"]
