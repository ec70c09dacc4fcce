"""Activations of libraries: each that computes one of ours is known by that name, no other is."""

import importlib
import inspect

import pytest
import torch
import torch.nn.functional as F
from formulas import ACTS, GATES
from torch import nn

from se_fused import activations
from se_fused.surgery.registry import ACTIVATIONS

OURS = {**ACTS, **GATES}
# Near zero and the kinks of the hard functions, never on them: gradients there are conventions.
KINKS = torch.tensor([-3.0, 0.0, 3.0], dtype=torch.float64)[:, None]
NEAR = torch.tensor([1e-9, 1e-6, 1e-3, 0.1], dtype=torch.float64)
POINTS = torch.cat([
    (KINKS + NEAR).flatten(), (KINKS - NEAR).flatten(), torch.linspace(-6.01, 6.02, 50).double(),
    torch.tensor([-700.0, -90.0, -40.0, 40.0, 90.0, 700.0]).double(),
])  # fmt: skip
# PyTorch's own hardsigmoid has a float32 1/6 in its float64 gradient.
TOLERANCES = dict(rtol=1e-7, atol=1e-12)


def value_and_gradient(function):
    p = POINTS.clone().requires_grad_()
    y = function(p * 1)  # not a leaf: it may be written to
    return y.detach(), torch.autograd.grad(y.sum(), p)[0]


def found_name(function) -> str | None:
    """Which of our functions it computes, value and gradient, by its results."""
    try:
        found = value_and_gradient(function)
    except Exception:  # it takes something else
        return None
    for name, own in OURS.items():
        try:
            torch.testing.assert_close(found, value_and_gradient(own), **TOLERANCES)
        except AssertionError:
            continue
        return name
    return None


@pytest.mark.parametrize("path", ACTIVATIONS)
def test_known_by_name(path):
    try:
        module = importlib.import_module(path)
    except ImportError:
        pytest.skip("not installed; se_modules.py has a copy of those that SE modules use")
    for name, known in ACTIVATIONS[path].items():
        kind = getattr(module, name)
        layer = kind() if inspect.isclass(kind) else kind
        assert activations.function_name(layer) == known == found_name(layer), name


@pytest.mark.parametrize("function", [torch.relu, torch.sigmoid, torch.tanh, F.gelu],
                         ids=lambda function: function.__name__)
def test_function_of_torch(function):
    assert activations.function_name(function) == found_name(function) == function.__name__


MODULES = (
    "torch.nn.modules.activation", "torch.nn.functional", "timm.layers.activations",
    "timm.layers.activations_me", "transformers.activations", "monai.networks.blocks.activation",
)


def members(module) -> dict:
    """The activations that a file defines, classes without arguments made."""
    found = {}
    for name, member in vars(module).items():
        if getattr(member, "__module__", None) != module.__name__ or name.startswith("_"):
            continue
        if inspect.isclass(member) and issubclass(member, nn.Module):
            try:
                found[name] = member().double()
            except TypeError:
                continue
        elif inspect.isfunction(member) and not name.endswith(("_", "_fwd", "_bwd", "dropout")):
            found[name] = member
    return found


@pytest.mark.filterwarnings("ignore")  # of torch.nn.functional, where functions are deprecated
@pytest.mark.parametrize("path", MODULES)
def test_every_activation_of_a_file(path):
    layers = members(pytest.importorskip(path))
    expected = {name: found_name(layer) for name, layer in layers.items()}
    assert len([name for name in expected.values() if name]) > 2
    assert {name: activations.function_name(layer) for name, layer in layers.items()} == expected


ARGUMENTS = {
    "leaky-relu": (nn.LeakyReLU, dict(negative_slope=0.01), dict(negative_slope=0.2)),
    "gelu": (nn.GELU, dict(approximate="none"), dict(approximate="tanh")),
    "monai-swish": ("monai.networks.blocks.activation.Swish", dict(alpha=1), dict(alpha=1.5)),
}


@pytest.mark.parametrize("kind, same, other", ARGUMENTS.values(), ids=ARGUMENTS)
def test_arguments_that_change_the_function(kind, same, other):
    if isinstance(kind, str):
        module, _, name = kind.rpartition(".")
        kind = getattr(pytest.importorskip(module), name)
    known = activations.function_name(kind(**same))
    assert known == found_name(kind(**same)) is not None
    assert activations.function_name(kind(**other)) is found_name(kind(**other)) is None
