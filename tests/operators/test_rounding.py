"""The rule by which results are judged: its formulas, right results, and faults that it refuses."""

import formulas
import pytest
import torch
from families import DRAWS, DTYPES, INDEPENDENT
from pairwise import each_pair
from passes_reference import NORM_ACTS
from planted_faults import FAULTS, SHAPES, is_found, stored
from reference import ACTS, GATES, SQUEEZES, block, check, error_scales, results
from rounding import LIMIT, Rounded, accuracy, assert_right, used
from shapes import make_inputs
from tail_reference import EPS, MOMENTUM, exactly, make_tail_inputs

EPS32 = torch.finfo(torch.float32).eps


@each_pair(act=[*ACTS], gate=[*GATES], squeeze=[*SQUEEZES])
def test_written_out_gradients_are_those_of_autograd(act, gate, squeeze):
    inputs = make_inputs(
        (3, 9, 5, 7), 6, "cpu", torch.float64, act=act, gate=gate, squeeze=squeeze
    )
    found = formulas.block(*inputs.block, inputs.dy, squeeze, eps=EPS32)
    for name, exact in results(inputs, torch.float64).items():
        torch.testing.assert_close(found[name].value.view(exact.shape), exact, msg=name)
    torch.testing.assert_close(
        block(*inputs.block, squeeze), results(inputs, torch.float64)["y"]
    )


@each_pair(
    norm_act=NORM_ACTS, training={"train": True, "eval": False},
    residual={"add": True, "no-add": False}, post_act=("relu", "identity"),
)  # fmt: skip
def test_written_out_batch_norm_is_that_of_autograd(norm_act, training, residual, post_act):
    inputs = make_tail_inputs((3, 9, 5, 7), 6, "cpu", torch.float64, norm_act=norm_act,
                              training=training, residual=residual, post_act=post_act)
    norm = formulas.Norm(inputs.weight, inputs.bias, inputs.running_mean, inputs.running_var,
                         training, MOMENTUM, EPS)
    found = formulas.block(
        inputs.x, inputs.w1, inputs.b1, inputs.w2, inputs.b2, inputs.act, inputs.gate, inputs.dy,
        eps=EPS32, norm=norm, norm_act=norm_act, residual=inputs.residual, relu=post_act == "relu",
    )
    for name, exact in exactly(inputs).items():
        torch.testing.assert_close(found[name].value.view(exact.shape), exact, msg=name)


OPERATIONS = {
    "sum of products": lambda a, b: (a * b).sum(1),
    "product of matrices": lambda a, b: a @ b.t(),
    "mean of a difference": lambda a, b: (a - b).mean(1),
    "smooth function": lambda a, b: _tanh(a + b),
}


def _tanh(p):
    return p.apply(torch.tanh, EPS32) if isinstance(p, Rounded) else torch.tanh(p)


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_scale_is_that_of_float32_s_errors(operation):
    """Not below them, and not so far above that a fault could hide."""
    a, b = (torch.randn(40, 30) + 1 for _ in range(2))
    rounded = operation(Rounded(a.double()), Rounded(b.double()))
    exact = operation(a.double(), b.double())
    assert torch.equal(rounded.value, exact)
    errors = (operation(a, b) - exact).abs() / (EPS32 * rounded.scale)
    assert 0.05 < errors.max() < LIMIT / 2


def test_scale_does_not_shrink_where_values_cancel():
    a = torch.tensor([[1e4, -1e4, 1.0]], dtype=torch.float64)
    assert Rounded(a).sum(1).scale.item() == 20001


def test_a_step_within_the_error_of_its_argument_counts_whole():
    near = Rounded(torch.tensor([1e-8, 1.0]).double(), torch.ones(2).double())
    scale = near.apply(lambda p: (p > 0).double(), EPS32).scale
    assert scale[0] * LIMIT * EPS32 >= 1 and scale[1] == 1


@pytest.mark.parametrize("shape, hidden", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_right_results_pass(shape, hidden, dtype):
    inputs = make_inputs(shape, hidden, "cpu", dtype)
    exact = results(inputs, torch.float64)
    check({name: stored(name, t, dtype) for name, t in exact.items()}, inputs)


@each_pair(fault=FAULTS, shape=SHAPES, dtype=DTYPES)
def test_fault_is_refused(fault, shape, dtype):
    assert is_found(fault, shape, dtype)


SPOILED = {
    "not a number": lambda y: y.index_fill(2, torch.tensor([4]), float("nan")),
    "one element": lambda y: y.index_fill(2, torch.tensor([4]), 0.0),
    "rounded to 16 bits": lambda y: y.bfloat16().float(),
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_spoiled_result_is_refused(spoil):
    inputs = make_inputs((2, 3, 5, 7), 2, "cpu")
    y = results(inputs, torch.float64)["y"].float()
    check({"y": y}, inputs)
    with pytest.raises(AssertionError, match="y: error"):
        check({"y": spoil(y)}, inputs)


def test_wrong_shape_is_refused():
    inputs = make_inputs((2, 3, 5, 7), 2, "cpu")
    with pytest.raises(AssertionError, match="z: shape"):
        check({"z": results(inputs, torch.float32)["z"][:1]}, inputs)


def test_reference_that_is_not_finite_judges_nothing():
    with pytest.raises(AssertionError, match="z: no finite reference"):
        nan = torch.full((2,), torch.nan).double()
        assert_right("z", torch.zeros(2), nan, torch.ones(2).double(), torch.float32)


def test_float32_arithmetic_is_refused_in_float64():
    inputs = make_inputs((2, 3, 5, 7), 2, "cpu", torch.float64)
    narrow = results(inputs, torch.float32)["dp2"].double()
    exact = results(inputs, torch.float64)["dp2"]
    assert used(narrow, exact, error_scales(inputs)["dp2"], torch.float64) > 1e4


# Exactness beside plain PyTorch's in the same arithmetic, over many draws: a single one may come
# out closer by chance, where few values are summed.
@pytest.mark.parametrize("draws", DRAWS, ids=lambda draws: draws.__name__)
@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
def test_as_exact_as_plain_pytorch(place, draws, layout):
    pooled = {}
    for number in range(5 if place.interpreted else 20):
        for label, draw in draws(number, torch.float32, layout, place.device):
            for name in INDEPENDENT & draw.found.keys() if draw.eager else ():
                judged = draw.found[name], draw.eager[name], draw.exact[name], draw.scales[name]
                pooled.setdefault((label, name), []).append(judged)
    ratios = {key: accuracy(of) for key, of in pooled.items()}
    assert max(ratios.values()) < 1.5, max(ratios.items(), key=lambda item: item[1])
    assert max(ratios.values()) > 0.5


def test_less_exact_arithmetic_is_seen():
    """Sums in one run, as no kernel may make them."""
    x, total = torch.rand(100, 3000), torch.zeros(100)
    for column in x.unbind(1):
        total += column
    scale = Rounded(x.double()).sum(1).scale
    assert accuracy([(total, x.sum(1), x.double().sum(1), scale)]) > 3
