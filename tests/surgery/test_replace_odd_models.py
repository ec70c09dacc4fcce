"""No model makes replace_se and restore_se raise: what cannot be looked at is left."""

import warnings

import pytest
import torch
import torch.fx
from near_misses import InFile
from se_modules import C, Cadene, Copied, Moskomule, named
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from se_fused import FusedSE, replace_se, restore_se


def refused(*arguments, **keywords):
    raise RuntimeError("not here")


def cadene_with(**members):
    """The library's class with members of its own, under the library's name."""
    return named("pretrainedmodels.models.senet.SEModule")(type("SEModule", (Cadene,), members))()


def copy_with(**members):
    return type("InFile", (InFile,), members)()


class Closed(Cadene):
    """No attribute can be read but its children's, and none be set."""

    def __getattr__(self, name):
        if name in self.__dict__.get("_modules", {}):
            return self._modules[name]
        raise RuntimeError(f"no {name} here")


Closed = named("pretrainedmodels.models.senet.SEModule")(Closed)


class Sealed(Copied):
    is_sealed = False

    def __setattr__(self, name, value):
        if self.is_sealed:
            raise RuntimeError("sealed")
        super().__setattr__(name, value)


def sealed():
    module = Sealed()
    module.__dict__["is_sealed"] = True
    return module


def scripted(module):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(module)


def traced(module):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(module, torch.randn(2, C, 3, 3))


def with_layer(layer, make=Cadene):
    module = make()
    module.fc1 = layer
    return module


class MethodWeight(nn.Module):
    """A layer whose weight is a method, as a quantized one's."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(C, 6, 1)

    def weight(self):
        return self.layer.weight

    def forward(self, x):
        return self.layer(x)


class PropertyWeight(MethodWeight):
    @property
    def weight(self):
        raise RuntimeError("not here")


def quantized():
    torch.backends.quantized.engine = torch.backends.quantized.supported_engines[-1]
    module = Moskomule()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(module, {nn.Linear})


def fake():
    with FakeTensorMode():
        return Cadene()


def of_dtype(dtype):
    module = Cadene()
    for layer in (module.fc1, module.fc2):
        layer.weight = nn.Parameter(layer.weight.detach().to(dtype), requires_grad=False)
    return module


def without_parameters():
    module = Cadene()
    for layer in (module.fc1, module.fc2):
        layer.weight = layer.bias = None
    return module


def unfinished():
    return nn.Module.__new__(type("Unfinished", (nn.Module,), {}))


def lazy():
    return with_layer(nn.LazyConv2d(6, 1))


def lazy_copy():
    module = InFile()
    module.fc1, module.fc2 = nn.LazyConv2d(4, 1), nn.LazyConv2d(C, 1)
    return module


# How to make it, and a part of the reason; None: it is not listed; True: it is replaced.
ODD = {
    "getattr": (Closed, "RuntimeError: no "),
    "repr": (lambda: cadene_with(__repr__=refused), "it could not be looked at: RuntimeError: not"),
    "repr-of-a-copy": (lambda: copy_with(__repr__=refused), None),
    "deepcopy": (lambda: cadene_with(__deepcopy__=refused), "it could not be tried: RuntimeError"),
    "state-dict": (lambda: cadene_with(state_dict=refused), True),
    "named-modules": (lambda: cadene_with(named_modules=refused), "RuntimeError: not here"),
    "parameters": (lambda: cadene_with(parameters=refused), "RuntimeError: not here"),
    "property": (
        lambda: cadene_with(add_maxpool=property(refused)), "RuntimeError: not here"
    ),
    "forward": (lambda: cadene_with(forward=refused), "it takes no map of 3×5: RuntimeError: not"),
    "error-of-errors": (
        lambda: cadene_with(forward=lambda self, x: (_ for _ in ()).throw(Unspeakable())), ""
    ),
    "setattr": (sealed, "RuntimeError: sealed"),
    "scripted": (lambda: scripted(Moskomule()), "it is compiled by torch.jit"),
    "traced": (lambda: traced(Moskomule()), "it is compiled by torch.jit"),
    "scripted-copy": (lambda: scripted(Copied()), None),
    "scripted-layer": (lambda: with_layer(scripted(nn.Conv2d(C, 6, 1))), "compiled by torch.jit"),
    "graph-module": (lambda: torch.fx.symbolic_trace(Copied()), "it is a torch.fx.GraphModule"),
    "quantized": (quantized, "quantized.dynamic.modules.linear.Linear, has no weight that"),
    "weight-is-a-method": (lambda: with_layer(MethodWeight()), "its layer fc1, a "),
    "weight-raises": (lambda: with_layer(PropertyWeight()), "its layer fc1, a "),
    "lazy": (lazy, "its layer fc1 has no parameters yet"),
    "lazy-copy": (lazy_copy, "its layer fc1 has no parameters yet"),
    "fake": (fake, ""),
    "int8": (lambda: of_dtype(torch.int8), ""),
    "float8": (lambda: of_dtype(torch.float8_e4m3fn), True),
    "complex": (lambda: of_dtype(torch.complex64), ""),
    "no-weights": (without_parameters, "has no weight that se_fused knows"),
    "layer-is-none": (lambda: with_layer(None), ""),
    "no-init": (unfinished, None),
    "no-children": (nn.ReLU, None),
}  # fmt: skip


class Unspeakable(Exception):
    def __str__(self):
        raise RuntimeError("not here")


@pytest.mark.parametrize("make, reason", ODD.values(), ids=ODD)
def test_odd_module(make, reason):
    net = nn.Sequential(make(), Copied())
    library = type(net[0])
    report = replace_se(net)
    assert isinstance(net[1], FusedSE)
    replaced = [entry.name for entry in report.replaced]
    if reason is True:
        assert replaced == ["0", "1"] and not report.left
    else:
        assert replaced == ["1"] and type(net[0]) is library
        assert [entry.name for entry in report.left] == ([] if reason is None else ["0"])
        assert reason is None or reason in report.left[0].reason
    again = replace_se(net)
    assert not again.replaced and [e.name for e in again.left] == [e.name for e in report.left]
    restored = restore_se(net)
    assert [entry.name for entry in restored.replaced] == replaced
    assert type(net[0]) is library and type(net[1]) is Copied


def test_scripted_network_is_left():
    net = scripted(nn.Sequential(nn.Conv2d(C, C, 1), nn.Sequential(Moskomule())))
    report = replace_se(net)
    assert [(e.name, e.reason) for e in report.left] == [("1.0", "it is compiled by torch.jit")]
    assert not report.replaced and not restore_se(net).replaced


def test_network_whose_own_methods_raise():
    members = dict.fromkeys(("named_modules", "modules", "parameters", "named_children"), refused)
    net = type("Net", (nn.Sequential,), members)(Copied(), InFile())
    optimizer = torch.optim.SGD([net[0].fc[0].weight], lr=0.1)
    assert len(replace_se(net, optimizers=optimizer).replaced) == 2
    assert len(restore_se(net).replaced) == 2


def test_network_with_a_module_in_itself():
    net = nn.Sequential(Copied())
    net[0].owner = nn.ModuleList([net])
    report = replace_se(net)
    assert not report.replaced and len(report.left) <= 1
    assert not restore_se(net).replaced
