"""What lies between the passes: on every backend, float64 against
autograd through a map, float32 against float64."""

from typing import NamedTuple

import formulas
import pytest
import torch
from block_operators import Operator, check_fakes
from formulas import ACTS, GATES
from pairwise import each_pair
from rounding import assert_right
from torch import Tensor

from se_fused import ops
from se_fused.backends import reference

pytestmark = pytest.mark.usefixtures("poisoned_allocations")

POSITIONS = 6
SIZES = {  # samples, channels, hidden width
    "odd": (3, 19, 5),
    "one-channel": (2, 1, 1),
    "one-sample": (1, 40, 16),
    "many-samples": (37, 24, 3),
    "wide": (16, 264, 65),
}
BLOCKS = {"no-norm": (False, "identity"), "norm": (True, "identity"), "norm-silu": (True, "silu")}
RESULTS = {
    "merge_moments": ("center", "var"),
    "excite": ("z", "p1", "g"),
    "excite_backward": ("dp1", "h", "dp2", "grad_mean", "grad_shift", "grad_scale"),
}

each_operator = pytest.mark.parametrize("operator", RESULTS)
each_block = pytest.mark.parametrize("norm, norm_act", BLOCKS.values(), ids=BLOCKS)


class Case(NamedTuple):
    """The arguments of each operator, and what each must return, by its name."""

    arguments: dict[str, tuple]
    exact: dict[str, Tensor]


def make_case(size, norm=True, norm_act="identity", act="relu", gate="sigmoid", biases=True,
              shape=lambda w: w, device="cpu") -> Case:
    """In float64; the exact results by autograd through a map [N, C, M] (not h and var)."""
    samples, channels, hidden = size

    def draw(*size, scale=1.0):
        return (torch.randn(size, dtype=torch.float64) * scale).to(device).requires_grad_()

    x = draw(samples, channels, POSITIONS) + draw(samples, channels, 1)
    dy = draw(samples, channels, POSITIONS).detach()
    center = draw(channels).detach() if norm else None
    scale, shift = (draw(channels), draw(channels)) if norm else (None, None)
    w1, w2 = draw(hidden, channels, scale=channels**-0.5), draw(channels, hidden)
    b1, b2 = (draw(hidden), draw(channels)) if biases else (None, None)
    centered, u = x, x
    if norm:
        centered = x - center[:, None]
        u = centered * scale[:, None] + shift[:, None]
    v = ACTS[norm_act](u)
    z = v.mean(2)
    p1 = torch.nn.functional.linear(z, w1, b1)
    h = ACTS[act](p1)
    p2 = torch.nn.functional.linear(h, w2, b2)
    g = GATES[gate](p2)
    sources = {"dp1": p1, "dp2": p2, "dz": z}
    if norm:
        sources |= {"grad_shift": shift, "grad_scale": scale}
    found = torch.autograd.grad((v * g[:, :, None] * dy).sum(), sources.values(), retain_graph=True)
    squeezed = norm_act != "identity" or not norm  # z is given
    exact = dict(zip(sources, found)) | {"p1": p1, "g": g, "h": h}
    exact["z"] = z.new_empty(0) if squeezed else z
    exact["grad_mean"] = exact.pop("dz") / POSITIONS
    for name in ("grad_shift", "grad_scale"):
        exact.setdefault(name, z.new_empty(0))
    mean = x.mean(2)
    exact |= {"center": x.mean((0, 2)), "var": x.var((0, 2), correction=0)}

    [slope] = torch.autograd.grad(v.sum(), u)
    terms = (dy * slope, dy * slope * centered) if norm else (dy * x,)
    if norm_act != "identity":
        terms += (dy * v, slope, slope * centered)
    planes, own_norm = (z, (None,) * 3) if squeezed else (mean, (center, scale, shift))
    sums = torch.stack([term.sum(2) for term in terms])
    weights = shape(w1), b1, shape(w2), b2
    arguments = {
        "merge_moments": (
            torch.stack([mean, (x - mean[:, :, None]).square().sum(2)]), POSITIONS
        ),
        "excite": (planes, *own_norm, *weights, act, gate),
        "excite_backward": (
            sums, planes, center, scale, shift, p1, g, *weights[::2], act, gate, POSITIONS
        ),
    }  # fmt: skip
    detached = {name: tuple(map(_detached, row)) for name, row in arguments.items()}
    return Case(detached, {name: t.detach() for name, t in exact.items()})


def _detached(argument):
    return argument.detach() if isinstance(argument, Tensor) else argument


def in_dtype(arguments, dtype):
    return tuple(a.to(dtype) if isinstance(a, Tensor) else a for a in arguments)


def call(operator: str, arguments) -> dict[str, Tensor]:
    return Operator(operator, None, RESULTS[operator]).call(arguments)


def check_float64(case: Case, operator: str):
    for name, found in call(operator, case.arguments[operator]).items():
        torch.testing.assert_close(found, case.exact[name], rtol=1e-11, atol=1e-12, msg=name)


def check_float32(case: Case, operator: str, weights=torch.float32):
    narrow = in_dtype(case.arguments[operator], torch.float32)
    with torch.no_grad():
        rounded = tuple(
            a.to(weights).float() if isinstance(a, Tensor) and name in ("w1", "b1", "w2", "b2")
            else a for name, a in zip(ARGUMENT_NAMES[operator], narrow)
        )
        exact = call(operator, in_dtype(rounded, torch.float64))
        scales = error_scales(operator, rounded)
    given = tuple(
        a.to(weights) if isinstance(a, Tensor) and name in ("w1", "b1", "w2", "b2") else a
        for name, a in zip(ARGUMENT_NAMES[operator], rounded)
    )
    for name, found in call(operator, given).items():
        assert found.dtype == torch.float32, name
        if found.numel():
            assert_right(name, found, exact[name], scales[name], torch.float32)


def error_scales(operator: str, arguments) -> dict[str, Tensor]:
    eps = torch.finfo(torch.float32).eps
    named = {
        name: formulas.exact(a) if isinstance(a, Tensor) else a
        for name, a in zip(ARGUMENT_NAMES[operator], arguments)
    }
    found = _ROUNDED[operator](eps=eps, **named)
    return {name: rounded.scale for name, rounded in found.items()}


def _merge_moments(moments, positions, eps):
    mean, m2 = moments[0], moments[1]
    center = mean.mean(0)
    apart = mean - center
    squares = m2 + apart * apart * positions
    return {"center": center, "var": squares.mean(0) * (1 / positions)}


def _excite(mean, center, scale, shift, w1, b1, w2, b2, act, gate, eps):
    z = mean if center is None else (mean - center) * scale + shift
    return {"z": z, **formulas.excite(z, w1, b1, w2, b2, act, gate, eps)}


def _excite_backward(
    sums, mean, center, scale, shift, p1, g, w1, w2, act, gate, positions, eps
):
    is_identity = sums.value.shape[0] == 2
    if center is None:
        dg = sums[0]
    else:
        dg = sums[0] * shift + sums[1] * scale if is_identity else sums[2]
    found = formulas.excitation_gradient(dg, p1, g, w1, w2, act, gate, eps)
    found |= {"h": formulas.act(act, p1, eps), "grad_mean": found["dz"] * (1 / positions)}
    if center is None:
        return found
    dz, grad_mean = found["dz"], found["grad_mean"]
    if is_identity:
        by_squeeze = dz, dz * (mean - center)
    else:
        by_squeeze = sums[3] * grad_mean, sums[4] * grad_mean
    return found | {
        "grad_shift": (by_squeeze[0] + g * sums[0]).sum(0),
        "grad_scale": (by_squeeze[1] + g * sums[1]).sum(0),
    }


_ROUNDED = {
    "merge_moments": _merge_moments,
    "excite": _excite,
    "excite_backward": _excite_backward,
}


ARGUMENT_NAMES = {
    "merge_moments": ("moments", "positions"),
    "excite": (
        "mean", "center", "scale", "shift", "w1", "b1", "w2", "b2", "act", "gate"
    ),
    "excite_backward": (
        "sums", "mean", "center", "scale", "shift", "p1", "g", "w1", "w2", "act", "gate",
        "positions",
    ),
}  # fmt: skip


@each_pair(operator=RESULTS.keys(), size=SIZES, block=BLOCKS)
def test_float64_is_what_autograd_finds(place, operator, size, block):
    check_float64(make_case(size, *block, device=place.device), operator)


@each_pair(operator=RESULTS.keys(), size=SIZES, block=BLOCKS)
def test_float32(place, operator, size, block):
    check_float32(make_case(size, *block, device=place.device), operator)


@each_pair(operator=("excite", "excite_backward"), act=[*ACTS], gate=[*GATES])
def test_every_activation(place, operator, act, gate):
    check_float64(make_case((3, 19, 5), act=act, gate=gate, device=place.device), operator)


@pytest.mark.parametrize("operator", ["excite", "excite_backward"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_16_bit_weights(place, operator, dtype):
    check_float32(make_case((3, 19, 5), device=place.device), operator, dtype)


@pytest.mark.parametrize("operator", ["excite", "excite_backward"])
def test_weights_of_convolutions_in_any_stride_and_no_biases(place, operator):
    def strided(w):
        return w.t().contiguous().t()[..., None, None]

    case = make_case((3, 19, 5), biases=False, shape=strided, device=place.device)
    check_float64(case, operator)


def test_moments_of_means_much_larger_than_their_differences(place):
    mean = 1e4 + torch.randn(7, 5, dtype=torch.float64)
    m2 = torch.rand(7, 5, dtype=torch.float64)
    arguments = torch.stack([mean, m2]).float().to(place.device), POSITIONS
    exact = reference.merge_moments(*in_dtype(arguments, torch.float64))
    found = torch.ops.se_fused.merge_moments(*arguments)
    torch.testing.assert_close(found[0].double(), exact[0], rtol=1e-7, atol=0)
    torch.testing.assert_close(found[1].double(), exact[1], rtol=1e-3, atol=0)


@each_operator
@pytest.mark.parametrize("device", ["meta", "fake-cpu"])
@pytest.mark.parametrize("namespace", [torch.ops.se_fused, ops], ids=["operator", "as-functional"])
@each_block
def test_fake_results_agree_with_real_ones(place, operator, device, namespace, norm, norm_act):
    arguments = make_case((3, 19, 5), norm, norm_act, device=place.device).arguments[operator]
    check_fakes(Operator(operator, None, RESULTS[operator]), arguments, device, namespace, place)


@each_operator
@each_block
def test_opcheck(place, operator, norm, norm_act):
    arguments = make_case((3, 19, 5), norm, norm_act, device=place.device).arguments[operator]
    # opcheck compares two calls exactly; NaN-filled scratch would be compared as well.
    torch.use_deterministic_algorithms(False)
    torch.library.opcheck(getattr(torch.ops.se_fused, operator).default, arguments)
