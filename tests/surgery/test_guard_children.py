"""Hooks on, children of and the classes of what stands between the layers of a replaced module."""

import pytest
import torch
from pairs import assert_fused, assert_library_runs, changed, pair, x_of
from se_examples import EXAMPLES
from se_modules import C, Copied, MMPretrain
from torch import nn
from torch.nn.modules import module as torch_module

from se_fused import replace_se

TORCHVISION, MONAI, HF = (EXAMPLES[name].make for name in ("torchvision", "monai-2d", "hf-regnet"))
# The containers and poolings of modules.
BETWEEN = {
    "a-copy-fc": (Copied, "fc"),
    "a-copy-pool": (Copied, "avg_pool"),
    "monai-fc": (MONAI, "fc"),
    "monai-pool": (MONAI, "avg_pool"),
    "torchvision-pool": (TORCHVISION, "avgpool"),
    "hf-attention": (HF, "attention"),
    "hf-pool": (HF, "pooler"),
    "mmpretrain-container": (MMPretrain, "conv1"),
}
between = pytest.mark.parametrize("make, path", BETWEEN.values(), ids=BETWEEN)


def forward_hook(module):
    module.register_forward_hook(lambda _, args, y: y.clamp(max=0.6))


def pre_hook(module):
    module.register_forward_pre_hook(lambda _, args: (args[0] * 0.5,))


def backward_hook(module):
    module.register_full_backward_hook(lambda _, grads, outputs: (grads[0] * 2,))


@between
@pytest.mark.parametrize("hook", [forward_hook, pre_hook, backward_hook],
                         ids=["forward", "forward-pre", "backward"])
def test_hook(make, path, hook):
    both = changed(make(), lambda se: hook(se.get_submodule(path)))
    assert_library_runs(both, x_of(), f"{path} has hooks")


def test_hook_that_is_removed():
    both = pair(Copied())
    handles = [each.se.fc.register_forward_hook(lambda _, args, y: y * 2) for each in both]
    assert_library_runs(both, x_of(), "fc has hooks")
    for handle in handles:
        handle.remove()
    assert_fused(both, x_of())


class Doubled(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x) * 2


@between
def test_replaced(make, path):
    both = changed(make(), lambda se: setattr(se, path, Doubled(se.get_submodule(path))))
    assert_library_runs(both, x_of(), f"{path} is a test_guard_children.Doubled now, and was a ")


def make_appended(se):
    se.fc.append(nn.Hardtanh(0, 0.5))


def make_inserted(se):
    se.fc.insert(1, nn.Dropout(0.0))


def make_deleted(se):
    del se.fc[3]


def make_exchanged(se):
    se.fc[1], se.fc[3] = se.fc[3], se.fc[1]


def make_class_changed(se):
    se.fc.__class__ = type("Squared", (nn.Sequential,), {"forward": lambda self, x: x * x})


def make_of_functions(se):
    se.fc[3] = nn.Softmax(1)


def make_beside(se):
    se.note = nn.Linear(2, 2)


CHANGES = {
    "appended": (make_appended, "the children of fc are others"),
    "inserted": (make_inserted, "the children of fc are others"),
    "deleted": (make_deleted, "the children of fc are others"),
    "exchanged": (make_exchanged, "fc.1 is a torch.nn.modules.activation.Sigmoid now"),
    "class": (make_class_changed, "fc is a test_guard_children.Squared now"),
    "activation": (make_of_functions, "fc.3 is a torch.nn.modules.activation.Softmax now"),
    "one-beside": (make_beside, "its children are others"),
}


@pytest.mark.parametrize("change, reason", CHANGES.values(), ids=CHANGES)
def test_container_changed(change, reason):
    both = changed(Copied(), change)
    assert_library_runs(both, x_of(), reason)


def test_activation_with_another_argument():
    both = changed(MONAI(), lambda se: setattr(se.fc[1], "negative_slope", 0.3))
    assert_library_runs(both, x_of(), "fc.1.negative_slope is 0.3 now, and was 0.01")


def test_pooling_of_another_size():
    def two(se):
        se.avg_pool.output_size = 2

    library, replaced = changed(Copied(), two)
    errors = []
    for each in (library, replaced):
        with pytest.raises(RuntimeError) as error:
            each.se(x_of())
        errors.append(str(error.value))
    assert errors[0] == errors[1]


def test_child_deleted():
    """As the library's: an error that names the child."""
    both = changed(Copied(), lambda se: delattr(se, "avg_pool"))
    for each in both:
        with pytest.raises(AttributeError, match="has no attribute 'avg_pool'"):
            each.se(x_of())


def test_other_layers_of_the_same_classes():
    def other(se):
        torch.manual_seed(1)
        se.fc = nn.Sequential(
            nn.Linear(C, 3), nn.ReLU(), nn.Linear(3, C), nn.Sigmoid()
        ).double()  # fmt: skip

    assert_fused(changed(Copied(), other), x_of())


GLOBAL = {
    "forward": torch_module.register_module_forward_hook,
    "forward-pre": torch_module.register_module_forward_pre_hook,
}


@pytest.mark.parametrize("register", GLOBAL.values(), ids=GLOBAL)
def test_global_hooks(register):
    both, called = pair(Copied()), []
    handle = register(lambda module, *rest: called.append(type(module).__name__))
    try:
        assert_library_runs(both, x_of(), "global hooks on the forward of all modules")
        assert called.count("Linear") == 8  # two of each, in four calls
        called.clear()
        assert replace_se(nn.Sequential(Copied())).replaced and not called
    finally:
        handle.remove()
    assert_fused(both, x_of())
