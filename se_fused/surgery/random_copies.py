"""Copies of modules with random parameters, in float64 on the CPU, and maps for them."""

import copy

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy

_SEED = 1709


def generator() -> torch.Generator:
    return torch.Generator("cpu").manual_seed(_SEED)


def example(shape: tuple[int, ...], numbers: torch.Generator) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, device="cpu", generator=numbers)


def random_copy(module: nn.Module, numbers: torch.Generator) -> nn.Module:
    """A copy on the CPU, in float64, with random parameters and buffers."""
    return randomise(copy.deepcopy(module), numbers)


def bare_copy(module: nn.Module, is_hollow: bool = False) -> nn.Module:
    """A copy without the hooks and the patched forwards; hollow: of parameters, their shapes."""
    memo = {}
    for inner in module.modules():
        own = vars(inner)
        if not isinstance(inner, LazyModuleMixin):
            hooks = [value for name, value in own.items() if name.endswith("_hooks")]
            memo |= {id(value): type(value)() for value in hooks}
        if "forward" in own:
            memo[id(own["forward"])] = None
        if is_hollow:
            for t in own["_parameters"].values():
                if t is not None and not is_lazy(t):
                    memo[id(t)] = nn.Parameter(torch.zeros((), dtype=torch.float64).expand(t.shape))
    twin = copy.deepcopy(module, memo)
    for inner in twin.modules():
        vars(inner).pop("forward", None)
    return twin


def randomise(twin: nn.Module, numbers: torch.Generator) -> nn.Module:
    tensors = [*twin.parameters(), *twin.buffers()]
    on_meta = any(t.is_meta for t in tensors)
    twin = (twin.to_empty(device="cpu") if on_meta else twin.cpu()).double()
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.normal_(generator=numbers)
            parameter.mul_(2 / max(parameter[:1].numel(), 1) ** 0.5)
        for buffer in twin.buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 1.5, generator=numbers)
            elif on_meta:
                buffer.zero_()
    return twin.requires_grad_()
