"""Every act and gate, value and derivative, in every backend's own code, point by point.

With C = R = 1 and weights of 1, the block operators compute one act or gate of each sample.
"""

import pytest
import reference
import torch
from shapes import DTYPES
from torch import nn

import se_fused
from se_fused import activations

# Around zero, around the kinks of the hard functions, and far out, where exp overflows.
NEAR = torch.cat([torch.linspace(-6, 6, 49), torch.tensor([-2.999, -3.001, 2.999, 3.001, 1e-6])])
FAR = torch.tensor([-1e4, -745.0, -104.0, -90.0, -40.0, 40.0, 90.0, 104.0, 745.0, 1e4])
KINKS = {"hardswish": (-3.0, 3.0)}  # torch itself has changed its mind about these two

WIDE = {name: DTYPES[name] for name in ("fp32", "fp64")}
each_dtype = pytest.mark.parametrize("dtype", WIDE.values(), ids=WIDE)
each_act = pytest.mark.parametrize("act", reference.ACTS)
each_gate = pytest.mark.parametrize("gate", reference.GATES)


def points(device, dtype, name=None):
    p = torch.cat([NEAR, FAR])
    kink = torch.isin(p, torch.tensor(KINKS.get(name, ())))
    return p[~kink].to(device, dtype).unsqueeze(1)


def one(p):
    return torch.ones(1, 1, dtype=p.dtype, device=p.device)


def value(p, act, gate):
    weights = one(p), None, one(p), None
    return torch.ops.se_fused.squeeze_excite(p, None, *weights, act, gate, False)[3]


def derivatives(p, g, act, gate):
    """act'(p) and gate'(p), from the backward operator with dy = x = 1 and one gate or act."""
    x = torch.ones_like(p)
    _, _, dp1, _, dp2 = torch.ops.se_fused.squeeze_excite_backward(
        x, x, None, p, g, one(p), None, one(p), None, act, gate, False
    )
    return dp1, dp2


def exact(function, p):
    p = p.double().requires_grad_()
    y = function(p)
    return y.detach(), torch.autograd.grad(y.sum(), p)[0]


def assert_close(found, expected):
    # Single evaluations of exp, erf or tanh: good to a few units in the last place, and where the
    # function is flat, to a few eps of 1.
    eps = torch.finfo(found.dtype).eps
    torch.testing.assert_close(found, expected.to(found.dtype), rtol=16 * eps, atol=8 * eps)


@each_act
@each_dtype
def test_act(place, act, dtype):
    p = points(place.device, dtype, act)
    expected, derivative = exact(reference.ACTS[act], p)
    assert_close(value(p, act, "identity"), expected)
    assert_close(derivatives(p, expected.to(dtype), act, "identity")[0], derivative)


@each_gate
@each_dtype
def test_gate(place, gate, dtype):
    p = points(place.device, dtype)
    expected, derivative = exact(reference.GATES[gate], p)
    assert_close(value(p, "identity", gate), expected)
    assert_close(derivatives(p, expected.to(dtype), "identity", gate)[1], derivative)


@each_act
def test_act_passes_nan_on(place, act):
    p = torch.tensor([[1.0], [float("nan")], [2.0]], device=place.device)
    assert value(p, act, "identity").isnan().flatten().tolist() == [False, True, False]


@each_gate
def test_gate_passes_nan_on(place, gate):
    p = torch.tensor([[1.0], [float("nan")], [2.0]], device=place.device)
    assert value(p, "identity", gate).isnan().flatten().tolist() == [False, True, False]


def test_hidden_units_of_the_backward_are_the_act(place):
    p = points(place.device, torch.float32)
    for act, function in reference.ACTS.items():
        _, _, _, h, _ = torch.ops.se_fused.squeeze_excite_backward(
            p, p, None, p, p, one(p), None, one(p), None, act, "identity", False
        )
        assert_close(h, function(p.double()))


def test_names_are_those_of_the_design():
    assert set(activations.ACTS) == reference.ACTS.keys()
    assert set(activations.GATES) == reference.GATES.keys()


MODULES = {
    "relu": nn.ReLU(inplace=True),
    "silu": nn.SiLU(),
    "hardswish": nn.Hardswish(),
    "leaky_relu": nn.LeakyReLU(),
    "gelu": nn.GELU(),
    "identity": nn.Identity(),
    "sigmoid": nn.Sigmoid(),
    "hardsigmoid": nn.Hardsigmoid(),
    "tanh": nn.Tanh(),
}


@pytest.mark.parametrize("name", MODULES)
def test_module_computes_the_function_it_is_taken_for(name):
    assert activations.function_name(MODULES[name]) == name
    p = points("cpu", torch.float64)
    torch.testing.assert_close(MODULES[name](p.clone()), activations.FUNCTIONS[name](p))


UNKNOWN = {
    "leaky-relu-of-another-slope": nn.LeakyReLU(0.2),
    "gelu-by-tanh": nn.GELU(approximate="tanh"),
    "relu6": nn.ReLU6(),
    "elu": nn.ELU(),
    "subclass": type("MyReLU", (nn.ReLU,), {})(),
}


@pytest.mark.parametrize("module", UNKNOWN.values(), ids=UNKNOWN)
def test_module_of_another_function_is_not_taken(module):
    assert activations.function_name(module) is None
    block = se_fused.FusedSE(8, rd_channels=4, act_layer=lambda: module).double()
    x = torch.randn(2, 8, 3, 3, dtype=torch.float64)
    hidden = module(block.fc1(x.mean((2, 3), keepdim=True)))
    torch.testing.assert_close(block(x), x * torch.sigmoid(block.fc2(hidden)))
