"""Verifies a block before it is fused: both forms on copies with random parameters, in float64."""

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from se_fused.modules.se import FusedSE
from se_fused.surgery.comparison import (
    RandomStates,
    Step,
    attributes_of,
    changed_attribute,
    first_line,
    verifying,
)
from se_fused.surgery.fused_end import norm_with_act, synchronised_or_not
from se_fused.surgery.random_copies import example, generator, random_copy
from se_fused.surgery.report import NotFusible

_SIZES = {
    1: ((5,), (8,), (33,), (64,)),
    2: ((3, 4), (6, 5), (14, 14), (16, 12), (28, 28), (33, 32), (64, 64), (96, 96)),
    3: ((2, 3, 3), (4, 3, 5), (16, 16, 16), (32, 32, 32)),
}
_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def verify_block(
    block: nn.Module, call_form: tuple[str, ...], function: Callable, seen: list[dict]
):
    """Raises NotFusible where the fused function is not the block's forward: in results, gradients,
    buffers and random numbers drawn, in training at two sizes and in eval mode.

    seen: arguments that the block was called with, of whose shapes examples are made; else they
    are made from its layers.
    """
    with verifying(block, "its block"):
        numbers = generator()
        library = random_copy(block, numbers)
        dims = _dims_of(library)
        for module in library.modules():
            _without_synchronisation(module, dims)
        if seen:
            examples = _alike(seen, numbers)
        else:
            examples = _examples(library, call_form, dims, numbers)
        _compare(library, copy.deepcopy(library), function, examples)


def _compare(library, fused, function, examples: list[dict]):
    states = RandomStates.now()

    def call(*args, **kwargs):
        return function(fused, *kwargs.values())

    as_module = _Called(fused, call)
    for index, given in enumerate(examples):
        for training in (True, False)[: 2 - index]:
            forward = type(library).forward
            library.train(training)
            if type(library).forward is not forward:  # torchvision's DualGraphModule
                raise NotFusible("its block's forward is another in training than in eval mode")
            before = attributes_of(library, tensors=False)
            expected = Step.of(library, (), given, states)
            changed = changed_attribute(library, before)
            if changed is not None:
                raise NotFusible(f"its block's forward sets {changed}")
            fused.train(training)
            found = Step.of(as_module, (), given, states)
            if found.drawn != expected.drawn:
                raise NotFusible("its block's forward draws random numbers")
            if not found.agrees(expected):
                raise NotFusible("its block's forward computes something else in other cases")
            if training and found.kept > 1.25 * expected.kept:
                keeps_less = "its block's forward keeps less for the backward pass: it checkpoints"
                raise NotFusible(keeps_less)


class _Called(nn.Module):
    """A module with another function for its forward."""

    def __init__(self, module: nn.Module, call: Callable):
        super().__init__()
        self.__dict__["module"], self.forward = module, call

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        return self.module.parameters(recurse)

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        return self.module.buffers(recurse)


# Examples


def _alike(seen: list[dict], numbers) -> list[dict]:
    return [
        {name: example(tuple(t.shape), numbers) for name, t in given.items()} for given in seen[:2]
    ]


def _examples(library: nn.Module, call_form: tuple[str, ...], dims: int, numbers) -> list[dict]:
    """Arguments that the block takes, at two sizes where there are two."""
    error = None
    for channels in _widths(library):
        found = []
        for size in _SIZES[dims]:
            x = example((2 + len(found), channels, *size), numbers)
            try:
                found.append(_accepted(library, call_form, x, numbers))
            except Exception as raised:  # whatever a library's forward raises
                error = error or raised
            if len(found) == 2:
                break
        if found:
            return found
    why = f" ({first_line(error)})" if error else ""
    raise NotFusible(f"no input could be made for its block{why}: give fuse example_inputs")


def _accepted(library: nn.Module, call_form: tuple[str, ...], x: Tensor, numbers) -> dict:
    """x for the first argument; for the others what is like it, or like the last result."""
    shapes, results = [tuple(x.shape)], []

    def look(module, args, result):
        if isinstance(result, Tensor):
            results.append(tuple(result.shape))

    hooks = [module.register_forward_hook(look) for module in library.modules()]
    first, *others = call_form
    try:
        while True:
            given = {first: x, **{name: example(shapes[-1], numbers) for name in others}}
            try:
                with torch.no_grad():
                    library.eval()(**given)
                return given
            except Exception:
                if not others or not results or results[-1] in shapes:
                    raise
                shapes.append(results[-1])
    finally:
        for hook in hooks:
            hook.remove()


def _widths(library: nn.Module) -> list[int]:
    """The numbers of channels that its layers take, in the order of the layers."""
    widths = []
    for module in library.modules():
        for name in ("in_channels", "num_features", "in_features"):
            width = getattr(module, name, None)
            if type(width) is int and width not in widths:
                widths.append(width)
        if isinstance(module, FusedSE) and module.__se_fused__.channels:
            widths.append(module.__se_fused__.channels)
    return list(dict.fromkeys(widths))[:6]


def _dims_of(library: nn.Module) -> int:
    for module in library.modules():
        for dims in (1, 2, 3):
            convolution, norm = (getattr(nn, f"{kind}{dims}d") for kind in ("Conv", "BatchNorm"))
            if isinstance(module, (convolution, norm)):
                return dims
    return 2


def _without_synchronisation(module: nn.Module, dims: int):
    """Synchronised norms run on GPUs alone."""
    if type(module) is nn.SyncBatchNorm:
        module.__class__ = _NORMS[dims]
    elif norm_with_act(type(module)) is not None and isinstance(module, nn.SyncBatchNorm):
        [module.__class__] = {*synchronised_or_not(type(module))} - {type(module)}
