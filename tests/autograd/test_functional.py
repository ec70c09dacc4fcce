"""squeeze_excite, squeeze and rescale: values and first gradients on every backend."""

import pytest
import torch
from block_functions import forward_backward, leaves
from reference import ACTS, GATES, check, per_channel, results
from shapes import DENSE, DTYPES, EMPTY, LARGE, LAYOUTS, REDUCED, SHAPES, make_inputs

import se_fused

pytestmark = pytest.mark.usefixtures("poisoned_allocations")

each_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)

@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("gate", GATES)
def test_every_act_with_every_gate(place, act, gate):
    # A wide spread, so that both sides of every kink are visited and smooth gates saturate.
    inputs = make_inputs((4, 20, 5, 7), 12, place.device, act=act, gate=gate, spread=4.0)
    check(forward_backward(inputs), inputs)


@each_dtype
@pytest.mark.parametrize("layout", DENSE)
@pytest.mark.parametrize("biases", [True, False], ids=["biases", "no-biases"])
def test_every_dtype_and_layout(place, dtype, layout, biases):
    inputs = make_inputs((3, 33, 7, 7), 8, place.device, dtype, layout=layout, biases=biases,
                         act="silu")
    found = forward_backward(inputs)
    check(found, inputs)
    assert found["y"].stride() == found["dx"].stride() == inputs.x.stride()


@pytest.mark.parametrize("layout", sorted(LAYOUTS.keys() - set(DENSE)))
def test_layouts_that_are_copied(place, layout):
    inputs = make_inputs((3, 20, 5, 7), 4, place.device, layout=layout, gate="hardsigmoid")
    check(forward_backward(inputs), inputs)


@pytest.mark.parametrize("bias", ["b1", "b2"])
def test_one_bias_only(place, bias):
    inputs = make_inputs((3, 20, 5, 7), 4, place.device)._replace(**{bias: None})
    check(forward_backward(inputs), inputs)


@pytest.mark.parametrize("shape, hidden", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_every_shape(place, shape, hidden, dtype):
    inputs = make_inputs(shape, hidden, place.device, dtype)
    check(forward_backward(inputs), inputs)


@pytest.mark.parametrize("shape, hidden", LARGE.values(), ids=LARGE)
@pytest.mark.parametrize("layout", DENSE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_large_shapes(native_place, shape, hidden, layout, dtype):
    inputs = make_inputs(shape, hidden, native_place.device, dtype, layout=layout)
    check(forward_backward(inputs), inputs)


@pytest.mark.parametrize("shape, hidden", EMPTY.values(), ids=EMPTY)
@each_dtype
def test_no_samples_give_zero_weight_gradients(place, shape, hidden, dtype):
    inputs = make_inputs(shape, hidden, place.device, dtype)
    found = forward_backward(inputs)
    assert found["y"].shape == found["dx"].shape == shape
    check(found, inputs)
    assert all((found[name] == 0).all() for name in ("dw1", "db1", "dw2", "db2"))


@pytest.mark.parametrize("shape", [(2, 5, 0, 7), (2, 5, 0)], ids=["2d", "1d"])
def test_no_positions_give_what_plain_pytorch_gives(place, shape):
    inputs = make_inputs(shape, 3, place.device)
    expected = results(inputs, torch.float32)
    for name, result in forward_backward(inputs).items():
        torch.testing.assert_close(result, expected[name], equal_nan=True)
    assert se_fused.squeeze(inputs.x).isnan().all(), "the mean over nothing is NaN"


@pytest.mark.parametrize("dtype", REDUCED.values(), ids=REDUCED)
@pytest.mark.parametrize("layout", DENSE)
def test_float32_weights_beside_16_bit_map(place, dtype, layout):
    inputs = make_inputs((3, 20, 7, 7), 6, place.device, dtype, weight_dtype=torch.float32,
                         layout=layout)
    check(forward_backward(inputs), inputs)


def test_weights_of_convolutions(place):
    inputs = make_inputs((3, 20, 7, 7), 6, place.device)
    convolutions = inputs._replace(w1=inputs.w1[:, :, None, None], w2=inputs.w2[:, :, None, None])
    found, expected = forward_backward(convolutions), forward_backward(inputs)
    check({name: t for name, t in found.items() if "w" not in name}, inputs)
    for name in ("dw1", "dw2"):
        assert found[name].shape == expected[name].shape + (1, 1)
        assert torch.equal(found[name].flatten(1), expected[name])


@pytest.mark.parametrize("layout", DENSE)
def test_gradient_of_a_sum_is_expanded(place, layout):
    inputs = make_inputs((3, 20, 5, 7), 4, place.device, layout=layout)
    x, *parameters = leaves(inputs)
    se_fused.squeeze_excite(x, *parameters, act="relu", gate="sigmoid").sum().backward()
    found = {"dx": x.grad, "dw1": parameters[0].grad, "db2": parameters[3].grad}
    check(found, inputs._replace(dy=torch.ones_like(inputs.dy)))
    assert x.grad.stride() == inputs.x.stride()


def test_no_gradient_no_graph(place):
    inputs = make_inputs((3, 20, 5, 7), 4, place.device)
    y = se_fused.squeeze_excite(*inputs.tensors)
    assert not y.requires_grad
    check({"y": y}, inputs)


IN_PLACE = {
    "squeeze_excite": lambda i, x: se_fused.squeeze_excite(x, *i.tensors[1:]),
    "squeeze": lambda i, x: se_fused.squeeze(x),
    "rescale": lambda i, x: se_fused.rescale(x, torch.full(x.shape[:2], 0.5, device=x.device)),
}


@pytest.mark.parametrize("function", IN_PLACE.values(), ids=IN_PLACE)
@pytest.mark.parametrize("layout", DENSE)
def test_result_may_be_changed_in_place(place, function, layout):
    """As residual blocks do: ``x += shortcut``."""
    inputs = make_inputs((3, 20, 5, 7), 4, place.device, layout=layout)
    gradients = []
    for double in (lambda y: y * 2, lambda y: y.mul_(2)):
        x = inputs.x.detach().requires_grad_()
        double(function(inputs, x * 1)).sum().backward()
        gradients.append(x.grad)
    assert torch.equal(*gradients)


@each_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
def test_squeeze_and_rescale(place, dtype, layout):
    inputs = make_inputs((3, 20, 5, 7), 4, place.device, dtype, layout=layout)
    acc = torch.promote_types(dtype, torch.float32)
    gate = results(inputs, acc)["g"].requires_grad_()
    x = inputs.x.detach().requires_grad_()
    y = se_fused.rescale(x, gate)
    y.backward(inputs.dy)
    z = se_fused.squeeze(inputs.x)
    assert z.dtype == gate.grad.dtype == acc and y.dtype == x.grad.dtype == dtype
    check({"z": z, "y": y.detach(), "dy_times_g": x.grad, "dg": gate.grad}, inputs)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_rescale_by_a_gate_like_x(place, dtype):
    x = torch.randn(3, 20, 5, 7).to(place.device, dtype).requires_grad_()
    gate = torch.rand(3, 20, 1, 1).to(place.device, dtype).requires_grad_()
    dy = torch.randn(3, 20, 5, 7).to(place.device, dtype)
    se_fused.rescale(x, gate).backward(dy)
    exact = (dy.double() * x.detach().double()).sum((2, 3), keepdim=True)
    assert gate.grad.shape == gate.shape and gate.grad.dtype == dtype
    torch.testing.assert_close(gate.grad, exact.to(dtype), rtol=2 * torch.finfo(dtype).eps,
                               atol=40 * torch.finfo(torch.promote_types(dtype, torch.float32)).eps)


@pytest.mark.parametrize("layout", DENSE)
def test_gradient_of_squeeze(place, layout):
    x = LAYOUTS[layout](torch.randn(3, 20, 5, 7, device=place.device)).requires_grad_()
    dz = torch.randn(3, 20, device=place.device)
    se_fused.squeeze(x).backward(dz)
    torch.testing.assert_close(
        x.grad.double(), per_channel(dz.double() / 35, x).expand(x.shape), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("layout", DENSE)
@pytest.mark.parametrize("poison", [float("nan"), float("inf")], ids=["nan", "inf"])
@each_dtype
@pytest.mark.filterwarnings("ignore:invalid value encountered")  # NumPy, under the interpreter
def test_poison_in_one_sample_stays_there(place, layout, poison, dtype):
    clean = make_inputs((5, 20, 5, 7), 4, place.device, dtype, layout=layout)
    x = clean.x.clone()
    x[2, 3, 1, 4] = poison
    spoiled = clean._replace(x=x)
    keep = [0, 1, 3, 4]

    def outputs(inputs):
        arguments = inputs.x, None, *inputs.block[1:], False
        y, _, z, g = torch.ops.se_fused.squeeze_excite(*arguments)
        return {"y": y, "z": z, "g": g, "dx": forward_backward(inputs)["dx"]}

    expected = outputs(clean)
    for name, result in outputs(spoiled).items():
        assert torch.equal(result[keep], expected[name][keep]), f"{name} of another sample"
        assert not result[2].isfinite().all(), f"{name} hides the poison"


@pytest.mark.parametrize("layout", DENSE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_training_step_repeats_bitwise(place, layout, dtype):
    inputs = make_inputs((5, 33, 7, 7), 8, place.device, dtype, layout=layout)
    first = forward_backward(inputs)
    for _ in range(3):
        for name, result in forward_backward(inputs).items():
            assert torch.equal(result, first[name]), name
