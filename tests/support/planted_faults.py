"""Faults that a kernel could have, in plain PyTorch, and whether ``rounding.py`` finds them."""

from collections.abc import Callable

import torch
from reference import Inputs, error_scales, results
from rounding import acc_dtype, used
from shapes import SHAPES as ALL_SHAPES
from shapes import make_inputs
from torch import Tensor

# With two positions at least: in a single one most of these are no faults.
SHAPES = {
    name: case for name, case in ALL_SHAPES.items() if torch.Size(case[0][2:]).numel() > 1
}
LANES = 16  # of the widest vectors, in float32


def _of_positions(inputs: Inputs, index) -> dict[str, Tensor]:
    """Results of the map with these of its positions, as sums over them."""
    x, dy = (t.flatten(2)[..., index] for t in (inputs.x, inputs.dy))
    return results(inputs._replace(x=x, dy=dy), torch.float64)


def _sums(inputs: Inputs, index) -> dict[str, Tensor]:
    found, positions = _of_positions(inputs, index), inputs.x.shape[2:].numel()
    return {"z": found["z"] * len(index) / positions, "dg": _gate_gradient(inputs, index)}


def _gate_gradient(inputs, index):
    x, dy = (t.double().flatten(2)[..., index] for t in (inputs.x, inputs.dy))
    return (x * dy).sum(2)


def _positions(inputs) -> list[int]:
    return list(range(inputs.x.shape[2:].numel()))


def element_dropped(inputs):
    return _sums(inputs, _positions(inputs)[:-1])


def element_dropped_in_one_plane(inputs):
    exact, found = results(inputs, torch.float64), _sums(inputs, _positions(inputs)[:-1])
    return {name: torch.cat([exact[name][:, :-1], t[:, -1:]], 1) for name, t in found.items()}


def element_counted_twice(inputs):
    return _sums(inputs, _positions(inputs) + [0])


def lane_lost_in_last_vector(inputs):
    positions = _positions(inputs)
    first = (len(positions) - 1) // LANES * LANES
    lost = (first + len(positions) - 1) // 2
    return _sums(inputs, positions[:lost] + positions[lost + 1 :])


def accumulated_in_bf16(inputs):
    """In float32 where the arithmetic is in float64."""
    narrow = torch.float32 if inputs.x.dtype == torch.float64 else torch.bfloat16
    totals = []
    for terms in (inputs.x, inputs.x.double() * inputs.dy.double()):
        total = torch.zeros(inputs.x.shape[:2], dtype=narrow)
        for column in terms.flatten(2).to(narrow).unbind(2):
            total += column
        totals.append(total.double())
    return {"z": totals[0] / inputs.x.shape[2:].numel(), "dg": totals[1]}


def mean_over_one_less(inputs):
    positions = inputs.x.shape[2:].numel()
    return {"z": results(inputs, torch.float64)["z"] * positions / (positions - 1)}


def gradient_of_the_mean_whole(inputs):
    exact, positions = results(inputs, torch.float64), inputs.x.shape[2:].numel()
    return {"dx": exact["dy_times_g"] + (exact["dx"] - exact["dy_times_g"]) * positions}


def gradient_of_the_mean_forgotten(inputs):
    return {"dx": results(inputs, torch.float64)["dy_times_g"]}


def sample_counted_twice(inputs):
    exact = results(inputs, torch.float64)
    return {"dw2": exact["dw2"] + exact["dp2"][:1].t() @ exact["h"][:1]}


FAULTS: dict[str, Callable[[Inputs], dict[str, Tensor]]] = {
    function.__name__.replace("_", " "): function
    for function in (
        element_dropped, element_dropped_in_one_plane, element_counted_twice,
        lane_lost_in_last_vector, accumulated_in_bf16, mean_over_one_less,
        gradient_of_the_mean_whole, gradient_of_the_mean_forgotten, sample_counted_twice,
    )
}  # fmt: skip
LIKE_X = ("y", "dx")


def stored(name: str, result: Tensor, dtype: torch.dtype) -> Tensor:
    """As an operator returns it on a map of this dtype."""
    return result.to(dtype if name in LIKE_X else acc_dtype(dtype))


def is_found(plant, case, dtype: torch.dtype) -> bool:
    """Whether each result that the fault spoils is refused."""
    shape, hidden = case
    inputs = make_inputs(shape, hidden, "cpu", dtype, act="silu")  # no unit is dead
    exact, scales = results(inputs, torch.float64), error_scales(inputs)
    return all(
        used(stored(name, result, dtype), exact[name], scales[name], acc_dtype(dtype)) > 1
        for name, result in plant(inputs).items()
    )
