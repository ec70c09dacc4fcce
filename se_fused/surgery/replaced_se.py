"""A replaced SE module: the same object, whose forward is fused while its guard holds.

Where that finds a difference, or it is called with more than a map, or the map or the weights
are not what the fused operators take, its library's own forward runs.
"""

import inspect
from typing import NamedTuple

import torch
import torch.fx
from torch import Tensor, nn

from se_fused.modules.layers import (
    LayerPaths,
    Layers,
    Specification,
    dims_taken,
    is_plain,
    layers_of,
    names_of,
    plain_weights,
    specification,
)
from se_fused.modules.se import Form, FusedSE, compute, described, traced
from se_fused.surgery.class_swap import ClassSwapped, library_of, made_class, with_source_of
from se_fused.surgery.guard import guard_of
from se_fused.surgery.random_copies import example
from se_fused.surgery.report import NotFusible, warn_once

NOT_PLAIN = "its weights are no plain tensors of x's dtype and on its device"
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class ReplacedSE(ClassSwapped, FusedSE):
    """A library's SE module whose forward is fused."""

    __se_fused__: Form | None = None  # a module that is built with its class has none
    __is_se_alone__ = True
    __other_layers__: tuple[str, ...] = ()  # children beside SE's that it calls

    @staticmethod
    def __fused__(
        module: nn.Module, form: Form, found: Specification | None, x: Tensor
    ) -> Tensor:
        return compute(module, x, form, found)

    @staticmethod
    def __example_map__(module: nn.Module, paths: LayerPaths, size: tuple, numbers) -> Tensor:
        """A map that the module takes, for its verification."""
        channels = layers_of(module, paths).fc1.weight.shape[1]
        return example((3, channels, *size), numbers)

    @staticmethod
    def __bound__(first: str, args: tuple, kwargs: dict) -> tuple | None:
        """What to call ``__fused__`` with; None for a call that is the library's. first: the name
        of the map in the library's forward."""
        if len(args) == 1 and not kwargs:
            return args
        return (kwargs[first],) if not args and [*kwargs] == [first] else None

    @staticmethod
    def __takes__(form: Form, x: Tensor) -> bool:
        """Whether a map has the shape that the layers take."""
        return x.shape[1] == form.channels and (form.dims == 2 or form.dims == x.dim())

    @classmethod
    def __members__(cls, library: type[nn.Module]) -> dict:
        first = _first_parameter(library)

        def run(module, args, kwargs):
            arguments = cls.__bound__(first, args, kwargs)
            if arguments is None:
                return library.forward(module, *args, **kwargs)
            x = arguments[0]
            if isinstance(x, torch.fx.Proxy):
                return traced(module, *args, **kwargs)
            form = module.__se_fused__
            if form is None:
                return library.forward(module, *args, **kwargs)
            reason = form.guard.difference(module) or _unfit_map(cls, form, x)
            if reason is None:
                layers = layers_of(module, form.paths)
                found = None if form.names is None else specification(layers, form.names, x)
                if found is not None or (form.names is None and _are_plain(layers, x)):
                    return cls.__fused__(module, form, found, *arguments)
                reason = NOT_PLAIN
            warn_once(module, reason)
            return library.forward(module, *args, **kwargs)

        def restore(module, state):
            library.__setstate__(module, state)
            form = module.__se_fused__
            if form is not None and form.guard is None:  # the class may be another here
                _verify_again(module, cls)

        def extra_repr(module):
            form = module.__se_fused__
            return "" if form is None else described(module, form)

        members = {"forward": with_source_of(library.forward, run), "__setstate__": restore}
        if library.extra_repr is nn.Module.extra_repr:
            members["extra_repr"] = extra_repr
        return members


class NeverFused(NamedTuple):
    """The guard of a module that runs its library's forward, and why."""

    reason: str

    def difference(self, module: nn.Module) -> str:
        return self.reason


def _verify_again(module: nn.Module, kind: type[ReplacedSE]):
    from se_fused.surgery.verify import verify  # which replaces copies

    form = module.__se_fused__
    library = library_of(type(module))
    replaced = type(module)
    _change_class(module, library)
    try:
        form = verify(module, kind, form.paths)
    except NotFusible as reason:
        form = form._replace(guard=NeverFused(f"after loading: {reason}"))
    _change_class(module, replaced)
    module.__dict__["__se_fused__"] = form


def _first_parameter(library: type[nn.Module]) -> str:
    parameters = list(inspect.signature(library.forward).parameters)
    return parameters[1] if len(parameters) > 1 else ""


def unfit(kind: type[ReplacedSE], module: nn.Module, form: Form, x) -> str | None:
    """Why a map or the weights beside it are left to the library's forward."""
    reason = _unfit_map(kind, form, x)
    if reason is None and not _are_plain(layers_of(module, form.paths), x):
        reason = NOT_PLAIN
    return reason


def _unfit_map(kind: type[ReplacedSE], form: Form, x) -> str | None:
    if not is_plain(x):
        return f"it was called with a {type(x).__name__}"
    if x.dtype not in _DTYPES or not 2 <= x.dim() <= 5:
        return f"it was called with {x.dtype}, {x.dim()} dims"
    if not torch.jit.is_tracing() and not kind.__takes__(form, x):
        return f"it was called with a map of shape {tuple(x.shape)}"
    return None


def _are_plain(layers: Layers, x: Tensor) -> bool:
    weighted = [layer for layer in (layers.fc1, layers.fc2) if layer is not None]
    return all([plain_weights(layer, x) is not None for layer in weighted])


def form_of(module: nn.Module, kind: type[ReplacedSE], paths: LayerPaths) -> Form:
    """What a library's module computes, with a guard on all of it; raises NotFusible."""
    layers = layers_of(module, paths)
    own = vars(layers.fc1)  # never by a property, which may compute it
    weight = own["_parameters"].get("weight", own.get("weight"))
    if not isinstance(weight, Tensor) or weight.dim() < 2:
        raise NotFusible("its weights are sharded or quantized: call replace_se before")
    squeeze = "avg_max" if getattr(module, "add_maxpool", False) is True else "avg"
    called = {path: (type(module.get_submodule(path)),) for path in kind.__other_layers__
              if path in module._modules}  # fmt: skip
    adds = getattr(module, "add_residual", False) is True
    return Form(
        paths,
        squeeze,
        adds,
        kind.__is_se_alone__,
        guard_of(module, called),
        None if adds else names_of(layers),
        weight.shape[1],
        dims_taken(layers.fc1),
    )


def replace_forward(module: nn.Module, kind: type[ReplacedSE], form: Form):
    """Fuses the forward of a module, in place."""
    _change_class(module, made_class(kind, type(module)))
    module.__dict__["__se_fused__"] = form


def _change_class(module: nn.Module, cls: type):
    object.__setattr__(module, "__class__", cls)  # a library's own __setattr__ may refuse


def restore_forward(module: ReplacedSE):
    _change_class(module, library_of(type(module)))
    for name in ("__se_fused__", "__said__"):
        module.__dict__.pop(name, None)
