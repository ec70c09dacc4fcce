"""BatchNorm, SE, addition and ReLU at once: values and gradients of the functions."""

import pytest
import torch
from passes_reference import NORM_ACTS
from rounding import assert_right
from shapes import DENSE, DTYPES, LAYOUTS, REDUCED
from shapes import SHAPES as BLOCK_SHAPES
from tail_functions import forward_backward, fused
from tail_reference import (
    MARGIN,
    RUNNING,
    TailInputs,
    check,
    error_scales,
    make_tail_inputs,
    results,
)

pytestmark = pytest.mark.usefixtures("poisoned_allocations")

each_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
each_layout = pytest.mark.parametrize("layout", DENSE)
each_mode = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
each_end = pytest.mark.parametrize("post_act", ["relu", "identity"])
with_and_without = pytest.mark.parametrize("residual", [True, False], ids=["add", "no-add"])


def run_and_check(inputs: TailInputs):
    found = forward_backward(inputs)
    check(found, inputs)
    return found


@pytest.mark.parametrize("norm_act", NORM_ACTS)
@with_and_without
@each_end
@each_mode
def test_every_variant(place, norm_act, residual, post_act, training):
    inputs = make_tail_inputs((3, 10, 7, 7), 4, place.device, residual=residual,
                              norm_act=norm_act, post_act=post_act, training=training)
    found = run_and_check(inputs)
    if not training:
        assert all(torch.equal(found[name], getattr(inputs, name)) for name in RUNNING)


@with_and_without
@each_end
@each_layout
def test_without_norm(place, residual, post_act, layout):
    inputs = make_tail_inputs((3, 10, 7, 7), 4, place.device, norm=False, residual=residual,
                              post_act=post_act, layout=layout)
    assert run_and_check(inputs).keys() & {"dweight", *RUNNING} == set()


@pytest.mark.parametrize("norm", [True, False], ids=["norm", "no-norm"])
@each_dtype
@each_layout
def test_every_dtype_and_layout(place, norm, dtype, layout):
    inputs = make_tail_inputs((3, 19, 5, 7), 4, place.device, dtype, layout=layout, norm=norm)
    found = run_and_check(inputs)
    for name in ("y", "dx", "dresidual"):
        assert found[name].stride() == inputs.x.stride(), name


@pytest.mark.parametrize("dtype", REDUCED.values(), ids=REDUCED)
@each_mode
@pytest.mark.parametrize("norm_act", ["identity", "silu"])
def test_float32_parameters_beside_a_16_bit_map(native_place, dtype, training, norm_act):
    inputs = make_tail_inputs((3, 19, 5, 7), 4, native_place.device, dtype, norm_act=norm_act,
                              weight_dtype=torch.float32, training=training)
    run_and_check(inputs)


# Sums over two or three samples may cancel, and eager come out closer by chance.
SHAPES = BLOCK_SHAPES | {"one-channel": ((8, 1, 7, 7), 2), "5x157": ((3, 5, 5, 157), 3)}
CASES = {
    f"{name}-{layout}": (*case, layout)
    for name, case in SHAPES.items()
    for layout in DENSE
    if layout == "contiguous" or len(case[0]) > 3
}


@pytest.mark.parametrize("shape, hidden, layout", CASES.values(), ids=CASES)
def test_every_shape(place, shape, hidden, layout):
    run_and_check(make_tail_inputs(shape, hidden, place.device, layout=layout))


@pytest.mark.parametrize("layout", sorted(LAYOUTS.keys() - set(DENSE)))
def test_layouts_that_are_copied(native_place, layout):
    device = native_place.device
    run_and_check(make_tail_inputs((3, 10, 5, 7), 4, device, layout=layout, norm_act="silu"))


@pytest.mark.parametrize("layout", DENSE)
@pytest.mark.parametrize("residual_layout", ["contiguous", "channels-last", "strided"])
def test_residual_in_another_layout(place, layout, residual_layout):
    inputs = make_tail_inputs((3, 10, 5, 7), 4, place.device, layout=layout,
                              residual_layout=residual_layout)
    assert run_and_check(inputs)["y"].stride() == inputs.x.stride()


MISSING = {
    "affine": dict(affine=False),
    "running-statistics": dict(running=False),
    "affine-in-eval-mode": dict(affine=False, training=False),
    "biases-of-se": dict(biases=False),
}


@pytest.mark.parametrize("missing", MISSING.values(), ids=MISSING)
@pytest.mark.parametrize("norm_act", ["identity", "hardswish"])
def test_what_may_be_missing(place, missing, norm_act):
    run_and_check(make_tail_inputs((3, 10, 5, 7), 4, place.device, norm_act=norm_act, **missing))


@pytest.mark.parametrize("name", ["weight", "bias", "b1", "b2"])
def test_one_parameter_missing(native_place, name):
    inputs = make_tail_inputs((4, 12, 5, 7), 3, native_place.device, post_act="identity")
    run_and_check(inputs._replace(**{name: None}))


def test_weights_of_convolutions(place):
    inputs = make_tail_inputs((3, 10, 5, 7), 4, place.device)
    convolutions = inputs._replace(w1=inputs.w1[:, :, None, None], w2=inputs.w2[:, :, None, None])
    found, expected = forward_backward(convolutions), forward_backward(inputs)
    for name, t in expected.items():
        assert torch.equal(found[name].view(t.shape), t), name
    assert found["dw1"].shape == (4, 10, 1, 1) and found["dw2"].shape == (10, 4, 1, 1)


FAR = {"fp32": (torch.float32, 1e4), "bf16": (torch.bfloat16, 100.0), "fp16": (torch.float16, 1e3)}


@pytest.mark.parametrize("dtype, mean", FAR.values(), ids=FAR)
@each_mode
@each_layout
def test_far_from_zero(place, dtype, mean, training, layout):
    """As exact as the mean of each plane, which is kept in float32, allows."""
    inputs = make_tail_inputs((3, 10, 7, 7), 4, place.device, dtype, mean=mean,
                              weight_dtype=torch.float32, training=training, layout=layout)
    check(forward_backward(inputs), inputs)


def test_statistics_of_constant_channels(place):
    """A variance of exactly 0, which a difference of two sums would miss."""
    inputs = make_tail_inputs((3, 10, 5, 7), 4, place.device)
    x = torch.full_like(inputs.x, 1234.567)
    running_mean, running_var = torch.zeros(2, 10, device=place.device)
    y = fused(inputs._replace(post_act="identity"),
              (x, None, *inputs[2:8], running_mean, running_var))
    assert torch.equal(running_var, torch.zeros_like(running_var))
    torch.testing.assert_close(y, y[:1, :, :1, :1].expand_as(y), rtol=1e-6, atol=0)


@each_mode
@pytest.mark.parametrize("norm_act", ["identity", "silu"])
@pytest.mark.parametrize("shape", [(0, 10, 5, 7), (0, 10)], ids=["2d", "no-spatial-dims"])
def test_empty_batch(place, training, norm_act, shape):
    """The parameters get zero gradients, and the running statistics stay."""
    inputs = make_tail_inputs(shape, 4, place.device, training=training, norm_act=norm_act)
    found, expected = forward_backward(inputs), results(inputs, torch.float32)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert found["y"].shape == shape and not found["dweight"].any() and not found["dw1"].any()
    assert all(torch.equal(found[name], getattr(inputs, name)) for name in RUNNING)


@each_layout
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_repeats_bitwise(place, layout, dtype):
    torch.use_deterministic_algorithms(True)  # and no operator objects
    inputs = make_tail_inputs((2, 17, 7, 7), 4, place.device, dtype, layout=layout)
    first = forward_backward(inputs)
    for name, result in forward_backward(inputs).items():
        assert torch.equal(result, first[name]), name


@pytest.mark.parametrize("residual_is", ["x", "a-view-of-x"])
def test_residual_is_x_itself(native_place, residual_is):
    """One gradient, the sum of both."""
    device = native_place.device
    inputs = make_tail_inputs((3, 10, 5, 7), 4, device, torch.float64, post_act="identity")
    x = inputs.x.clone().requires_grad_()
    residual = x if residual_is == "x" else x.view(x.shape)
    fused(inputs, (x, residual, *inputs[2:10])).backward(inputs.dy)
    exact = results(inputs._replace(residual=inputs.x), torch.float64)
    torch.testing.assert_close(x.grad, exact["dx"] + exact["dresidual"], rtol=1e-11, atol=1e-12)


@each_layout
@each_end
def test_result_may_be_changed_in_place(native_place, layout, post_act):
    device = native_place.device
    inputs = make_tail_inputs((3, 10, 5, 7), 4, device, layout=layout, post_act=post_act)
    gradients = []
    for double in (lambda y: y * 2, lambda y: y.mul_(2)):
        x = inputs.x.detach().requires_grad_()
        rest = [None if t is None else t.clone() for t in inputs[1:10]]
        double(fused(inputs, (x * 1, *rest))).sum().backward()
        gradients.append(x.grad)
    assert torch.equal(*gradients)


def test_no_gradient_no_graph(place):
    inputs = make_tail_inputs((3, 10, 5, 7), 4, place.device)
    exact = results(inputs, torch.float64)["y"]
    y = fused(inputs, inputs[:10])
    assert not y.requires_grad
    assert_right("y", y, exact, error_scales(inputs)["y"], y.dtype)


def test_inputs_keep_away_from_the_kink():
    """What lets every gradient above be judged by its largest error."""
    for residual in (True, False):
        for norm in (True, False):
            inputs = make_tail_inputs((3, 10, 7, 7), 4, norm=norm, residual=residual)
            y = results(inputs._replace(post_act="identity"), torch.float64)["y"]
            smallest = y.abs().min()
            assert smallest > (0.9 * MARGIN if residual else 0.01) and (y < 0).any()
