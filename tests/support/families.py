"""Families of random cases, for statistics over many draws: how exact results are, and how often
the rule of ``rounding.py`` alarms. Shapes, functions and variants change from draw to draw."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import block_operators
import passes_reference
import reference
import tail_functions
import tail_reference
import torch
from block_functions import forward_backward
from formulas import ACTS, GATES
from rounding import acc_dtype
from shapes import DENSE, DTYPES, LARGE, SHAPES, make_inputs
from torch import Tensor

# Results whose elements err by themselves, so that a mean square over them says something. In
# gradients of weights few errors of hidden units stand in all elements.
INDEPENDENT = {"z", "mean", "m2", "dg", "sums", "y", "dx", "dy_times_g", "dx_max"}

SMALL = {name: case for name, case in SHAPES.items() if name != "no-spatial-dims"}
WITH_LAYOUT = [case for case in SMALL.values() if len(case[0]) > 3]


class Draw(NamedTuple):
    """Results by name, beside those of float64 and of plain PyTorch in the dtype of the arithmetic.

    eager: None where means of planes, far from 0, are rounded first, which plain PyTorch does not.
    """

    found: dict[str, Tensor]
    eager: dict[str, Tensor] | None
    exact: dict[str, Tensor]
    scales: dict[str, Tensor]
    dtype: torch.dtype  # of the arithmetic


def shape_of(number: int, layout: str):
    """Each fiftieth draw has a map on which long sums are made."""
    if number % 50 == 49:
        large = list(LARGE.values())
        return large[number // 50 % len(large)]
    shapes = list(SMALL.values()) if layout == "contiguous" else WITH_LAYOUT
    return shapes[number % len(shapes)]


def turn(values, number: int):
    return list(values)[number % len(values)]


def _block(number, dtype, layout, device):
    shape, hidden = shape_of(number, layout)
    inputs = make_inputs(
        shape, hidden, device, dtype, layout=layout, act=turn(ACTS, number // 3),
        gate=turn(GATES, number // 2), spread=turn((1.0, 4.0), number // 7),
    )  # fmt: skip
    eager = reference.results(inputs, acc_dtype(dtype))
    return inputs, eager, reference.results(inputs, torch.float64), reference.error_scales(inputs)


def block_operator_draws(number, dtype, layout, device) -> Iterator[tuple[str, Draw]]:
    inputs, *judged = _block(number, dtype, layout, device)
    for name, operator in block_operators.OPERATORS.items():
        found = operator.call(operator.arguments(inputs))
        yield name, Draw(found, *judged, acc_dtype(dtype))


def block_function_draws(number, dtype, layout, device) -> Iterator[tuple[str, Draw]]:
    inputs, *judged = _block(number, dtype, layout, device)
    yield "squeeze_excite()", Draw(forward_backward(inputs), *judged, acc_dtype(dtype))


def batch_norm_pass_draws(number, dtype, layout, device) -> Iterator[tuple[str, Draw]]:
    shape, _ = shape_of(number, layout)
    variants = ({}, dict(residual=False, add=False), dict(relu=False, masked=False),
                dict(train=False), dict(norm=False))  # fmt: skip
    variant = turn(variants, number // 2)
    act = turn(passes_reference.NORM_ACTS, number // 3) if variant.get("norm", True) else "identity"
    inputs = passes_reference.make_norm_inputs(
        shape, device, dtype, layout=layout, act=act, **variant
    )
    judged = (
        passes_reference.results(inputs, acc_dtype(dtype)),
        passes_reference.results(inputs, torch.float64),
        passes_reference.error_scales(inputs),
    )
    for name, operator in passes_reference.OPERATORS.items():
        found = operator.call(operator.arguments(inputs))
        found.pop("mask", None)
        yield f"{name} with norm", Draw(found, *judged, acc_dtype(dtype))


def batch_norm_function_draws(number, dtype, layout, device) -> Iterator[tuple[str, Draw]]:
    shape, hidden = shape_of(number, layout)
    inputs = tail_reference.make_tail_inputs(
        shape, hidden, device, dtype, layout=layout, act=turn(ACTS, number // 3),
        norm_act=turn(passes_reference.NORM_ACTS, number // 2), training=number % 5 > 0,
        residual=number % 3 > 0, mean=100.0 if (far := number % 4 == 3) else 0.0,
    )  # fmt: skip
    eager, running = None, tail_reference.RUNNING
    if not far:
        plain = tail_reference.plain_written_out
        eager = tail_reference.results(inputs, acc_dtype(dtype), plain)
    yield "batch_norm_squeeze_excite()", Draw(
        {n: t for n, t in tail_functions.forward_backward(inputs).items() if n not in running},
        eager,
        tail_reference.exactly(inputs),
        tail_reference.error_scales(inputs),
        acc_dtype(dtype),
    )


DRAWS: tuple[Callable, ...] = (
    block_operator_draws,
    block_function_draws,
    batch_norm_pass_draws,
    batch_norm_function_draws,
)
FAMILIES = [(dtype, layout) for dtype in DTYPES for layout in DENSE]
