"""What the code of a module's forward reads beside its layers: attributes and globals."""

import builtins
import dis
import inspect
import logging
import types
from collections.abc import Iterator
from enum import Enum
from functools import cache
from typing import NamedTuple

import torch
from torch import nn

_SIMPLE = (
    bool, int, float, complex, str, bytes, range, slice, type, type(None), type(...), Enum,
    torch.dtype, torch.device, torch.layout, torch.memory_format,
    types.FunctionType, types.BuiltinFunctionType, types.ModuleType,
)  # fmt: skip
# Objects that a forward may name and that hold nothing of what it computes.
_HARMLESS = (logging.Logger, staticmethod, classmethod, torch.jit.ScriptFunction)


class Reads(NamedTuple):
    """What a class's forward reads, by way of its methods too."""

    attributes: frozenset[str]  # names, of itself or of anything else
    values: tuple[tuple[object, str], ...]  # class attributes, globals, variables: where, the name
    sets_globals: bool


@cache
def reads_of(cls: type[nn.Module]) -> Reads:
    attributes, values, seen, sets_globals = set(), {}, set(), False
    members = {}
    for base in reversed(cls.__mro__[: cls.__mro__.index(nn.Module)]):
        members |= {name: (base, value) for name, value in vars(base).items()}
    functions = [members[name][1] for name in ("forward",) if name in members]
    while functions:
        function = inspect.unwrap(_function_of(functions.pop()))
        if not isinstance(function, types.FunctionType) or function in seen:
            continue
        seen.add(function)
        cells = Cells(function)
        for code in _codes(function.__code__):
            owner = None  # the class or the module whose attribute is read next
            for instruction in dis.get_instructions(code):
                name, operation = instruction.argval, instruction.opname
                before, owner = owner, None
                if operation == "STORE_GLOBAL":
                    sets_globals = True
                elif operation in ("LOAD_GLOBAL", "LOAD_NAME"):
                    if name in function.__globals__ and not hasattr(builtins, name):
                        values[id(function.__globals__), name] = function.__globals__, name
                        owner = function.__globals__[name]
                elif operation == "LOAD_DEREF" and name in cells:
                    values[id(cells), name] = cells, name
                elif operation == "LOAD_CONST" and isinstance(name, str):
                    attributes.add(name)
                elif operation in ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR"):
                    attributes.add(name)
                    if _is_watched_owner(before) and _is_data(vars(before).get(name, len)):
                        values[id(before), name] = vars(before), name
        functions += [members[name][1] for name in attributes if name in members]
    for name in attributes & members.keys():
        base, value = members[name]
        if _is_data(value):
            values[id(base), name] = vars(base), name
    return Reads(frozenset(attributes), tuple(values.values()), sets_globals)


class Cells:
    """The variables of enclosing functions, as a namespace."""

    def __init__(self, function: types.FunctionType):
        self.cells = dict(zip(function.__code__.co_freevars, function.__closure__ or ()))

    def __contains__(self, name: str) -> bool:
        try:
            return bool([self.cells[name].cell_contents])
        except (KeyError, ValueError):  # not filled
            return False

    def __getitem__(self, name: str):
        return self.cells[name].cell_contents

    def get(self, name: str):
        return self[name] if name in self else None


def _is_watched_owner(value) -> bool:
    """A class or a module of somebody's own, whose attributes may be switches."""
    if not isinstance(value, (type, types.ModuleType)):
        return False
    name = value.__name__ if isinstance(value, types.ModuleType) else value.__module__
    return name.partition(".")[0] not in ("torch", "numpy", "math", "builtins", "typing", "enum")


def _function_of(member):
    if isinstance(member, property):
        return member.fget
    return getattr(member, "__func__", member)


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _is_data(value) -> bool:
    """Whether a class attribute is a value, not a method or another descriptor."""
    harmless = (property, types.BuiltinFunctionType, types.ModuleType, type, *_HARMLESS)
    return not isinstance(value, harmless) and not hasattr(value, "__get__")


def is_watchable(value, depth: int = 3) -> bool:
    """Whether a later value can be compared with this one."""
    if isinstance(value, _SIMPLE):
        return True
    if isinstance(value, dict):
        value = [*value, *value.values()]
    elif not isinstance(value, (list, tuple, set, frozenset)):
        return False
    return depth > 0 and all(is_watchable(each, depth - 1) for each in value)


def is_harmless(value) -> bool:
    """Whether a global need not be watched: code, types, loggers."""
    if isinstance(value, (*_HARMLESS, types.ModuleType, type)) or callable(value):
        return not isinstance(value, nn.Module)
    return type(value).__module__ in ("typing", "types", "collections.abc", "__future__")


class SavedContainers:
    """Lists, dicts and sets that the forwards in a module can reach, as they were."""

    def __init__(self, module: nn.Module):
        reached = {
            id(namespace[name]): (name, namespace[name])
            for cls in {type(inner) for inner in module.modules()}
            for namespace, name in reads_of(cls).values
            if name in namespace and type(namespace[name]) in (list, dict, set)
        }
        self.before = [(name, value, value.copy()) for name, value in reached.values()]

    def put_back(self) -> str | None:
        """The name of one that has changed; all are put back."""
        changed = None
        for name, value, before in self.before:
            if _items(value) != _items(before):
                changed = name
                value.clear()
                value.extend(before) if isinstance(value, list) else value.update(before)
        return changed


def _items(container) -> list[int]:
    """Which objects a container has, in order."""
    values = container.values() if isinstance(container, dict) else []
    return [id(each) for each in (*container, *values)]
