"""Finds SE modules: by class in the registry, or by their layers and runs of a copy with random
numbers."""

import inspect

import torch
from torch import nn

from se_fused.modules.layers import LayerPaths, layers_of
from se_fused.surgery.attribute_reads import SavedContainers
from se_fused.surgery.candidates import Candidate, candidates, is_mbconv, lazy_layer, named_modules
from se_fused.surgery.comparison import description, first_line, once, undisturbed
from se_fused.surgery.observed_run import ObservedRun, size_text, squeezes
from se_fused.surgery.random_copies import bare_copy, generator, randomise
from se_fused.surgery.registry import BY_CLASS, MBCONV, NOT_FUSIBLE, Family
from se_fused.surgery.report import NotFusible, path_of

_SIZES = (3, 5), (3, 5, 2), (5,)
_WINDOWS = 7, 14, 28, 56
_POOLS = {
    1: (nn.AvgPool1d, nn.AdaptiveAvgPool1d),
    2: (nn.AvgPool2d, nn.AdaptiveAvgPool2d),
    3: (nn.AvgPool3d, nn.AdaptiveAvgPool3d),
}
_NAMES = {path.rpartition(".")[2] for path in (*BY_CLASS, *NOT_FUSIBLE)}


def find_by_class(module: nn.Module) -> tuple[Family | None, str | None]:
    """The family of a module by its class, or why a module of that class is left."""
    if isinstance(module, torch.jit.ScriptModule):
        is_known = getattr(module, "original_name", None) in _NAMES
        return None, "it is compiled by torch.jit" if is_known else None
    path = path_of(type(module))
    if path in NOT_FUSIBLE:
        return None, NOT_FUSIBLE[path]
    family = BY_CLASS.get(path)
    if family is not None:
        # With other layers it is of another version; it may still be found by its layers.
        return (family if _has_layers(module, family.paths) else None), None
    for base in map(path_of, type(module).__mro__[1:]):
        if base in BY_CLASS or base in NOT_FUSIBLE:
            return None, f"it is a subclass of {base}, whose forward may differ"
    return None, None


def _has_layers(module: nn.Module, paths: LayerPaths) -> bool:
    try:
        layers_of(module, paths)
    except Exception:  # whatever a library's property raises
        return False
    return True


def find_by_layers(module: nn.Module, verified: dict) -> Family | None:
    """The form of a module that squeezes a map; None for one that is no SE.

    Raises NotFusible with the reason for one that squeezes, or pools, and cannot be replaced.

    verified: what was found in other modules, to which this one is added.
    """
    if is_mbconv(module):
        return MBCONV
    for candidate in candidates(module):
        try:
            key = "paths", type(module), description(module), candidate.fc1
        except Exception as error:  # whatever a library's code raises
            if candidate.paths is None:
                continue
            raise NotFusible(f"it cannot be described: {first_line(error)}") from error
        paths = once(verified, key, _paths, module, candidate)
        if paths is not None:
            return Family((), paths)
    return None


def _paths(module: nn.Module, candidate: Candidate) -> LayerPaths | None:
    """Where SE has its layers; None for no SE."""
    if not _takes_one_argument(module):
        return None
    pools, saved = _pools(module), SavedContainers(module)
    try:
        with undisturbed(), torch.no_grad():
            return _by_runs(module, candidate, pools)
    except NotFusible:
        raise
    except Exception as error:  # whatever a library's code raises
        if pools and candidate.paths is None:
            raise NotFusible(f"it could not be tried: {first_line(error)}") from error
        return candidate.paths
    finally:
        saved.put_back()


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


def _by_runs(module: nn.Module, candidate: Candidate, pools: list) -> LayerPaths | None:
    hollow = bare_copy(module, is_hollow=True)
    dims = {len(size) for size in pools}
    sizes_run = [size for size in _SIZES if not pools or len(size) in dims]
    found = {size: squeezes(hollow, candidate, size) for size in sizes_run}
    sizes = [size for size in sizes_run if found[size] is True]
    errors = {size: error for size, error in found.items() if isinstance(error, str)}
    if not sizes and not errors and not pools:
        return None
    lazy = lazy_layer(module)
    if sizes and lazy is not None:
        raise NotFusible(f"its layer {lazy} has no parameters yet")
    if sizes and candidate.paths is not None:
        return candidate.paths
    numbers, twin, whole = generator(), None, None
    if sizes:
        twin = randomise(bare_copy(module), numbers)
        runs = [ObservedRun.of(twin, candidate, size, numbers) for size in sizes]
        whole = min(runs, key=lambda run: run.error is not None)
        if whole.squeezes_mean:
            return whole.paths(candidate)
    for size in [size for size in pools if {*size} != {1}] + [(k, k) for k in _WINDOWS]:
        if squeezes(hollow, candidate, size) is not True:
            continue
        twin = twin or randomise(bare_copy(module), numbers)
        run = ObservedRun.of(twin, candidate, size, numbers)
        if run.rescales and whole is None and errors:
            raise NotFusible(_takes_no_map(errors, len(size)))
        if run.rescales and run.squeezes_mean:
            other = whole.size if whole is not None else size_text(sizes_run[0])
            raise NotFusible(f"at {other} it computes something else than at {run.size}")
    if whole is not None and whole.rescales:
        raise NotFusible("it squeezes a map, but not to the mean of each channel")
    is_called_wrong = any("required positional argument" in each for each in errors.values())
    if whole is None and errors and pools and not is_called_wrong:
        raise NotFusible(_takes_no_map(errors, len(pools[0])))
    return None


def _takes_no_map(errors: dict[tuple, str], dims: int) -> str:
    size = next((size for size in errors if len(size) == dims), [*errors][0])
    return f"it takes no map of {size_text(size)}: {errors[size]}"
