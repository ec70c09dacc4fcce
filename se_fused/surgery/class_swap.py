"""Gives a module that exists another forward: the same object, of a class made for it.

Only the class of the object changes, to one that inherits from the class it had. Its children,
attributes, methods, parameters and state-dict keys are what they were, names of its library come
before ours, references to it stay good, isinstance with its library's class holds, and pickle,
deepcopy and torch.jit.script work.
"""

import types
from collections.abc import Callable
from functools import cache, wraps

from torch import nn


class ClassSwapped(nn.Module):
    """What a made class inherits from beside the library's class, which comes before it."""

    __prefix__ = "Fused"  # of its name

    @staticmethod
    def __members__(library: type[nn.Module], *key) -> dict:
        """The attributes of the made class, ``forward`` among them."""
        raise NotImplementedError


def made_class(kind: type[ClassSwapped], library: type[nn.Module], key: tuple = ()) -> type:
    """The class of a kind in the place of a library's; key is what else it depends on."""
    return _made_class(kind, library, key)


@cache
def _made_class(kind: type[ClassSwapped], library: type[nn.Module], key: tuple) -> type:
    members = {
        "__module__": kind.__module__,
        "__doc__": kind.__doc__,
        "__reduce_ex__": _reduce,
        "__made_of__": (kind, library, key),
        **kind.__members__(library, *key),
    }
    name = f"{kind.__prefix__}{library.__name__}"
    return types.new_class(name, (library, kind), exec_body=lambda body: body.update(members))


def library_of(cls: type) -> type[nn.Module] | None:
    """The class that a made class stands for; None for a class that was not made here."""
    return vars(cls).get("__made_of__", (None, None))[1]


def kind_of(cls: type) -> type[ClassSwapped] | None:
    """The kind of a made class itself; None for any other, one that inherits from it included."""
    return vars(cls).get("__made_of__", (None,))[0]


def with_source_of(plain: Callable, run: Callable) -> Callable:
    """A forward that calls ``run(self, args, kwargs)``, with the signature, the source and
    the global names of ``plain``: torch.jit.script compiles the library's own forward."""

    def forward(self, *args, **kwargs):
        return run(self, args, kwargs)

    names = getattr(plain, "__globals__", globals())
    return wraps(plain)(
        types.FunctionType(forward.__code__, names, "forward", None, forward.__closure__)
    )


# Made classes cannot be imported by name: pickle and deepcopy find them by what they are made of.


def _reduce(self, protocol):
    if library_of(type(self)) is None:  # FSDP made another class of it
        return super(nn.Module, self).__reduce_ex__(protocol)
    state = self.__getstate__() if hasattr(self, "__getstate__") else vars(self)
    return _rebuild, (_recipe(type(self)),), state


def _recipe(cls: type):
    if library_of(cls) is None:
        return cls
    kind, library, key = cls.__made_of__
    return kind, _recipe(library), key


def _rebuild(recipe) -> nn.Module:
    """An empty module of the class."""
    return nn.Module.__new__(_class_of(recipe))


def _class_of(recipe) -> type:
    if isinstance(recipe, type):
        return recipe
    kind, library, key = recipe
    return made_class(kind, _class_of(library), key)
