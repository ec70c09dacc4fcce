"""The operators: values on every backend, layouts of results, fakes, opcheck."""

import pytest
import torch
from block_operators import NO_NORM, OPERATORS, SIGNATURES, call, check_fakes, within_nan
from pairwise import each_pair
from reference import Inputs, check
from rounding import assert_right
from shapes import DENSE, DTYPES, LAYOUT_CASES, LAYOUTS, REDUCED, SHAPES, make_inputs

from se_fused import ops

pytestmark = pytest.mark.usefixtures("poisoned_allocations")

# Each backend meets each pair of an operator and a dtype, layout, shape …: a fault of a kernel lies
# in one of these or in two together, as each has a path of its own in the code.
LIKE_X = ("y", "dx", "dy_times_g", "dx_max")
FP32_AND_BF16 = {name: DTYPES[name] for name in ("fp32", "bf16")}
BIASES = {"biases": True, "no-biases": False}
OFFSETS = {"aligned": 64, "unaligned": 3}

each_operator = pytest.mark.parametrize("operator", OPERATORS)


def run_and_check(operator: str, inputs: Inputs):
    arguments = OPERATORS[operator].arguments(inputs)
    tensors = [a for a in arguments if isinstance(a, torch.Tensor)]
    before = [t.clone() for t in tensors]
    found = call(operator, arguments)
    acc = torch.promote_types(inputs.x.dtype, torch.float32)
    storages = {t.untyped_storage().data_ptr() for t in tensors if t.numel()}
    for name, result in found.items():
        assert result.dtype == (inputs.x.dtype if name in LIKE_X else acc), name
        assert result.untyped_storage().data_ptr() not in storages, f"{name} aliases an input"
    for tensor, copy in zip(tensors, before):
        assert torch.equal(tensor, copy), "an input was changed"
    check(found, inputs)
    return found


@each_pair(operator=OPERATORS.keys(), dtype=DTYPES, case=LAYOUT_CASES)
def test_values_in_every_layout(place, operator, dtype, case):
    layout, shape = case
    inputs = make_inputs(shape, 3, place.device, dtype, layout=layout)
    found = run_and_check(operator, inputs)
    for name in set(LIKE_X) & found.keys():
        result = found[name]
        if layout in DENSE:
            assert result.stride() == inputs.x.stride(), "the result must keep x's layout"
        channels_last = layout == "sliced-channels-last"
        expected = LAYOUTS["channels-last" if channels_last else "contiguous"](result)
        if layout not in DENSE:
            assert result.stride() == expected.stride()


@each_pair(
    lambda row: row["layout"] == "channels-last" and len(row["case"][0]) < 4,
    operator=OPERATORS.keys(), case=SHAPES, dtype=FP32_AND_BF16, layout=DENSE,
)  # fmt: skip
def test_values_in_every_shape(place, operator, case, dtype, layout):
    shape, hidden = case
    run_and_check(operator, make_inputs(shape, hidden, place.device, dtype, layout=layout))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("layout", DENSE)
def test_large_map_has_the_values_of_its_samples(native_place, dtype, layout):
    """Which are too small to be stored past the caches (csrc/cpu/memory.h)."""
    samples = 4
    inputs = make_inputs((samples, 16, 480, 640), 4, native_place.device, dtype, layout=layout)
    y, _, z, g = ops.squeeze_excite(inputs.x, None, *inputs.block[1:], False)
    backward = lambda dy, x, z, g: ops.squeeze_excite_backward(
        dy, x, None, z, g, *inputs.block[1:], False
    )[0]
    whole = inputs.x, inputs.dy, y, z, g, backward(inputs.dy, inputs.x, z, g)
    for x, dy, y, z, g, dx in zip(*(t.split(1) for t in whole)):
        assert torch.equal(ops.apply_forward(x, None, *NO_NORM, g, "identity", False)[0], y)
        torch.testing.assert_close(backward(dy, x, z, g), dx)


@each_pair(
    operator=("squeeze_excite", "squeeze_excite_backward"), dtype=REDUCED, layout=DENSE,
    biases=BIASES,
)  # fmt: skip
def test_float32_weights_beside_16_bit_map(place, operator, dtype, layout, biases):
    run_and_check(
        operator,
        make_inputs((3, 20, 5, 7), 6, place.device, dtype, weight_dtype=torch.float32,
                    layout=layout, biases=biases),
    )


@each_pair(
    operator=("gate_gradient", "rescale_backward", "squeeze_excite_backward", "gate_gradient_max",
              "rescale_backward_max"),
    x_layout=DENSE,
    dy_layout=("contiguous", "channels-last", "strided", "expanded", "expanded-samples"),
)  # fmt: skip
def test_output_gradient_in_another_layout(place, operator, x_layout, dy_layout):
    inputs = make_inputs((3, 20, 5, 7), 3, place.device, layout=x_layout)
    if dy_layout == "expanded":
        dy = torch.full((), 0.75, device=place.device).expand(inputs.x.shape)
    elif dy_layout == "expanded-samples":
        dy = inputs.dy[:1].expand(inputs.x.shape)
    else:
        dy = LAYOUTS[dy_layout](inputs.dy.contiguous())
    found = run_and_check(operator, inputs._replace(dy=dy))
    for name in set(LIKE_X) & found.keys():
        assert found[name].stride() == inputs.x.stride()


@each_pair(operator=OPERATORS.keys(), dtype=DTYPES, layout=DENSE, offset=OFFSETS)
def test_nothing_around_the_inputs_is_read_or_written(place, operator, dtype, layout, offset):
    inputs = make_inputs((2, 17, 7, 7), 3, place.device, dtype, layout=layout)
    arguments = OPERATORS[operator].arguments(inputs)
    guarded, buffers = [], []
    for argument in arguments:
        if isinstance(argument, torch.Tensor):
            argument, buffer = within_nan(argument, offset)
            buffers.append(buffer)
        guarded.append(argument)
    before = [buffer.clone() for buffer in buffers]
    check(call(operator, guarded), inputs)
    for buffer, copy in zip(buffers, before):
        assert torch.equal(buffer.view(torch.uint8), copy.view(torch.uint8))


@each_operator
@pytest.mark.parametrize("layout", DENSE)
def test_results_repeat_bitwise(place, operator, layout):
    inputs = make_inputs((5, 33, 7, 7), 8, place.device, layout=layout)
    arguments = OPERATORS[operator].arguments(inputs)
    first = call(operator, arguments)
    for _ in range(3):
        for name, result in call(operator, arguments).items():
            assert torch.equal(result, first[name]), name




@each_pair(
    operator=OPERATORS.keys(), signature=SIGNATURES, device=("meta", "fake-cuda", "fake-cpu"),
    namespace={"operator": torch.ops.se_fused, "as-functional": ops},
)  # fmt: skip
def test_fake_results_agree_with_real_ones(place, operator, signature, device, namespace):
    inputs = make_inputs(hidden=3, device=place.device, **signature)
    arguments = OPERATORS[operator].arguments(inputs)
    check_fakes(call, operator, arguments, device, namespace, place)


@each_pair(operator=OPERATORS.keys(), biases=BIASES, layout=DENSE)
def test_opcheck(place, operator, layout, biases):
    inputs = make_inputs((2, 5, 3, 4), 3, place.device, layout=layout, biases=biases)
    # opcheck compares two calls exactly; NaN-filled scratch would be compared as well.
    torch.use_deterministic_algorithms(False)
    overload = getattr(torch.ops.se_fused, OPERATORS[operator].name).default
    torch.library.opcheck(overload, OPERATORS[operator].arguments(inputs))


@pytest.mark.parametrize("has_bias", BIASES.values(), ids=BIASES)
def test_product(place, has_bias):
    """Autocast, under which compiled backward passes call it, does not reach it."""
    a, b, bias = (torch.randn(size, device=place.device) for size in ((5, 7), (3, 7), 3))
    arguments = a, b.t(), bias if has_bias else None
    with torch.autocast(place.device, dtype=torch.bfloat16):
        found = torch.ops.se_fused.product(*arguments)
    exact = a.double() @ b.double().t() + has_bias * bias.double()
    scale = a.double().abs() @ b.double().abs().t() + bias.double().abs()
    assert_right("product", found, exact, scale, torch.float32)
    torch.library.opcheck(torch.ops.se_fused.product.default, arguments)
