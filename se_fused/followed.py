"""SE after a layer or a block of a network, or before it, without another object in its place.

Only the class of the object changes, to one that inherits from the class it had, and it gets the SE
block as a child. So state-dict keys stay what they were, but for those of the new child, and
references to the module and isinstance with its class stay good.
"""

import copyreg
import types
from functools import cache, wraps

import torch
import torch.fx
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from se_fused.module import FusedSE, traced


class _Meta(type(nn.Module)):
    """Of the classes made here, which pickle and deepcopy find by what they are made of."""


class WithSE(nn.Module, metaclass=_Meta):
    """A module with SE on one side of it; comes before the class it had."""

    without_se: type[nn.Module]
    se_name: str  # of the child
    is_layer: bool  # one node in a graph of torch.fx, as PyTorch's own layers are

    @property
    def own_se(self) -> nn.Module:
        return self._modules[self.se_name]

    def __prepare_scriptable__(self):
        raise NotImplementedError(
            f"torch.jit.script cannot compile {self._get_name()}: use torch.export or "
            "torch.jit.trace"
        )


class FollowedBySE(WithSE):
    """``se(module(x))``"""

    @staticmethod
    def around(library: type[nn.Module]):
        def forward(self, *args, **kwargs):
            if self.is_layer and any([isinstance(a, torch.fx.Proxy) for a in args]):
                return traced(self, *args)
            return self._modules[self.se_name](library.forward(self, *args, **kwargs))

        return forward


class PrecededBySE(WithSE):
    """``module(se(x))``"""

    @staticmethod
    def around(library: type[nn.Module]):
        def forward(self, x, *args, **kwargs):
            if self.is_layer and isinstance(x, torch.fx.Proxy):
                return traced(self, x, *args)
            return library.forward(self, self._modules[self.se_name](x), *args, **kwargs)

        return forward


@cache
def _class_with_se(side: type[WithSE], library: type[nn.Module], se_name: str) -> type:
    members = {
        "forward": wraps(library.forward)(side.around(library)),
        "without_se": library,
        "se_name": se_name,
        "is_layer": issubclass(library, _BatchNorm) or library.__module__.startswith("torch.nn."),
        "__module__": side.__module__,
        "__doc__": side.__doc__,
    }
    return types.new_class(
        f"SE{library.__name__}", (side, library), exec_body=lambda body: body.update(members)
    )


def _reduce(cls: type[WithSE]):
    if "without_se" not in vars(cls):
        return cls.__qualname__
    return _class_with_se, (cls.__mro__[1], cls.without_se, cls.se_name)


copyreg.pickle(_Meta, _reduce)


def add_se(module: nn.Module, side: type[WithSE], se: FusedSE):
    """Puts SE after a module or before it, in place."""
    name = "inserted_se" if hasattr(module, "se") else "se"
    module.__class__ = _class_with_se(side, type(module), name)
    module.add_module(name, se)


def take_se_off(module: WithSE):
    del module._modules[module.se_name]
    module.__class__ = module.without_se


def class_before(module: nn.Module | None, se: nn.Module) -> type:
    """The class of what comes before an SE block: of a module that the block follows as its own
    child, the class without it."""
    is_own = isinstance(module, FollowedBySE) and module.own_se is se
    return module.without_se if is_own else type(module)


def call_before(module: nn.Module, se: nn.Module, x):
    """What comes before an SE block, without the block."""
    cls = class_before(module, se)
    return module(x) if cls is type(module) else cls.forward(module, x)
