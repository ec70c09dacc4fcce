"""Squeezes with the maximum in them: values and gradients of the block, and of what plain amax
does with equal values, NaN and infinities."""

import pytest
import torch
from block_functions import KINDS, forward_backward, leaves
from block_operators import NO_NORM, PLAIN, call
from reference import ACTS, GATES, SQUEEZES, Inputs, check, spatial_max, spatial_mean
from reference import block as plain_block
from shapes import DENSE, DTYPES, LARGE, LAYOUTS, SHAPES, make_inputs
from wanted_gradients import backward, gradients
from wanted_gradients import leaves as wanted_leaves

import se_fused
from se_fused import ops

pytestmark = pytest.mark.usefixtures("poisoned_allocations")


def assert_as_plain(inputs: Inputs, kind: str = "avg_max"):
    """The block and its gradients in float64."""
    tensors, found = leaves(inputs), []
    for y in (
        se_fused.squeeze_excite(*tensors, act=inputs.act, gate=inputs.gate, squeeze=kind),
        plain_block(*tensors, inputs.act, inputs.gate, kind),
    ):
        found.append((y, *torch.autograd.grad(y, tensors, inputs.dy)))
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-11, equal_nan=True)


each_kind = pytest.mark.parametrize("kind", KINDS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
each_layout = pytest.mark.parametrize("layout", DENSE)


@each_kind
@each_dtype
@each_layout
def test_every_dtype_and_layout(native_place, kind, dtype, layout):
    inputs = make_inputs((3, 33, 7, 7), 8, native_place.device, dtype, layout=layout, act="silu",
                         squeeze=kind)
    found = forward_backward(inputs)
    check(found, inputs)
    assert found["y"].stride() == found["dx"].stride() == inputs.x.stride()


@each_kind
def test_every_kind(place, kind):
    inputs = make_inputs((2, 9, 5, 7), 8, place.device, squeeze=kind)
    check(forward_backward(inputs), inputs)


@pytest.mark.parametrize("shape, hidden", SHAPES.values(), ids=SHAPES)
def test_every_shape(native_place, shape, hidden):
    inputs = make_inputs(shape, hidden, native_place.device, squeeze="concat")
    check(forward_backward(inputs), inputs)


@pytest.mark.parametrize("shape, hidden", LARGE.values(), ids=LARGE)
@each_layout
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_large_shapes(native_place, shape, hidden, layout, dtype):
    inputs = make_inputs(shape, hidden, native_place.device, dtype, layout=layout)
    found = call("squeeze_max", (inputs.x, *PLAIN, "max"))
    check(found | gate_gradient(inputs.dy, inputs.x, found["m"]), inputs)
    assert_as_plain(make_inputs(shape, hidden, native_place.device, torch.float64, layout=layout))


@pytest.mark.parametrize("layout", sorted(LAYOUTS.keys() - set(DENSE)))
def test_layouts_that_are_copied(native_place, layout):
    inputs = make_inputs((3, 20, 5, 7), 4, native_place.device, torch.float64, layout=layout,
                         squeeze="concat")
    assert_as_plain(inputs, "concat")


@each_kind
@pytest.mark.parametrize("act", ACTS)
def test_every_act_with_every_gate(native_place, kind, act):
    for gate in GATES:
        inputs = make_inputs((4, 20, 5, 7), 12, native_place.device, torch.float64, act=act,
                             gate=gate, squeeze=kind)
        assert_as_plain(inputs, kind)


@each_kind
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_float32_weights_beside_a_16_bit_map(native_place, kind, dtype):
    inputs = make_inputs((3, 20, 5, 7), 6, native_place.device, dtype, squeeze=kind,
                         weight_dtype=torch.float32)
    check(forward_backward(inputs), inputs)


def gate_gradient(dy, x, m) -> dict:
    """dg and ties"""
    return call("gate_gradient_max", (dy, x, None, *NO_NORM, m, None, "identity"))


# Equal values: each shape of map has its way of counting them.

MAPS = {"5x7": (2, 19, 5, 7), "1x1": (3, 6, 1, 1), "split": (1, 5, 40, 41), "7x7": (3, 33, 7, 7)}
each_map = pytest.mark.parametrize("shape", MAPS.values(), ids=MAPS)
FINITE = (
    lambda planes: planes[..., :1, :1].expand(planes.shape),
    lambda planes: planes.round(),
    lambda planes: (planes - 0.5).relu(),
    lambda planes: torch.zeros_like(planes).copysign(planes),
)
NOT_FINITE = (
    lambda planes: torch.full_like(planes, -torch.inf),
    lambda planes: planes.masked_fill(planes > 0, torch.inf),
    lambda planes: planes.masked_fill(planes > 1, torch.nan),
)


def with_equal_values(x, kinds=FINITE):
    """Each channel has planes of one of these kinds, or random ones."""
    x = x.clone()
    for number, values in enumerate(kinds):
        x[:, number :: len(kinds) + 1] = values(x[:, number :: len(kinds) + 1])
    return x


@each_kind
@each_map
@each_layout
def test_equal_maxima_share_the_gradient(native_place, kind, shape, layout):
    inputs = make_inputs(shape, 4, native_place.device, torch.float64, act="silu", squeeze=kind)
    assert_as_plain(inputs._replace(x=LAYOUTS[layout](with_equal_values(inputs.x))), kind)


BITS = {
    f"{name}-{dtype}": (MAPS[name], DTYPES[dtype])
    for names, dtypes in ((("5x7", "split"), ("fp32", "bf16")), (("1x1", "7x7"), ("fp64", "fp16")))
    for name in names
    for dtype in dtypes
}


@pytest.mark.parametrize("shape, dtype", BITS.values(), ids=BITS)
@each_layout
def test_maximum_and_its_gradient_are_those_of_amax(place, shape, dtype, layout):
    """To the bit: what the operator adds to dx, beside nothing else, is what amax passes."""
    x = with_equal_values(torch.randn(shape, device=place.device), FINITE + NOT_FINITE)
    x = LAYOUTS[layout](x.to(dtype))
    m = call("squeeze_max", (x, *PLAIN, "max"))["m"]
    assert_same(m, spatial_max(x).to(m.dtype))
    dy = torch.zeros_like(x)
    ties = gate_gradient(dy, x, m)["ties"]
    dm = ties * torch.randint(-8, 9, m.shape).to(m) / 4  # whose part is exact in every dtype
    dx, _ = ops.apply_backward(
        dy, x, None, *NO_NORM, torch.zeros_like(m), None, m, dm / ties, None, None, "identity",
        False,
    )  # fmt: skip
    exact = x.to(m.dtype).requires_grad_()
    (expected,) = torch.autograd.grad(spatial_max(exact), exact, dm)
    assert_same(dx, expected.to(dtype))
    exact = x.detach().requires_grad_()
    (alone,) = torch.autograd.grad(se_fused.squeeze(exact, "max"), exact, dm)
    assert_same(alone, expected.to(dtype))
    assert alone.stride() == x.stride()


def assert_same(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@each_layout
@pytest.mark.parametrize("planted", [torch.nan, torch.inf, -1.0], ids=["nan", "inf", "largest"])
def test_maximum_at_every_position(place, dtype, layout, planted):
    """Channel c has it at position c; all others are below zero, where padding would show."""
    for positions in (3, 33) if place.interpreted else range(1, 70):
        x = -2 - torch.rand(2, positions, positions, 1, device=place.device)
        x.diagonal(dim1=1, dim2=2).fill_(planted)
        mean, m = ops.reduce_forward(LAYOUTS[layout](x.to(dtype)), *PLAIN, "max")
        assert torch.equal(m.isnan(), torch.full_like(m, planted).isnan())
        assert torch.equal(m.nan_to_num(), torch.full_like(m, planted).nan_to_num())
        assert torch.equal(mean.isnan(), m.isnan())


@each_kind
@each_layout
@each_map
def test_not_a_number_is_where_plain_pytorch_has_it(native_place, kind, layout, shape):
    inputs = make_inputs(shape, 4, native_place.device, torch.float64, act="silu", squeeze=kind)
    x = inputs.x.clone()
    x[-1, 1, -1, -1] = torch.nan
    inputs = inputs._replace(x=LAYOUTS[layout](x))
    assert_as_plain(inputs, kind)
    x, found = inputs.x.requires_grad_(), []
    for z in (se_fused.squeeze(x, kind), SQUEEZES[kind](spatial_mean(x), spatial_max(x))):
        found.append((z, *torch.autograd.grad(z, x, torch.ones_like(z))))
    torch.testing.assert_close(*found, equal_nan=True)


@each_kind
def test_squeeze_alone(native_place, kind):
    for dtype in DTYPES.values():
        x = torch.randn(3, 20, 5, 7, device=native_place.device).to(dtype)
        z = se_fused.squeeze(x, kind)
        exact = SQUEEZES[kind](spatial_mean(x.double()), spatial_max(x.double()))
        assert z.dtype == torch.promote_types(dtype, torch.float32)
        torch.testing.assert_close(z.double(), exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_second_gradient_with_equal_maxima(native_place, kind):
    inputs = make_inputs((2, 4, 5, 3), 3, native_place.device, torch.float64, act="silu",
                         squeeze=kind)
    inputs = inputs._replace(x=inputs.x.round())
    tensors, found = leaves(inputs), []
    for y in (
        se_fused.squeeze_excite(*tensors, act="silu", squeeze=kind),
        plain_block(*tensors, "silu", "sigmoid", kind),
    ):
        first = torch.autograd.grad(y.pow(2).sum(), tensors, create_graph=True)
        penalty = sum(gradient.pow(2).sum() for gradient in first)
        found.append((*first, *torch.autograd.grad(penalty, tensors)))
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)


WANTED = [("x",), ("w1",), ("b1", "w2"), ("x", "b2"), ("x", "w1", "b1", "w2", "b2")]


@each_kind
@pytest.mark.parametrize("wanted", WANTED, ids="-".join)
def test_gradients_that_are_asked_for(native_place, kind, wanted):
    inputs = make_inputs((3, 20, 5, 7), 4, native_place.device, act="silu", squeeze=kind)
    tensors = wanted_leaves(inputs, wanted)
    y = se_fused.squeeze_excite(*tensors.values(), act="silu", squeeze=kind)
    names = backward(y, inputs, tensors, wanted).names
    ours = [name for name in names if name in ("reduce_backward", "apply_backward")]
    assert ours == ["reduce_backward", "apply_backward"][: 1 + ("x" in wanted)]
    check(gradients(tensors), inputs)


def test_no_samples(place):
    inputs = make_inputs((0, 20, 7, 7), 5, place.device, squeeze="concat")
    found = forward_backward(inputs)
    assert found["y"].shape == found["dx"].shape == (0, 20, 7, 7)
    assert all((found[name] == 0).all() for name in ("dw1", "db1", "dw2", "db2"))


def test_compiled_for_any_size():
    torch._dynamo.reset()
    graphs = []

    def count(graph, example_inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, example_inputs)

    @torch.compile(fullgraph=True, dynamic=True, backend=count)
    def function(x, *parameters):
        return se_fused.squeeze_excite(x * 1, *parameters, act="silu", squeeze="concat") + 0

    for size in ((3, 20, 5, 7), (5, 20, 4, 6)):
        inputs = make_inputs(size, 4, "cpu", act="silu", layout="channels-last", squeeze="concat")
        tensors = leaves(inputs)
        y = function(*tensors)
        y.backward(inputs.dy)
        names = ("dx", "dw1", "db1", "dw2", "db2")
        check({"y": y.detach()} | {n: t.grad for n, t in zip(names, tensors)}, inputs)
        assert tensors[0].grad.stride() == inputs.x.stride()
    assert len(graphs) == 1
