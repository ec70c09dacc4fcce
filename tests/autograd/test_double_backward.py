"""gradcheck and gradgradcheck of the functions on every backend, in float64 (so: real kernels)."""

from functools import partial

import pytest
import torch
from gradient_checks import check_gradients
from reference import ACTS, SQUEEZES, block, per_channel, results, spatial_max, spatial_mean
from shapes import LAYOUTS, make_inputs

import se_fused

# Where a derivative jumps; a finite difference across it is wrong for every implementation.
KINKS = {"relu": (0,), "leaky_relu": (0,), "hardswish": (-3, 3), "hardsigmoid": (-3, 3)}
BLOCKS = {
    "relu-sigmoid": ("relu", "sigmoid"),
    "silu-tanh": ("silu", "tanh"),
    "leaky-relu-hardsigmoid": ("leaky_relu", "hardsigmoid"),
    "gelu-identity": ("gelu", "identity"),
    "hardswish-relu": ("hardswish", "relu"),
    "identity-sigmoid": ("identity", "sigmoid"),
}
each_block = pytest.mark.parametrize("act, gate", BLOCKS.values(), ids=BLOCKS)


def smooth_inputs(shape, hidden, device, act, gate, **options):
    """Inputs whose pre-activations keep away from the kinks."""
    for seed in range(1000):
        torch.manual_seed(seed)
        inputs = make_inputs(shape, hidden, device, torch.float64, act=act, gate=gate, **options)
        bias = lambda b: 0 if b is None else b
        z = SQUEEZES[inputs.squeeze](spatial_mean(inputs.x), spatial_max(inputs.x))
        p1 = z @ inputs.w1.t() + bias(inputs.b1)
        p2 = ACTS[act](p1) @ inputs.w2.t() + bias(inputs.b2)
        distances = [(p - kink).abs().min() for p, f in ((p1, act), (p2, gate))
                     for kink in KINKS.get(f, ())]
        if all(distance > 0.02 for distance in distances):
            return inputs
    raise AssertionError("no inputs away from the kinks")


def block_of(inputs):
    """The function under test and its tensors, None biases bound."""
    given = [t is not None for t in inputs.tensors]

    def function(*tensors):
        rest = iter(tensors)
        tensors = (next(rest) if there else None for there in given)
        return se_fused.squeeze_excite(
            *tensors, act=inputs.act, gate=inputs.gate, squeeze=inputs.squeeze
        )

    return function, [t.detach().requires_grad_() for t in inputs.tensors if t is not None]


@each_block
def test_squeeze_excite(place, act, gate):
    function, tensors = block_of(smooth_inputs((2, 3, 2, 2), 2, place.device, act, gate))
    check_gradients(place, function, tensors)


VARIANTS = {
    "no-biases": ((2, 3, 2, 2), dict(biases=False)),
    "channels-last": ((2, 3, 2, 2), dict(layout="channels-last")),
    "strided": ((2, 3, 2, 2), dict(layout="strided")),
    "no-spatial-dims": ((3, 3), {}),
    "3d": ((2, 2, 2, 1, 2), {}),
    "max": ((2, 3, 2, 2), dict(squeeze="max")),
    "avg-max-channels-last": ((2, 3, 2, 2), dict(squeeze="avg_max", layout="channels-last")),
    "concat-strided": ((2, 3, 2, 2), dict(squeeze="concat", layout="strided")),
}


@pytest.mark.parametrize("shape, options", VARIANTS.values(), ids=VARIANTS)
def test_squeeze_excite_variants(place, shape, options):
    inputs = smooth_inputs(shape, 2, place.device, "silu", "sigmoid", **options)
    function, tensors = block_of(inputs)
    check_gradients(place, function, tensors)


@pytest.mark.parametrize("squeeze", ["avg", "concat"])
def test_squeeze_excite_of_a_frozen_map(place, squeeze):
    inputs = smooth_inputs((2, 3, 2, 2), 2, place.device, "silu", "sigmoid", squeeze=squeeze)
    function, (x, *parameters) = block_of(inputs)
    check_gradients(place, partial(function, x.detach()), parameters)


@pytest.mark.parametrize("layout, kind", [
    ("contiguous", "avg"), ("channels-last", "avg"), ("strided", "avg"), ("contiguous", "max"),
    ("channels-last", "concat"), ("strided", "avg_max"),
])  # fmt: skip
def test_squeeze(place, layout, kind):
    x = torch.randn(2, 3, 2, 3, dtype=torch.float64, device=place.device)
    x = LAYOUTS[layout](x).requires_grad_()
    check_gradients(place, partial(se_fused.squeeze, kind=kind), [x])


@pytest.mark.parametrize("layout", ["contiguous", "channels-last", "strided"])
@pytest.mark.parametrize("trailing", [(), (1, 1)], ids=["flat-gate", "gate-with-spatial-dims"])
def test_rescale(place, layout, trailing):
    x = torch.randn(2, 3, 2, 3, dtype=torch.float64, device=place.device)
    x = LAYOUTS[layout](x).requires_grad_()
    gate = torch.randn(2, 3, *trailing, dtype=torch.float64, device=place.device)
    gate.requires_grad_()
    check_gradients(place, se_fused.rescale, [x, gate])


def gradient_penalty(function, inputs, x_from):
    """Gradients of |dL/dx|² + |dL/dw1|², where x may itself be made of the parameters."""
    leaf_x, *parameters = [t.detach().requires_grad_() for t in inputs.tensors]
    x = x_from(leaf_x, parameters)
    loss = function(x, *parameters, inputs.act, inputs.gate).pow(2).sum()
    first = torch.autograd.grad(loss, [leaf_x, x, parameters[0]], create_graph=True)
    penalty = sum(gradient.pow(2).sum() for gradient in first)
    return first, torch.autograd.grad(penalty, [leaf_x, *parameters], allow_unused=True)


SOURCES = {
    "independent": lambda x, parameters: x * 1,
    "of-w1": lambda x, parameters: x * parameters[0].sum(),
    "of-every-parameter": lambda x, parameters: x * sum(p.pow(2).mean() for p in parameters),
    "of-a-block": lambda x, parameters: block(x, *parameters, "silu", "tanh"),
}


@pytest.mark.parametrize("x_from", SOURCES.values(), ids=SOURCES)
def test_second_gradient_counts_no_path_twice(place, x_from):
    inputs = smooth_inputs((2, 4, 3, 3), 3, place.device, "silu", "sigmoid")

    def fused(x, w1, b1, w2, b2, act, gate):
        return se_fused.squeeze_excite(x, w1, b1, w2, b2, act=act, gate=gate)

    for found, expected in zip(
        gradient_penalty(fused, inputs, x_from), gradient_penalty(block, inputs, x_from)
    ):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@each_block
def test_differentiable_gradient_equals_the_kernel_s(place, act, gate):
    inputs = smooth_inputs((3, 5, 4, 3), 4, place.device, act, gate)
    function, tensors = block_of(inputs)
    kernels = torch.autograd.grad(function(*tensors), tensors, inputs.dy)
    formulas = torch.autograd.grad(function(*tensors), tensors, inputs.dy, create_graph=True)
    exact = results(inputs, torch.float64)
    expected = tuple(exact[name] for name in ("dx", "dw1", "db1", "dw2", "db2"))
    torch.testing.assert_close(kernels, expected, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(formulas, expected, rtol=1e-11, atol=1e-12)


def test_second_gradient_of_squeeze_then_rescale(place):
    x = torch.randn(2, 3, 2, 3, dtype=torch.float64, device=place.device, requires_grad=True)

    def penalty(squeeze, rescale):
        y = rescale(x, torch.sigmoid(squeeze(x)))
        (first,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
        return torch.autograd.grad(first.pow(2).sum(), x)

    expected = penalty(spatial_mean, lambda x, gate: x * per_channel(gate, x))
    torch.testing.assert_close(
        penalty(se_fused.squeeze, se_fused.rescale), expected, rtol=1e-10, atol=1e-10
    )
