"""SE modules found by their layers: copies, and what libraries build without a class of its own.

And what a Sequential ends in.
"""

import torch
from torch import nn

from se_fused.activations import function_name
from se_fused.layers import Slots
from se_fused.surgery.families import Family
from se_fused.surgery.report import path_of
from se_fused.surgery.swapped_mbconv import SwappedMBConv

_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_GATES = ("sigmoid", "hardsigmoid", "tanh")
# efficientnet-pytorch and segmentation-models-pytorch spell SE out in the block's forward.
_MBCONV_SLOTS = Slots("_se_reduce", "_swish", "_se_expand", torch.sigmoid, None)
_MBCONV = ("_depthwise_conv", "_bn1", *_MBCONV_SLOTS[:3], "_project_conv", "_bn2")


def family_by_layers(module: nn.Module) -> Family | None:
    """The form of a module that has the layers of SE, whatever it computes; None if it has not."""
    if all(name in module._modules for name in _MBCONV):
        return Family((), _MBCONV_SLOTS, SwappedMBConv)
    leaves = [(name, m) for name, m in module.named_modules() if name and not m._modules]
    weighted = [(name, m) for name, m in leaves if m._parameters or m._buffers]
    acts = [(name, m) for name, m in leaves if _is_activation(m)]
    if len(weighted) != 2 or len(acts) != 2 or not all(type(m) in _WEIGHTED for _, m in weighted):
        return None
    (fc1, first), (fc2, second) = weighted
    if first.weight.shape[:2] != second.weight.shape[1::-1]:
        return None
    (act, _), (gate, _) = sorted(acts, key=lambda named: function_name(named[1]) in _GATES)
    return Family((), Slots(fc1, act, fc2, gate, None))


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
