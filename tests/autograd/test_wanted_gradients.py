"""Gradients are computed where they are wanted, and nothing is computed for the others."""

from itertools import combinations

import pytest
import torch
from pairwise import each_pair
from reference import Inputs, check, results
from shapes import DENSE, DTYPES, EMPTY, LAYOUTS, REDUCED, make_inputs
from wanted_gradients import BLOCK, backward, gradients, leaves

import se_fused

pytestmark = pytest.mark.usefixtures("poisoned_allocations")


def choices(names) -> dict[str, tuple[str, ...]]:
    """Every choice of at least one of them."""
    sizes = range(1, len(names) + 1)
    return {"-".join(some): some for size in sizes for some in combinations(names, size)}


@pytest.mark.parametrize("layout", DENSE)
@pytest.mark.parametrize("wanted", choices(BLOCK).values(), ids=choices(BLOCK))
def test_squeeze_excite(place, wanted, layout):
    inputs = make_inputs((3, 20, 5, 7), 4, place.device, act="silu", layout=layout)
    tensors = leaves(inputs, wanted)
    y = se_fused.squeeze_excite(*tensors.values(), act="silu")
    computed = backward(y, inputs, tensors, wanted)
    assert computed.names[0] == ("squeeze_excite_backward" if "x" in wanted else "reduce_backward")
    check(gradients(tensors), inputs)


OPERATORS = {"x": "apply_forward", "gate": "reduce_backward", "x-gate": "reduce_backward"}


@pytest.mark.parametrize("layout", DENSE)
@pytest.mark.parametrize("choice", choices(("x", "gate")))
def test_rescale(place, choice, layout):
    inputs = make_inputs((3, 20, 5, 7), 4, place.device, layout=layout)
    tensors = {"x": inputs.x.detach(), "gate": results(inputs, torch.float32)["g"]}
    wanted = choice.split("-")
    for name in wanted:
        tensors[name].requires_grad_()
    computed = backward(se_fused.rescale(**tensors), inputs, tensors, wanted)
    assert computed.names[-1] == OPERATORS[choice]
    results_of = {"x": "dy_times_g", "gate": "dg"}
    check({results_of[name]: tensors[name].grad for name in wanted}, inputs)


def of_a_frozen_map(inputs: Inputs) -> dict[str, torch.Tensor]:
    tensors = leaves(inputs, BLOCK[1:])
    se_fused.squeeze_excite(*tensors.values(), act="relu", gate="sigmoid").backward(inputs.dy)
    return gradients(tensors)


@each_pair(dtype=DTYPES, layout=LAYOUTS.keys(), biases={"biases": True, "no-biases": False})
def test_frozen_map(place, dtype, layout, biases):
    inputs = make_inputs((3, 20, 5, 7), 4, place.device, dtype, layout=layout, biases=biases)
    check(of_a_frozen_map(inputs), inputs)


@pytest.mark.parametrize("dtype", REDUCED.values(), ids=REDUCED)
def test_frozen_map_beside_float32_weights_of_convolutions(place, dtype):
    inputs = make_inputs((3, 20, 5, 7), 4, place.device, dtype, weight_dtype=torch.float32)
    convolutions = inputs._replace(w1=inputs.w1[:, :, None, None], w2=inputs.w2[:, :, None, None])
    found = of_a_frozen_map(convolutions)
    assert found["dw1"].shape == (4, 20, 1, 1) and found["dw2"].shape == (20, 4, 1, 1)
    check({name: t.flatten(1) if "w" in name else t for name, t in found.items()}, inputs)


NOTHING = EMPTY | {"no-positions": ((2, 5, 0, 7), 3)}


@pytest.mark.parametrize("shape, hidden", NOTHING.values(), ids=NOTHING)
def test_frozen_map_of_nothing_gives_what_plain_pytorch_gives(place, shape, hidden):
    inputs = make_inputs(shape, hidden, place.device)
    expected = results(inputs, torch.float32)
    for name, gradient in of_a_frozen_map(inputs).items():
        torch.testing.assert_close(gradient, expected[name], equal_nan=True)


@pytest.mark.parametrize("x_layout", DENSE)
@pytest.mark.parametrize("dy_layout", ["contiguous", "channels-last", "strided", "expanded"])
def test_gradient_of_a_map_alone_has_its_layout(place, x_layout, dy_layout):
    inputs = make_inputs((3, 20, 5, 7), 4, place.device, layout=x_layout)
    if dy_layout == "expanded":
        dy = inputs.dy[:1].expand(inputs.x.shape)
    else:
        dy = LAYOUTS[dy_layout](inputs.dy.contiguous())
    inputs = inputs._replace(dy=dy)
    x = inputs.x.detach().requires_grad_()
    se_fused.rescale(x, results(inputs, torch.float32)["g"]).backward(dy)
    check({"dy_times_g": x.grad}, inputs)
    assert x.grad.stride() == inputs.x.stride()
