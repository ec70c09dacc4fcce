"""The layers of an SE block: where a module has them, and when they are what the formula says.

A fused function reads a layer's parameters instead of calling it, so it may run only where a call
would be the formula and nothing else.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from se_fused.activations import ACTS, GATES, function_name
from se_fused.memory_format import acc_dtype


class LayerPaths(NamedTuple):
    """Where a block has its layers: an attribute path ("fc.0"), a function, or None for no layer.

    Without ``fc2`` the block has one layer and no act.
    """

    fc1: str = "fc1"
    act: str | Callable | None = "act"
    fc2: str | None = "fc2"
    gate: str | Callable = "gate"
    norm: str | None = "bn"


class Layers(NamedTuple):
    """The layers themselves; None where there is none."""

    fc1: nn.Module | None = None
    act: Callable | None = None
    fc2: nn.Module | None = None
    gate: Callable | None = None
    norm: nn.Module | None = None


class Specification(NamedTuple):
    """What ``squeeze_excite`` takes beside the map."""

    w1: Tensor
    b1: Tensor | None
    w2: Tensor
    b2: Tensor | None
    act: str
    gate: str


def layers_of(module: nn.Module, paths: LayerPaths | None) -> Layers:
    if paths is None:
        return Layers()
    modules = module._modules
    fc1, act, fc2, gate, norm = [modules.get(path) or _layer(module, path) for path in paths]
    return Layers(fc1, act, fc2, gate, None if type(norm) is nn.Identity else norm)


def _layer(module: nn.Module, path: str | Callable | None):
    if not isinstance(path, str):
        return path
    for name in path.split("."):
        module = getattr(module, name)
    return module


def names_of(layers: Layers) -> tuple[str, str] | None:
    """The names of act and gate, if calls of the layers are the formula; else None."""
    fc1, act, fc2, gate, norm = layers
    if norm is not None or fc2 is None:
        return None
    act_name, gate_name = function_name(act), function_name(gate)
    if act_name not in ACTS or gate_name not in GATES:
        return None
    if not (is_pointwise(fc1) and is_pointwise(fc2)):
        return None
    if is_changed(fc1) or is_changed(act) or is_changed(fc2) or is_changed(gate):
        return None
    return act_name, gate_name


def specification(layers: Layers, names: tuple[str, str], x=None) -> Specification | None:
    """What to compute; None where parameters are not plain, or with x: not to be read beside it."""
    first, second = plain_weights(layers.fc1, x), plain_weights(layers.fc2, x)
    if first is None or second is None:
        return None
    return Specification(*first, *second, *names)


def plain_weights(layer: nn.Module, x=None) -> tuple[Tensor, Tensor | None] | None:
    """Weight and bias, if they are plain tensors, no quantized or partitioned ones, beside x."""
    own = layer._parameters
    if "weight" not in own:  # views that FSDP and DataParallel put in their place
        own = layer.__dict__
    weight, bias = own.get("weight"), own.get("bias")
    if not is_plain(weight) or weight.dim() < 2 or not weight.is_floating_point():
        return None  # partitioned ones are empty vectors
    if bias is not None and not is_plain(bias):
        return None
    if x is None:
        return weight, bias
    is_fit = is_beside(weight, x) and (bias is None or bias.dtype == weight.dtype)
    return (weight, bias) if is_fit else None


def is_beside(t: Tensor, x: Tensor) -> bool:
    """A plain tensor on x's device, of its dtype or of the accumulator's."""
    if not is_plain(t) or t.device != x.device:
        return False
    return t.dtype == x.dtype or t.dtype == acc_dtype(x.dtype)


def is_plain(t) -> bool:
    """A tensor whose operations are PyTorch's: no DTensor, quantized or other wrapper of one."""
    kind = type(t)
    return kind is Tensor or kind is nn.Parameter or _is_plain_kind(kind)


def _is_plain_kind(kind: type) -> bool:
    if not issubclass(kind, Tensor):
        return False
    if kind.__module__.startswith("torch._subclasses."):  # of torch's own tracing
        return True
    return kind.__torch_dispatch__ is Tensor.__torch_dispatch__


# The forwards of PyTorch's layers, which somebody may replace on their classes.
_FORWARDS = {
    cls: cls.forward
    for room in ("conv", "linear", "batchnorm", "activation")
    for cls in vars(getattr(nn.modules, room)).values()
    if isinstance(cls, type) and issubclass(cls, nn.Module)
}


def is_changed(layer) -> bool:
    """Whether a call of a layer is more than its class's forward."""
    if not isinstance(layer, nn.Module):
        return False
    forward = type(layer).forward
    known = _FORWARDS.get(type(layer), forward)
    return forward is not known or "forward" in layer.__dict__ or has_hooks(layer)


def has_hooks(layer: nn.Module) -> bool:
    return bool(
        layer._forward_hooks
        or layer._forward_pre_hooks
        or layer._backward_hooks
        or layer._backward_pre_hooks
    )


def has_global_hooks() -> bool:
    """Hooks on every module's forward, but those with which PyTorch counts FLOPs by module."""
    if not (torch_module._global_forward_pre_hooks or torch_module._global_forward_hooks):
        return False
    hooks = torch_module._global_forward_pre_hooks.values()
    hooks = [*hooks, *torch_module._global_forward_hooks.values()]
    return any(hook.__module__ != "torch.utils.module_tracker" for hook in hooks)


# Layers that are F.linear over the channels of a map of one position.

_POINTWISE = {nn.Linear: None, nn.Conv1d: (1,), nn.Conv2d: (1, 1), nn.Conv3d: (1, 1, 1)}
_NO_PADDING = {"same", "valid", (0,), (0, 0), (0, 0, 0)}
# Classes that are, with a kernel of 1, one of these: by (module, name); registered at import.
POINTWISE_BY_PATH: dict[tuple[str, str], type[nn.Module]] = {}


def is_pointwise(layer: nn.Module) -> bool:
    cls = type(layer)
    if cls not in _POINTWISE:
        cls = POINTWISE_BY_PATH.get((cls.__module__, cls.__qualname__))
        if cls is None:
            return False
    one = _POINTWISE[cls]
    return one is None or (
        layer.kernel_size == one and layer.groups == 1 and layer.padding in _NO_PADDING
    )


def dims_taken(layer: nn.Module) -> int:
    """The dims of what a layer takes: [N, C] or [N, C, 1, …]."""
    weight = layer._parameters.get("weight")
    if is_plain(weight) and weight.dim() >= 2:
        return weight.dim()
    for kind, one in _POINTWISE.items():
        if isinstance(layer, kind):
            return 2 + len(one or ())
    return 4
