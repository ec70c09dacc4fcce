"""The parts that a norm, a residual and a ReLU bring: their choices, the moments, the bits of the
mask, NaN, empty maps."""

import pytest
import torch
from formulas import flat
from operator_cases import VARIANTS, each_shape, run_and_check
from pairwise import each_pair
from passes_reference import NORM_ACTS, OPERATORS, make_norm_inputs, pack, unpack
from rounding import assert_right
from shapes import DENSE, DTYPES, LAYOUTS

from se_fused import ops

pytestmark = pytest.mark.usefixtures("poisoned_allocations")

FP32_AND_BF16 = {name: DTYPES[name] for name in ("fp32", "bf16")}

fp32_and_bf16 = pytest.mark.parametrize("dtype", FP32_AND_BF16.values(), ids=FP32_AND_BF16)
each_dense_layout = pytest.mark.parametrize("layout", DENSE)


def is_no_block(row) -> bool:
    """An activation comes with a norm."""
    return row["act"] != "identity" and not row["variant"].get("norm", True)


@each_pair(is_no_block, operator=OPERATORS, act=NORM_ACTS, variant=VARIANTS, layout=DENSE)
def test_every_variant(place, operator, act, variant, layout):
    inputs = make_norm_inputs((2, 19, 5, 7), place.device, layout=layout, act=act, **variant)
    run_and_check(operator, inputs)


@each_shape(dtype=FP32_AND_BF16)
def test_moments_far_from_zero(place, dtype, shape, layout):
    """A mean of 1e4 standard deviations. Float32 rounds such data by 1e-3 of one."""
    x = (torch.randn(shape, dtype=torch.float64) + 1e4).to(dtype).to(place.device)
    inputs = make_norm_inputs(shape, place.device, dtype, masked=False)
    run_and_check(OPERATORS["moments"], inputs._replace(x=LAYOUTS[layout](x)))


def test_moments_beside_one_outlier(place):
    """The first element of each plane is no guess of its mean."""
    inputs = make_norm_inputs((2, 5, 40, 41), place.device)
    x = torch.randn(inputs.x.shape, device=place.device) + 1e4
    x[..., 0, 0] = 0
    run_and_check(OPERATORS["moments"], inputs._replace(x=x))


@each_shape(dtype=FP32_AND_BF16, residual={"residual": True, "no-residual": False})
def test_bits_of_the_mask(place, shape, dtype, layout, residual):
    """Exactly those of p > 0: p is well away from 0."""
    keep = torch.rand(shape) < 0.5
    x = torch.where(keep, 1.0, -1.0) * (0.5 + torch.rand(shape))
    inputs = make_norm_inputs(
        shape, place.device, dtype, layout=layout, norm=False, residual=residual
    )
    x = LAYOUTS[layout](x.to(place.device, dtype))
    inputs = inputs._replace(x=x, residual=x if residual else None)
    mask = run_and_check(OPERATORS["rescale"], inputs)["mask"]
    assert torch.equal(mask, pack(keep.to(place.device), inputs.x))


@each_dense_layout
@fp32_and_bf16
@pytest.mark.parametrize("act", ["identity", "silu"])
def test_nan_stays_nan_and_passes(place, layout, dtype, act):
    inputs = make_norm_inputs((2, 11, 5, 7), place.device, dtype, layout=layout, act=act)
    at = torch.rand(inputs.x.shape, device=place.device) < 0.3
    nan = inputs.x.clone()
    nan[at] = torch.nan
    for changed in (inputs._replace(x=nan), inputs._replace(residual=nan)):
        y, mask = ops.apply_forward(*OPERATORS["rescale"].arguments(changed))
        assert torch.equal(y.isnan(), at)
        assert unpack(mask, nan)[at].all()


@each_dense_layout
@fp32_and_bf16
def test_gradient_that_does_not_pass_is_dropped(place, layout, dtype):
    """Even where it is not finite."""
    inputs = make_norm_inputs((2, 11, 5, 7), place.device, dtype, layout=layout, act="silu")
    keep = unpack(inputs.mask, inputs.x)
    dropped = inputs._replace(dy=inputs.dy.masked_fill(~keep, torch.inf))
    for operator in (OPERATORS["sums"], OPERATORS["gradient"]):
        expected, found = (operator.call(operator.arguments(i)) for i in (inputs, dropped))
        assert all(torch.equal(found[name], expected[name]) for name in expected)


EMPTY = {
    "no-samples": (0, 20, 7, 7),
    "no-channels": (3, 0, 7, 7),
    "no-positions": (3, 20, 0, 7),
    "no-samples-no-spatial-dims": (0, 20),
}


@pytest.mark.parametrize("act", NORM_ACTS)
@pytest.mark.parametrize("shape", EMPTY.values(), ids=EMPTY)
def test_empty_maps(place, shape, act):
    """The mean of no positions is NaN, their sum 0."""
    inputs = make_norm_inputs(shape, place.device, act=act)
    found = {}
    for operator in OPERATORS.values():
        found |= operator.call(operator.arguments(inputs))
    assert all(found[name].shape == shape for name in ("y", "dx", "dr"))
    assert all(found[name].shape == shape[:2] for name in ("mean", "m2", "z"))
    assert found["mask"].shape == inputs.mask.shape
    assert found["sums"].shape == (2 if act == "identity" else 5, *shape[:2])
    assert found["mean"].isnan().all() and found["z"].isnan().all()
    assert not found["m2"].any() and not found["sums"].any()


def test_statistics_from_moments_of_samples(place):
    """Merged over samples as a BatchNorm does, they are those of the batch."""
    inputs = make_norm_inputs((4, 9, 7, 7), place.device)
    mean, var = ops.merge_moments(ops.reduce_forward(*OPERATORS["moments"].arguments(inputs)), 49)
    x = inputs.x.double().transpose(0, 1).flatten(1)
    planes = flat(inputs.x)
    center = planes.mean(2).mean(0)
    apart = planes - center[:, None]
    scales = center.scale, (apart * apart).mean(2).mean(0).scale
    assert_right("mean", mean, x.mean(1), scales[0], torch.float32)
    assert_right("var", var, x.var(1, correction=0), scales[1], torch.float32)


@each_pair(
    variant={name: VARIANTS[name] for name in ("no-norm", "no-norm-alone", "maximum-alone")},
    layout=DENSE, dtype=FP32_AND_BF16,
)  # fmt: skip
def test_absent_parts_are_no_factors(place, variant, layout, dtype):
    """A gate of Inf times a shift that is not there would be NaN."""
    inputs = make_norm_inputs((2, 11, 5, 7), place.device, dtype, layout=layout, **variant)
    inputs = inputs._replace(grad_mean=None, g=inputs.g.masked_fill(inputs.g > 0.5, torch.inf))
    infinite = inputs.g.isinf()[..., None, None].expand(inputs.x.shape)
    found = {}
    for name in ("rescale", "gradient"):
        found |= OPERATORS[name].call(OPERATORS[name].arguments(inputs))
    zero = inputs.x == 0 if inputs.maximum is not None else torch.zeros_like(infinite)
    assert torch.equal(found["y"].isnan(), zero & infinite), "0 times Inf, and nothing else"
    dropped = torch.zeros_like(infinite)
    if inputs.mask is not None:
        dropped = ~unpack(inputs.mask, inputs.x)
    assert torch.equal(found["dx"].isnan(), dropped & infinite)


@each_dense_layout
@fp32_and_bf16
def test_infinite_gate_of_a_norm(place, layout, dtype):
    """The gate is a factor of u, which is 0 nowhere but at the center, not of a shift of 0."""
    x = torch.randint(-4, 5, (2, 11, 5, 7), device=place.device)
    g = torch.full((2, 11), 0.5, device=place.device)
    center, scale = torch.ones(11, device=place.device), torch.full((11,), 2.0, device=place.device)
    for infinite in (0, 7):  # with none, the gates may be in the scale
        g[1, :infinite] = torch.inf
        y, _ = ops.apply_forward(
            LAYOUTS[layout](x.to(dtype)), None, center, scale, 0 * scale, g, "identity", False
        )
        expected = (x - 1.0) * 2 * g[..., None, None]
        assert expected.isnan().any() == bool(infinite)
        torch.testing.assert_close(y, expected.to(dtype), rtol=0, atol=0, equal_nan=True)
