"""The operators over a map: values on every backend, the bits of the mask, layouts of results,
fakes, opcheck."""

import pytest
import torch
from block_operators import NO_NORM, SIGNATURES, check_fakes, within_nan
from block_operators import OPERATORS as OF_BLOCK
from operator_cases import LIKE_X, VARIANTS, each_shape, run_and_check
from pairwise import each_pair
from passes_reference import OPERATORS as WITH_NORM
from passes_reference import make_norm_inputs
from rounding import assert_right
from shapes import DENSE, DTYPES, LAYOUT_CASES, LAYOUTS, REDUCED, make_inputs

from se_fused import ops

pytestmark = pytest.mark.usefixtures("poisoned_allocations")

# Each backend meets each pair of an operator and a dtype, layout, shape …: a fault of a kernel lies
# in one of these or in two together, as each has a path of its own in the code.
OPERATORS = OF_BLOCK | {f"{name}-with-norm": operator for name, operator in WITH_NORM.items()}
OF_TWO_MAPS = {
    name: operator
    for name, operator in OPERATORS.items()
    if operator.name.endswith("_backward") or name == "rescale-with-norm"
}
FP32_AND_BF16 = {name: DTYPES[name] for name in ("fp32", "bf16")}
BIASES = {"biases": True, "no-biases": False}
OFFSETS = {"aligned": 64, "unaligned": 3}
ACTS_OF_SHAPES = ("identity", "silu")

each_operator = pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
fp32_and_bf16 = pytest.mark.parametrize("dtype", FP32_AND_BF16.values(), ids=FP32_AND_BF16)
each_dense_layout = pytest.mark.parametrize("layout", DENSE)


@each_shape(operator=OPERATORS, dtype=FP32_AND_BF16, act=ACTS_OF_SHAPES)
def test_values_in_every_shape(place, operator, shape, layout, dtype, act):
    run_and_check(operator, operator.make(shape, place.device, dtype, layout=layout, act=act))


@each_pair(operator=OPERATORS, dtype=DTYPES, case=LAYOUT_CASES)
def test_values_in_every_layout(place, operator, dtype, case):
    layout, shape = case
    inputs = operator.make(shape, place.device, dtype, layout=layout, act="hardswish")
    found = run_and_check(operator, inputs)
    for name in set(LIKE_X) & found.keys():
        dense = "channels-last" if "channels-last" in layout else "contiguous"
        assert found[name].stride() == LAYOUTS[dense](torch.empty(shape)).stride()


@each_pair(
    operator={name: OF_BLOCK[name] for name in ("squeeze_excite", "squeeze_excite_backward")},
    dtype=REDUCED, layout=DENSE, biases=BIASES,
)  # fmt: skip
def test_float32_weights_beside_16_bit_map(place, operator, dtype, layout, biases):
    run_and_check(
        operator,
        make_inputs((3, 20, 5, 7), 6, place.device, dtype, weight_dtype=torch.float32,
                    layout=layout, biases=biases),
    )  # fmt: skip


@each_pair(
    operator=OF_TWO_MAPS,
    x_layout=DENSE,
    other_layout=("contiguous", "channels-last", "strided", "expanded", "expanded-samples"),
)  # fmt: skip
def test_other_map_in_another_layout(place, operator, x_layout, other_layout):
    inputs = operator.make((3, 20, 5, 7), place.device, layout=x_layout)

    def laid_out(t):
        if other_layout == "expanded":
            return torch.full((), 0.75, device=place.device).expand(t.shape)
        if other_layout == "expanded-samples":
            return t[:1].expand(t.shape)
        return LAYOUTS[other_layout](t.contiguous())

    others = {name: getattr(inputs, name) for name in ("dy", "residual") if hasattr(inputs, name)}
    inputs = inputs._replace(**{name: laid_out(t) for name, t in others.items()})
    found = run_and_check(operator, inputs)
    for name in set(LIKE_X) & found.keys():
        assert found[name].stride() == inputs.x.stride()


@fp32_and_bf16
@each_dense_layout
def test_large_block_has_the_values_of_its_samples(native_place, dtype, layout):
    """Which are too small to be stored past the caches (csrc/cpu/schedule/memory.h)."""
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


@pytest.mark.parametrize("operator", ["rescale", "gradient"])
@fp32_and_bf16
@each_dense_layout
def test_large_map_with_norm_has_the_values_of_its_samples(native_place, operator, dtype, layout):
    """See above."""
    samples = 4
    inputs = make_norm_inputs((samples, 16, 480, 384), native_place.device, dtype, layout=layout)
    operator = WITH_NORM[operator]
    whole = operator.call(operator.arguments(inputs))
    for n in range(samples):
        per_sample = ("x", "residual", "dy", "g", "grad_mean", "mask")
        own = {name: getattr(inputs, name).chunk(samples)[n] for name in per_sample}
        for name, found in operator.call(operator.arguments(inputs._replace(**own))).items():
            assert torch.equal(found, whole[name].chunk(samples)[n]), name


@each_pair(operator=OPERATORS, dtype=DTYPES, layout=DENSE, offset=OFFSETS)
def test_nothing_around_the_inputs_is_read_or_written(place, operator, dtype, layout, offset):
    inputs = operator.make((2, 17, 7, 7), place.device, dtype, layout=layout, act="silu")
    guarded, buffers = [], []
    for argument in operator.arguments(inputs):
        if isinstance(argument, torch.Tensor):
            argument, buffer = within_nan(argument, offset)
            buffers.append(buffer)
        guarded.append(argument)
    before = [buffer.clone() for buffer in buffers]
    operator.check(operator.call(guarded), inputs)
    for buffer, copy in zip(buffers, before):
        assert torch.equal(buffer.view(torch.uint8), copy.view(torch.uint8))


@each_operator
@each_dense_layout
@pytest.mark.parametrize("shape", [(5, 33, 7, 7), (2, 9, 40, 41)], ids=["7x7", "split"])
def test_results_repeat_bitwise(place, operator, layout, shape):
    arguments = operator.arguments(operator.make(shape, place.device, layout=layout, act="silu"))
    first = operator.call(arguments)
    for _ in range(3):
        for name, result in operator.call(arguments).items():
            assert torch.equal(result, first[name]), name


@each_pair(
    operator=OPERATORS, signature=SIGNATURES, device=("meta", "fake-cuda", "fake-cpu"),
    namespace={"operator": torch.ops.se_fused, "as-functional": ops}, act=ACTS_OF_SHAPES,
)  # fmt: skip
def test_fake_results_agree_with_real_ones(place, operator, signature, device, namespace, act):
    inputs = operator.make(device=place.device, act=act, **signature)
    check_fakes(operator, operator.arguments(inputs), device, namespace, place)


@each_pair(
    operator=WITH_NORM, signature=SIGNATURES,
    variant={name: VARIANTS[name] for name in ("neither", "no-norm", "maximum")},
)  # fmt: skip
def test_fake_results_of_variants(place, operator, signature, variant):
    inputs = operator.make(device=place.device, **signature, **variant)
    check_fakes(operator, operator.arguments(inputs), "meta", torch.ops.se_fused, place)


@each_pair(operator=OF_BLOCK, biases=BIASES, layout=DENSE)
def test_opcheck(place, operator, layout, biases):
    opcheck(operator, operator.make((2, 5, 3, 4), place.device, layout=layout, biases=biases))


@each_pair(
    operator=WITH_NORM, layout=DENSE,
    variant={name: VARIANTS[name] for name in ("training", "neither", "no-norm", "maximum")},
)  # fmt: skip
def test_opcheck_of_variants(place, operator, layout, variant):
    opcheck(operator, operator.make((2, 5, 3, 4), place.device, layout=layout, **variant))


@each_dense_layout
def test_opcheck_of_a_block_with_residual_and_relu(place, layout):
    block = make_inputs((2, 5, 3, 4), 3, place.device, layout=layout)
    forward = block.x, block.dy, *block.block[1:], True
    _, mask, z, g = ops.squeeze_excite(*forward)
    backward = block.dy, block.x, mask, z, g, *block.block[1:], True
    torch.use_deterministic_algorithms(False)
    torch.library.opcheck(torch.ops.se_fused.squeeze_excite.default, forward)
    torch.library.opcheck(torch.ops.se_fused.squeeze_excite_backward.default, backward)


def opcheck(operator, inputs):
    # opcheck compares two calls exactly; NaN-filled scratch would be compared as well.
    torch.use_deterministic_algorithms(False)
    overload = getattr(torch.ops.se_fused, operator.name).default
    torch.library.opcheck(overload, operator.arguments(inputs))


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
