"""The passes of a block with BatchNorm, residual and ReLU: values on every backend, the bits of
the mask, layouts of results, fakes, opcheck."""

import pytest
import torch
from block_operators import SIGNATURES, check_fakes, within_nan
from formulas import flat
from pairwise import each_pair
from passes_reference import (
    LIKE_X,
    NORM_ACTS,
    OPERATORS,
    NormInputs,
    call,
    check,
    make_norm_inputs,
    pack,
    unpack,
)
from rounding import assert_right
from shapes import DENSE, DTYPES, LAYOUT_CASES, LAYOUTS
from shapes import SHAPES as BLOCK_SHAPES

from se_fused import ops

pytestmark = pytest.mark.usefixtures("poisoned_allocations")

SHAPES = {name: shape for name, (shape, _) in BLOCK_SHAPES.items()} | {
    "5x3": (2, 20, 5, 3),
    "2x2": (3, 5, 2, 2),
    "whole-bytes-7x7": (2, 72, 7, 7),
    "one-position-one-channel": (2, 1, 1, 1),
    "longer-than-a-tile": (2, 5, 40, 41),
    "few-large-samples": (1, 67, 64, 48),
}
VARIANTS = {
    "training": {},
    "no-residual": dict(residual=False, add=False),
    "no-relu": dict(relu=False, masked=False),
    "neither": dict(residual=False, add=False, relu=False, masked=False),
    "eval": dict(train=False),
    "eval-no-residual": dict(train=False, residual=False, add=False),
    "no-norm": dict(norm=False),
    "no-norm-alone": dict(norm=False, residual=False, add=False, relu=False, masked=False),
    "maximum": dict(norm=False, maximum=True),
    "maximum-alone": dict(
        norm=False, maximum=True, mean=False, residual=False, add=False, relu=False, masked=False
    ),
}


def is_no_block(row) -> bool:
    """An activation comes with a norm."""
    return row["act"] != "identity" and not row["variant"].get("norm", True)


FP32_AND_BF16 = {name: DTYPES[name] for name in ("fp32", "bf16")}
OFFSETS = {"aligned": 64, "unaligned": 3}

each_operator = pytest.mark.parametrize("operator", OPERATORS)
fp32_and_bf16 = pytest.mark.parametrize("dtype", FP32_AND_BF16.values(), ids=FP32_AND_BF16)
each_dense_layout = pytest.mark.parametrize("layout", DENSE)
each_act = pytest.mark.parametrize("act", NORM_ACTS)


def each_shape(**factors):
    """Pairs with every shape, in the layouts that it has."""
    return each_pair(
        lambda row: row["layout"] == "channels-last" and len(row["shape"]) < 4,
        shape=SHAPES, layout=DENSE, **factors,
    )  # fmt: skip


# Each backend meets each pair: see test_block_operators.py.


def run_and_check(operator: str, inputs: NormInputs):
    arguments = OPERATORS[operator].arguments(inputs)
    tensors = [a for a in arguments if isinstance(a, torch.Tensor)]
    before = [t.clone() for t in tensors]
    found = call(operator, arguments)
    acc = torch.promote_types(inputs.x.dtype, torch.float32)
    storages = {t.untyped_storage().data_ptr() for t in tensors if t.numel()}
    for name, result in found.items():
        dtype = torch.uint8 if name == "mask" else inputs.x.dtype if name in LIKE_X else acc
        assert result.dtype == dtype, name
        assert result.untyped_storage().data_ptr() not in storages, f"{name} aliases an input"
    for tensor, copy in zip(tensors, before):
        assert torch.equal(tensor, copy), "an input was changed"
    check(found, inputs)
    return found


@each_shape(operator=OPERATORS.keys(), dtype=FP32_AND_BF16, act=("identity", "silu"))
def test_values_in_every_shape(place, operator, shape, layout, dtype, act):
    run_and_check(operator, make_norm_inputs(shape, place.device, dtype, layout=layout, act=act))


@pytest.mark.parametrize("operator", ["rescale", "gradient"])
@fp32_and_bf16
@each_dense_layout
def test_large_map_has_the_values_of_its_samples(native_place, operator, dtype, layout):
    """Which are too small to be stored past the caches (csrc/cpu/memory.h)."""
    samples = 4
    inputs = make_norm_inputs((samples, 16, 480, 384), native_place.device, dtype, layout=layout)
    arguments = OPERATORS[operator].arguments
    whole = call(operator, arguments(inputs))
    for n in range(samples):
        per_sample = ("x", "residual", "dy", "g", "grad_mean", "mask")
        own = {name: getattr(inputs, name).chunk(samples)[n] for name in per_sample}
        for name, found in call(operator, arguments(inputs._replace(**own))).items():
            assert torch.equal(found, whole[name].chunk(samples)[n]), name


@each_pair(operator=OPERATORS.keys(), dtype=DTYPES, case=LAYOUT_CASES)
def test_values_in_every_layout(place, operator, dtype, case):
    layout, shape = case
    inputs = make_norm_inputs(shape, place.device, dtype, layout=layout, act="hardswish")
    found = run_and_check(operator, inputs)
    for name in set(LIKE_X) & found.keys():
        dense = "channels-last" if "channels-last" in layout else "contiguous"
        assert found[name].stride() == LAYOUTS[dense](torch.empty(shape)).stride()


@each_pair(
    is_no_block, operator=OPERATORS.keys(), act=NORM_ACTS, variant=VARIANTS, layout=DENSE
)
def test_every_variant(place, operator, act, variant, layout):
    inputs = make_norm_inputs((2, 19, 5, 7), place.device, layout=layout, act=act, **variant)
    run_and_check(operator, inputs)


@each_pair(
    operator=("rescale", "sums", "gradient"), x_layout=DENSE,
    other_layout=("contiguous", "channels-last", "strided", "expanded"),
)  # fmt: skip
def test_other_map_in_another_layout(place, operator, x_layout, other_layout):
    inputs = make_norm_inputs((3, 20, 5, 7), place.device, layout=x_layout)

    def laid_out(t):
        if other_layout == "expanded":
            return t[:1].expand(t.shape)
        return LAYOUTS[other_layout](t.contiguous())

    found = run_and_check(
        operator,
        inputs._replace(dy=laid_out(inputs.dy), residual=laid_out(inputs.residual)),
    )
    for name in set(LIKE_X) & found.keys():
        assert found[name].stride() == inputs.x.stride()


@each_shape(dtype=FP32_AND_BF16)
def test_moments_far_from_zero(place, dtype, shape, layout):
    """A mean of 1e4 standard deviations. Float32 rounds such data by 1e-3 of one."""
    x = (torch.randn(shape, dtype=torch.float64) + 1e4).to(dtype).to(place.device)
    inputs = make_norm_inputs(shape, place.device, dtype, masked=False)
    run_and_check("moments", inputs._replace(x=LAYOUTS[layout](x)))


def test_moments_beside_one_outlier(place):
    """The first element of each plane is no guess of its mean."""
    inputs = make_norm_inputs((2, 5, 40, 41), place.device)
    x = torch.randn(inputs.x.shape, device=place.device) + 1e4
    x[..., 0, 0] = 0
    run_and_check("moments", inputs._replace(x=x))


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
    mask = run_and_check("rescale", inputs)["mask"]
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
    for operator in ("sums", "gradient"):
        arguments = (OPERATORS[operator].arguments(i) for i in (inputs, dropped))
        expected, found = (call(operator, a) for a in arguments)
        assert all(torch.equal(found[name], expected[name]) for name in expected)


EMPTY = {
    "no-samples": (0, 20, 7, 7),
    "no-channels": (3, 0, 7, 7),
    "no-positions": (3, 20, 0, 7),
    "no-samples-no-spatial-dims": (0, 20),
}


@each_act
@pytest.mark.parametrize("shape", EMPTY.values(), ids=EMPTY)
def test_empty_maps(place, shape, act):
    """The mean of no positions is NaN, their sum 0."""
    inputs = make_norm_inputs(shape, place.device, act=act)
    found = {}
    for operator in OPERATORS.values():
        found |= operator.call(operator.arguments(inputs))
    assert all(found[name].shape == shape for name in LIKE_X)
    assert all(found[name].shape == shape[:2] for name in ("mean", "m2", "z"))
    assert found["mask"].shape == inputs.mask.shape
    assert found["sums"].shape == (2 if act == "identity" else 5, *shape[:2])
    assert found["mean"].isnan().all() and found["z"].isnan().all()
    assert not found["m2"].any() and not found["sums"].any()


@each_pair(operator=OPERATORS.keys(), dtype=DTYPES, layout=DENSE, offset=OFFSETS)
def test_nothing_around_the_inputs_is_read_or_written(place, operator, dtype, layout, offset):
    inputs = make_norm_inputs((2, 17, 7, 7), place.device, dtype, layout=layout, act="silu")
    guarded, buffers = [], []
    for argument in OPERATORS[operator].arguments(inputs):
        if isinstance(argument, torch.Tensor):
            argument, buffer = guard(argument, offset)
            buffers.append(buffer)
        guarded.append(argument)
    before = [buffer.clone() for buffer in buffers]
    check(call(operator, guarded), inputs)
    for buffer, copy in zip(buffers, before):
        assert torch.equal(buffer.view(torch.uint8), copy.view(torch.uint8))


def guard(t: torch.Tensor, offset: int):
    if t.is_floating_point():
        return within_nan(t, offset)
    buffer = t.new_full((t.numel() + 2 * offset,), 255)
    return buffer[offset:-offset].view(t.shape).copy_(t), buffer


@each_operator
@each_dense_layout
@pytest.mark.parametrize("shape", [(5, 33, 7, 7), (2, 9, 40, 41)], ids=["7x7", "split"])
def test_results_repeat_bitwise(place, operator, layout, shape):
    inputs = make_norm_inputs(shape, place.device, layout=layout, act="silu")
    arguments = OPERATORS[operator].arguments(inputs)
    first = call(operator, arguments)
    for _ in range(3):
        for name, result in call(operator, arguments).items():
            assert torch.equal(result, first[name]), name


@each_pair(
    operator=OPERATORS.keys(), signature=SIGNATURES, device=("meta", "fake-cuda", "fake-cpu"),
    namespace={"operator": torch.ops.se_fused, "as-functional": ops},
    variant={name: VARIANTS[name] for name in ("training", "neither")},
)  # fmt: skip
def test_fake_results_agree_with_real_ones(place, operator, signature, device, namespace, variant):
    act = "silu" if variant else "identity"
    inputs = make_norm_inputs(device=place.device, act=act, **signature, **variant)
    arguments = OPERATORS[operator].arguments(inputs)
    check_fakes(call, operator, arguments, device, namespace, place)


@each_pair(
    operator=OPERATORS.keys(), layout=DENSE, variant=("training", "neither", "no-norm", "maximum")
)
def test_opcheck(place, operator, layout, variant):
    inputs = make_norm_inputs((2, 5, 3, 4), place.device, layout=layout, **VARIANTS[variant])
    # opcheck compares two calls exactly; NaN-filled scratch would be compared as well.
    torch.use_deterministic_algorithms(False)
    overload = getattr(torch.ops.se_fused, OPERATORS[operator].name).default
    torch.library.opcheck(overload, OPERATORS[operator].arguments(inputs))


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
