"""Modules that may be SE by the shapes of their layers, whatever their class."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from se_fused.activations import function_name
from se_fused.modules.layers import LayerPaths
from se_fused.modules.se import FusedSE
from se_fused.surgery.registry import MBCONV_LAYERS
from se_fused.surgery.report import path_of

_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_GATES = ("sigmoid", "hardsigmoid", "tanh")


def named_modules(root: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """As the method, without any code of the modules themselves."""
    seen, stack = set(), [("", root)]
    while stack:
        name, module = stack.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        yield name, module
        children = reversed([*(vars(module).get("_modules") or {}).items()])
        stack += [(f"{name}.{key}".lstrip("."), m) for key, m in children if m is not None]


def is_script(module: nn.Module) -> bool:
    return isinstance(module, torch.jit.ScriptModule)


class Candidate(NamedTuple):
    """The layers of a module that may be SE by the shapes of its weights, by their paths."""

    fc1: str
    fc2: str | None
    channels: int  # that fc1 takes
    outputs: int
    acts: tuple[tuple[str, nn.Module], ...]

    @property
    def paths(self) -> LayerPaths | None:
        """With its activation modules; None where act and gate are not one module each."""
        if self.fc2 is None or len(self.acts) != 2:
            return None
        (act, _), (gate, _) = sorted(self.acts, key=lambda each: function_name(each[1]) in _GATES)
        return LayerPaths(self.fc1, act, self.fc2, gate, None)


def is_mbconv(module: nn.Module) -> bool:
    return all(name in _own(module, "_modules") for name in MBCONV_LAYERS)


def candidates(module: nn.Module) -> list[Candidate]:
    """The ways in which a module has the layers of SE, whatever it computes: two from C to R to C
    channels (2C, where maximum and mean are squeezed), or one from C to C."""
    weighted, acts, inside = [], [], None
    for path, layer in named_modules(module):
        if isinstance(layer, FusedSE) or is_script(layer):
            return []
        if not path or (inside is not None and path.startswith(inside)):
            continue
        if isinstance(layer, _WEIGHTED):
            inside = f"{path}."  # parametrizations
            weighted.append((path, _widths(layer)))
        elif _own(layer, "_modules"):
            continue
        elif _is_activation(layer):
            acts.append((path, layer))
        elif _own(layer, "_parameters") or _own(layer, "_buffers"):
            return []
        if len(weighted) > 2:
            return []
    if not weighted or None in [widths for _, widths in weighted]:
        return []
    if len(weighted) == 1:
        [(fc, (inputs, outputs))] = weighted
        is_wide = inputs == outputs and outputs > 1
        return [Candidate(fc, None, inputs, outputs, (*acts,))] if is_wide else []
    found = []
    for (fc1, (inputs, width)), (fc2, (taken, outputs)) in (weighted, weighted[::-1]):
        inputs, taken = inputs or outputs, taken or width  # 0 in lazy layers
        if width == taken and inputs in (outputs, 2 * outputs) and outputs > 1:
            found.append(Candidate(fc1, fc2, inputs, outputs, (*acts,)))
    return found


def _widths(layer: nn.Module) -> tuple[int, int] | None:
    """Of the inputs and outputs of a pointwise layer."""
    own = vars(layer)
    if isinstance(layer, nn.Linear):
        return own.get("in_features"), own.get("out_features")
    kernel = own.get("kernel_size")
    if own.get("groups") != 1 or not isinstance(kernel, tuple) or {*kernel} != {1}:
        return None
    return own.get("in_channels"), own.get("out_channels")


def lazy_layer(module: nn.Module) -> str | None:
    """The path of a layer whose parameters have no shapes yet."""
    for path, layer in named_modules(module):
        tensors = [*_own(layer, "_parameters").values(), *_own(layer, "_buffers").values()]
        if any(is_lazy(t) for t in tensors):
            return path
    return None


def _own(module: nn.Module, kind: str) -> dict:
    return {} if is_script(module) else vars(module).get(kind) or {}


def _is_activation(module: nn.Module) -> bool:
    if isinstance(module, nn.Identity):
        return False
    return type(module).__module__ == nn.ReLU.__module__ or function_name(module) is not None


def described(module: nn.Module, name: str, cls: type) -> str:
    """A module by its class; a Sequential by its last layer but for activations and dropout."""
    last = _last_layer(module)
    if last is None or last is module:
        return path_of(cls)
    return f"{path_of(type(last))} (in {name}, a {path_of(cls)})"


def _last_layer(module: nn.Module) -> nn.Module | None:
    if type(module).forward is not nn.Sequential.forward:
        is_passed = isinstance(module, (nn.Identity, nn.modules.dropout._DropoutNd))
        return None if is_passed or _is_activation(module) else module
    layers = map(_last_layer, reversed(module._modules.values()))
    return next((layer for layer in layers if layer is not None), None)
