"""Attributes, class attributes and globals that a forward reads: what may change, and what is set.

Each module has the layers of Copied and a forward of its own.
"""

import pytest
import torch
from pairs import assert_fused, assert_library_runs, pair, x_of
from se_modules import C, Copied, gates, times
from torch import nn

STRENGTH = 1.0
SETTINGS = {"power": 1, "limits": [0.0, 1.0]}


def copy_of(forward, **attributes):
    """A module with a forward of its own, and attributes."""

    class Own(Copied):
        rate = 1.0
        options = {"squares": False}

        def scaled(self, g):
            return g * self.factor

    Own.forward = forward
    module = Own()
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


def switched(self, x):
    return times(x, gates(self, x)) if self.enabled else x


def tempered(self, x):
    p = self.fc[2](self.fc[1](self.fc[0](self.avg_pool(x).flatten(1))))
    return times(x, self.fc[3](p / self.temperature))


def by_method(self, x):
    return times(x, self.scaled(gates(self, x)))


def by_getattr(self, x):
    return times(x, gates(self, x) * getattr(self, "factor"))  # noqa: B009


def by_global(self, x):
    return times(x, gates(self, x) * STRENGTH)


def by_settings(self, x):
    return times(x, gates(self, x).clamp(*SETTINGS["limits"]) ** SETTINGS["power"])


def by_class(self, x):
    return times(x, gates(self, x) * self.rate)


def by_class_dict(self, x):
    g = gates(self, x)
    return times(x, g * g if self.options["squares"] else g)


def by_list(self, x):
    g = gates(self, x)
    for factor in self.factors:
        g = g * factor
    return times(x, g)


def by_dict(self, x):
    return times(x, gates(self, x) * self.settings["gate"]["factor"])


def set_to(name, value):
    return lambda se: setattr(se, name, value)


# How to make it, what to change afterwards, and what is said.
CHANGES = {
    "switch": (
        lambda: copy_of(switched, enabled=True), set_to("enabled", False),
        "enabled is False now, and was True",
    ),
    "temperature": (
        lambda: copy_of(tempered, temperature=1.0), set_to("temperature", 0.25),
        "temperature is 0.25 now, and was 1.0",
    ),
    "temperature-becomes-a-tensor": (
        lambda: copy_of(tempered, temperature=1.0),
        set_to("temperature", torch.linspace(1, 2, C, dtype=torch.float64)),
        "an attribute cannot be compared",
    ),
    "read-by-a-method": (
        lambda: copy_of(by_method, factor=1), set_to("factor", 3), "factor is 3 now, and was 1"
    ),
    "read-by-getattr": (
        lambda: copy_of(by_getattr, factor=1), set_to("factor", 3), "factor is 3 now, and was 1"
    ),
    "list-in-place": (
        lambda: copy_of(by_list, factors=[1.0]), lambda se: se.factors.append(0.5), "factors is "
    ),
    "dict-in-place": (
        lambda: copy_of(by_dict, settings={"gate": {"factor": 1}}),
        lambda se: se.settings["gate"].update(factor=2), "settings is ",
    ),
    "instance-hides-the-class": (
        lambda: copy_of(by_class), set_to("rate", 2.0), "rate has been set"
    ),
    "method-replaced": (
        lambda: copy_of(by_method, factor=1), set_to("scaled", lambda g: g / 2),
        "scaled has been set",
    ),
    "deleted-and-set": (
        lambda: copy_of(switched, enabled=True),
        lambda se: (delattr(se, "enabled"), setattr(se, "enabled", False)), "enabled is False",
    ),
    "parameter": (
        lambda: copy_of(tempered, temperature=1.0),
        lambda se: setattr(se, "temperature", nn.Parameter(torch.tensor(2.0))), "temperature",
    ),
}  # fmt: skip


@pytest.mark.parametrize("make, change, reason", CHANGES.values(), ids=CHANGES)
def test_changed_later(make, change, reason):
    both = pair(make())
    assert_fused(both, x_of())
    for each in both:
        change(each.se)
    assert_library_runs(both, x_of(), reason)


def test_changed_back_is_fused_again():
    both = pair(copy_of(switched, enabled=True))
    for value in (False, True):
        for each in both:
            each.se.enabled = value
        if value:
            assert_fused(both, x_of())
        else:
            assert_library_runs(both, x_of(), "enabled is False now")


def test_global(monkeypatch):
    both = pair(copy_of(by_global))
    assert_fused(both, x_of())
    monkeypatch.setitem(globals(), "STRENGTH", 0.5)
    assert_library_runs(both, x_of(), "STRENGTH is 0.5 now, and was 1.0")


@pytest.mark.parametrize("change", [{"power": 2}, {"limits": [0.0, 0.4]}], ids=["value", "list"])
def test_dict_of_the_module_in_place(monkeypatch, change):
    both = pair(copy_of(by_settings))
    assert_fused(both, x_of())
    for key, value in change.items():
        monkeypatch.setitem(SETTINGS, key, value)
    assert_library_runs(both, x_of(), "SETTINGS is ")


def test_list_in_a_dict_of_the_module_in_place(monkeypatch):
    both = pair(copy_of(by_settings))
    monkeypatch.setitem(SETTINGS, "limits", SETTINGS["limits"])
    SETTINGS["limits"][1] = 0.3
    try:
        assert_library_runs(both, x_of(), "SETTINGS is ")
    finally:
        SETTINGS["limits"][1] = 1.0


def test_class_attribute():
    both = pair(copy_of(by_class))
    type(both[0].se).rate = 0.25
    assert_library_runs(both, x_of(), "rate is 0.25 now, and was 1.0")
    both = pair(copy_of(by_class_dict))
    type(both[0].se).options["squares"] = True
    assert_library_runs(both, x_of(), "options is ")


def test_attributes_that_nothing_reads():
    """Notes, tensors and objects of users, before and after."""
    module = Copied()
    module.owner, module.seen = object(), torch.zeros(3)
    both = pair(module)
    for each in both:
        each.se.note, each.se.seen = ["a"], torch.ones(2)
    assert_fused(both, x_of())
    assert both[1].se.note == ["a"] and both[1].se.seen.sum() == 2


def test_one_set_in_the_place_of_one_that_is_deleted():
    """The module, and a layer of it, have as many attributes as before."""

    def of_module(se):
        del se.note
        se.scaled = halved

    def of_layer(se):
        del se.fc[3].note
        se.fc[3].forward = torch.tanh

    for change, reason in ((of_module, "scaled has been set"), (of_layer, "fc.3.forward has been")):
        module = copy_of(by_method, factor=1, note="a")
        module.fc[3].note = "b"
        both = pair(module)
        for each in both:
            change(each.se)
        assert_library_runs(both, x_of(), reason)


def halved(g):
    return g / 2
