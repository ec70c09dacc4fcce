"""How a block may be called: which of its optional arguments are given."""

import inspect
from collections.abc import Callable
from itertools import combinations

from torch import Tensor, nn

from se_fused.surgery.guard import Guard
from se_fused.surgery.report import NotFusible

_MOST = 3  # optional arguments of which all combinations are looked at


class Signature:
    """The arguments of a class's forward."""

    def __init__(self, cls: type[nn.Module]):
        parameters = [*inspect.signature(cls.forward).parameters.values()][1:]
        if any(p.kind in (p.VAR_POSITIONAL, p.POSITIONAL_ONLY) for p in parameters):
            raise NotFusible("its block's forward takes any number of arguments")
        named = [p for p in parameters if p.kind is not p.VAR_KEYWORD]
        self.names = tuple(p.name for p in named if p.kind is not p.KEYWORD_ONLY)
        self.defaults = {p.name: p.default for p in named if p.default is not p.empty}
        self.required = tuple(p.name for p in named if p.default is p.empty)

    def call_forms(self) -> list[tuple[str, ...]]:
        """What may be given: the required arguments, and some that are None else."""
        optional = [name for name, default in self.defaults.items() if default is None][:_MOST]
        chosen = [c for count in range(len(optional) + 1) for c in combinations(optional, count)]
        return [self.in_order({*self.required, *names}) for names in chosen]

    def in_order(self, names: set[str]) -> tuple[str, ...]:
        order = [*self.names, *(name for name in self.defaults if name not in self.names)]
        return tuple(name for name in order if name in names)

    def given(self, args: tuple, kwargs: dict) -> dict[str, object] | None:
        """The arguments that are not left out; None where a call has others than these."""
        if len(args) > len(self.names) or not kwargs.keys() <= {*self.names, *self.defaults}:
            return None
        values = dict(zip(self.names, args)) | kwargs
        return {
            name: values[name]
            for name in self.in_order({*values})
            if name not in self.defaults or not _is_left_out(values[name], self.defaults[name])
        }


def _is_left_out(value, default) -> bool:
    if value is default:
        return True
    return isinstance(value, (bool, int, float, str)) and value == default


class FusedCalls:
    """The fused functions of a block, each with its guard, by what is given."""

    def __init__(self, signature: Signature, functions: dict[tuple, tuple[Guard, Callable]]):
        self.signature, self.functions = signature, functions
        self.required = signature.required

    def find(self, block: nn.Module, args: tuple, kwargs: dict):
        """The function for a call, and its arguments in order; or None, and why there is none."""
        if not kwargs and len(args) == len(self.required):
            given = dict(zip(self.required, args))
        else:
            given = self.signature.given(args, kwargs)
        if given is None or not all([isinstance(value, Tensor) for value in given.values()]):
            return None, "it is called with arguments that are no tensors"
        guard, function = self.functions.get((*given,), (None, None))
        if guard is None:
            return None, f"it is called with {', '.join(given) or 'nothing'}"
        reason = guard.difference(block)
        return (function, (*given.values(),)) if reason is None else (None, reason)
