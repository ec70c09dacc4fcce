"""Names of a library's module that FusedSE has too: the library's stay what they are."""

import copy
import pickle

import pytest
import torch
from pairs import assert_fused, pair, x_of
from se_modules import Copied, gates, times
from torch import nn

from se_fused import FusedSE, replace_se, restore_se

# Whatever FusedSE, its base and the functions of its module are called.
OURS = sorted(
    {name for name in {*vars(FusedSE), *vars(FusedSE(8)), *FusedSE(8)._modules}
     if not name.startswith("__")}
    | {"_gate", "_layers", "_form", "form", "paths", "compute", "on_gate", "squeeze", "channels",
       "fused", "bound", "takes", "other_layers", "library", "names", "guard", "excitation",
       "specification", "is_se_alone", "add_residual", "example_map", "members", "prefix", "kind"}
)  # fmt: skip
OURS = [name for name in OURS if not name.startswith("_abc") and name not in vars(nn.Module)
        and name not in vars(nn.Module()) and name not in ("forward", "extra_repr")]  # fmt: skip


def with_method(name):
    """The forward calls a method of that name."""
    members = {name: gates, "forward": lambda self, x: times(x, getattr(self, name)(x))}
    return type("Own", (Copied,), members)()


def with_attribute(name):
    """The forward reads an attribute of that name."""
    members = {"forward": lambda self, x: times(x, gates(self, x)) * getattr(self, name)}
    module = type("Own", (Copied,), members)()
    setattr(module, name, 1)
    return module


def with_property(name):
    members = {
        name: property(lambda self: 1.0),
        "forward": lambda self, x: times(x, gates(self, x)) * getattr(self, name),
    }
    return type("Own", (Copied,), members)()


def with_class_attribute(name):
    members = {name: 1, "forward": lambda self, x: times(x, gates(self, x)) * getattr(self, name)}
    return type("Own", (Copied,), members)()


def with_child(name):
    """The layers are in a child of that name."""

    class Own(nn.Module):
        def forward(self, x):
            return times(x, self._modules[name](x.mean((2, 3))))

    module = Own()
    module.add_module(name, Copied().fc)
    return module


WAYS = [with_method, with_attribute, with_property, with_class_attribute, with_child]


@pytest.mark.parametrize("make", WAYS, ids=lambda make: make.__name__[5:].replace("_", "-"))
@pytest.mark.parametrize("name", OURS)
def test_name(make, name):
    module = make(name)
    library, replaced = pair(module)
    assert_fused((library, replaced), x_of())
    repr(replaced), replaced.state_dict()
    mine, theirs = getattr(replaced.se, name), getattr(library.se, name)
    assert type(mine) is type(theirs)
    if make is with_method:
        x = x_of()
        assert torch.equal(mine(x), theirs(x))
    twin = copy.deepcopy(replaced)
    assert_fused((library, twin), x_of())
    assert restore_se(replaced).replaced
    assert type(replaced.se) is type(library.se)


def test_extra_repr_of_the_library_stays():
    own = type("Own", (Copied,), {"extra_repr": lambda self: "mine"})
    net = nn.Sequential(own())
    replace_se(net)
    assert "mine" in repr(net) and "one operator" not in repr(net)


def test_methods_of_the_library_that_pickle_uses():
    net = nn.Sequential(WithState())
    replace_se(net)
    x = x_of().float()
    twin = pickle.loads(pickle.dumps(net))
    assert twin[0].was_loaded and isinstance(twin[0], FusedSE)
    torch.testing.assert_close(twin(x), net(x))


class WithState(Copied):
    def __getstate__(self):
        return {**vars(self), "was_saved": True}

    def __setstate__(self, state):
        super().__setstate__(state)
        self.was_loaded = state["was_saved"]
