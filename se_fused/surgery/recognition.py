"""Whether a module with the layers of SE is SE: found by runs of a copy with random numbers."""

import inspect

import torch
from torch import nn

from se_fused.modules.layers import Slots
from se_fused.surgery.comparison import (
    bare_copy,
    description,
    first_line,
    generator,
    on_trial,
    randomise,
)
from se_fused.surgery.families import Family
from se_fused.surgery.observed_run import ObservedRun, by, squeezes
from se_fused.surgery.reads import Outside
from se_fused.surgery.report import Left
from se_fused.surgery.structure import (
    MBCONV,
    Candidate,
    candidates,
    is_mbconv,
    lazy_layer,
    named_modules,
)

_SIZES = (3, 5), (3, 5, 2), (5,)
_WINDOWS = 7, 14, 28, 56
_POOLS = {
    1: (nn.AvgPool1d, nn.AdaptiveAvgPool1d),
    2: (nn.AvgPool2d, nn.AdaptiveAvgPool2d),
    3: (nn.AvgPool3d, nn.AdaptiveAvgPool3d),
}


def recognised(module: nn.Module, tried: dict) -> Family | None:
    """The form of a module that squeezes a map; None for one that is no SE.

    Raises Left with the reason for one that squeezes, or pools, and cannot be swapped.

    tried: what was found in other modules, to which this one is added.
    """
    if is_mbconv(module):
        return MBCONV
    for candidate in candidates(module):
        try:
            key = "recognised", type(module), description(module), candidate.fc1
        except Exception as error:  # whatever a library's code raises
            if candidate.slots is None:
                continue
            raise Left(f"it cannot be described: {first_line(error)}") from error
        if key not in tried:
            tried[key] = _found(module, candidate)
        if isinstance(tried[key], str):
            raise Left(tried[key])
        if tried[key] is not None:
            return Family((), tried[key])
    return None


def _found(module: nn.Module, candidate: Candidate) -> Slots | str | None:
    """Where SE has its layers, or why a module is left; None for no SE."""
    if not _takes_one_argument(module):
        return None
    pools, outside = _pools(module), Outside(module)
    try:
        with on_trial(), torch.no_grad():
            return _by_runs(module, candidate, pools)
    except Left as reason:
        return str(reason)
    except Exception as error:  # whatever a library's code raises
        unknown = f"it could not be tried: {first_line(error)}" if pools else None
        return candidate.slots or unknown
    finally:
        outside.put_back()


def _takes_one_argument(module: nn.Module) -> bool:
    try:
        inspect.signature(type(module).forward).bind(module, None)
    except (TypeError, ValueError):
        return False
    return True


def _pools(module: nn.Module) -> list[tuple[int, ...]]:
    """The windows of the poolings in a module; of those to one position of any map: 1, 1."""
    found = []
    for _, layer in named_modules(module):
        for dims, kinds in _POOLS.items():
            if isinstance(layer, kinds):
                size = vars(layer).get("kernel_size", 1)
                found.append((size,) * dims if isinstance(size, int) else (*size,))
    return found


def _by_runs(module: nn.Module, candidate: Candidate, pools: list) -> Slots | None:
    hollow = bare_copy(module, is_hollow=True)
    dims = {len(size) for size in pools}
    tried = [size for size in _SIZES if not pools or len(size) in dims]
    found = {size: squeezes(hollow, candidate, size) for size in tried}
    sizes = [size for size in tried if found[size] is True]
    errors = {size: error for size, error in found.items() if isinstance(error, str)}
    if not sizes and not errors and not pools:
        return None
    lazy = lazy_layer(module)
    if sizes and lazy is not None:
        raise Left(f"its layer {lazy} has no parameters yet")
    if sizes and candidate.slots is not None:
        return candidate.slots
    numbers, twin, whole = generator(), None, None
    if sizes:
        twin = randomise(bare_copy(module), numbers)
        runs = [ObservedRun.of(twin, candidate, size, numbers) for size in sizes]
        whole = min(runs, key=lambda run: run.error is not None)
        if whole.squeezes_mean:
            return whole.slots(candidate)
    for size in [size for size in pools if {*size} != {1}] + [(k, k) for k in _WINDOWS]:
        if squeezes(hollow, candidate, size) is not True:
            continue
        twin = twin or randomise(bare_copy(module), numbers)
        run = ObservedRun.of(twin, candidate, size, numbers)
        if run.rescales and whole is None and errors:
            raise Left(_takes_no_map(errors, len(size)))
        if run.rescales and run.squeezes_mean:
            other = whole.size if whole is not None else by(tried[0])
            raise Left(f"at {other} it computes something else than at {run.size}")
    if whole is not None and whole.rescales:
        raise Left("it squeezes a map, but not to the mean of each channel")
    is_called_wrong = any("required positional argument" in each for each in errors.values())
    if whole is None and errors and pools and not is_called_wrong:
        raise Left(_takes_no_map(errors, len(pools[0])))
    return None


def _takes_no_map(errors: dict[tuple, str], dims: int) -> str:
    size = next((size for size in errors if len(size) == dims), [*errors][0])
    return f"it takes no map of {by(size)}: {errors[size]}"
