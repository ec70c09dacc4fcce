"""Calls of the operators on a block: their arguments, their results by name, and their fakes."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import pytest
import torch
from reference import Inputs, check, results
from rounding import acc_dtype
from shapes import SHAPES, make_inputs
from torch._subclasses.fake_tensor import FakeTensorMode

HIDDEN = dict(SHAPES.values())


def _make(shape, device="cpu", dtype=torch.float32, **options) -> Inputs:
    return make_inputs(shape, HIDDEN.get(shape, 3), device, dtype, **options)


class Operator(NamedTuple):
    """A choice of an operator's parts."""

    name: str
    arguments: Callable  # from inputs
    # The names of the results; several names for a result [K, N, C], None for one of no elements.
    results: tuple[str | tuple[str, ...] | None, ...]
    make: Callable = _make  # inputs from shape, device, dtype and layout
    check: Callable = check  # results, given inputs

    def call(self, arguments, namespace=torch.ops.se_fused) -> dict[str, torch.Tensor]:
        found = getattr(namespace, self.name)(*arguments)
        named = {}
        for name, result in zip(self.results, found if isinstance(found, tuple) else (found,)):
            if name is None:
                assert result.numel() == 0
            elif isinstance(name, str):
                named[name] = result
            else:
                assert len(result) == len(name)
                named |= zip(name, result)
        return named


NO_NORM = None, None, None
PLAIN = *NO_NORM, "identity"


def _found(inputs: Inputs, *names: str):
    """What the oracle has, in the accumulator's dtype."""
    found = results(inputs, acc_dtype(inputs.x.dtype))
    return tuple(found[name] for name in names)


OPERATORS = {
    "squeeze": Operator("reduce_forward", lambda i: (i.x, *PLAIN, "mean"), (("z",),)),
    "rescale": Operator(
        "apply_forward", lambda i: (i.x, None, *NO_NORM, *_found(i, "g"), "identity", False),
        ("y", None),
    ),
    "gate_gradient": Operator(
        "reduce_backward", lambda i: (i.dy, i.x, None, *NO_NORM, None, None, "identity"),
        (("dg",), None),
    ),
    "rescale_backward": Operator(
        "reduce_backward",
        lambda i: (i.dy, i.x, None, *NO_NORM, None, *_found(i, "g"), "identity"),
        (("dg",), "dy_times_g"),
    ),
    "squeeze_max": Operator("reduce_forward", lambda i: (i.x, *PLAIN, "max"), (("mean", "m"),)),
    "gate_gradient_max": Operator(
        "reduce_backward",
        lambda i: (i.dy, i.x, None, *NO_NORM, *_found(i, "m"), None, "identity"),
        (("dg", "ties"), None),
    ),
    "rescale_backward_max": Operator(
        "apply_backward",
        lambda i: (
            i.dy, i.x, None, *NO_NORM, *_found(i, "g", "mean", "m", "g"), None, None,
            "identity", False,
        ),
        ("dx_max", None),
    ),
    "squeeze_excite": Operator(
        "squeeze_excite", lambda i: (i.x, None, *i.block[1:], False), ("y", None, "z", "g")
    ),
    "squeeze_excite_backward": Operator(
        "squeeze_excite_backward",
        lambda i: (i.dy, i.x, None, *_found(i, "z", "g"), *i.block[1:], False),
        ("dx", None, "dp1", "h", "dp2"),
    ),
}  # fmt: skip


def call(operator: str, arguments, namespace=torch.ops.se_fused) -> dict[str, torch.Tensor]:
    return OPERATORS[operator].call(arguments, namespace)


def within_nan(t: torch.Tensor, offset: int):
    """The same dense tensor as a view into the middle of a buffer of NaN, or of set bits; and that
    buffer."""
    if not t.is_floating_point():
        buffer = t.new_full((t.numel() + 2 * offset,), 255)
        return buffer[offset:-offset].view(t.shape).copy_(t), buffer
    buffer = t.new_full((t.numel() + 2 * offset + 64,), float("nan"))
    return buffer.as_strided(t.size(), t.stride(), offset).copy_(t), buffer


SIGNATURES = {
    "contiguous": dict(shape=(2, 5, 3, 4)),
    "channels-last-bf16": dict(shape=(2, 5, 3, 4), layout="channels-last", dtype=torch.bfloat16),
    "sliced-fp64": dict(shape=(2, 5, 3, 4), layout="sliced-channels", dtype=torch.float64),
    "sliced-channels-last-fp16": dict(
        shape=(2, 5, 3, 4), layout="sliced-channels-last", dtype=torch.float16
    ),
    "channels-last-3d": dict(shape=(2, 5, 3, 2, 4), layout="channels-last"),
    "no-spatial-dims": dict(shape=(4, 5)),
    "no-samples": dict(shape=(0, 5, 3, 4)),
}


def check_fakes(operator, arguments, device, namespace, place):
    """Shapes, dtypes and layouts of fake results are those of the real ones."""
    if device == "fake-cpu" and place.backend == "triton" and not place.interpreted:
        pytest.skip("on a GPU, Triton takes no CPU tensors, fake ones neither; the rest runs")
    kind = device.removeprefix("fake-")
    with FakeTensorMode() if device != kind else nullcontext():
        fake = [
            torch.empty_strided(a.size(), a.stride(), dtype=a.dtype, device=kind)
            if isinstance(a, torch.Tensor)
            else a
            for a in arguments
        ]
        found = operator.call(fake, namespace)
    for name, result in operator.call(arguments).items():
        assert found[name].device.type == kind
        expected = (result.shape, result.dtype, result.stride())
        assert (found[name].shape, found[name].dtype, found[name].stride()) == expected, name
