"""Copies of the methods of a block in which SE is called beside the calls of a layer."""

import ast
import inspect
import types
from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch import nn

from se_fused.surgery.recompile_method import Source, Wrap
from se_fused.surgery.report import path_of


class Insertion(NamedTuple):
    """SE beside a child of a block: ``self.se(self.layer(x))``, or before it."""

    layer: str  # the name of the child; "" is the block itself, whose result goes through SE
    se: str
    before: bool = False


class Method(NamedTuple):
    """A function in the class of a block or in a base of it."""

    cls: type
    name: str
    function: Callable
    is_hidden: bool  # by one of a subclass
    is_property: bool = False

    @property
    def path(self) -> str:
        return f"{self.cls.__qualname__}.{self.name}"


def methods_with_se(library: type[nn.Module], insertions: tuple[Insertion, ...]) -> dict:
    """The methods of a class that change, by name; raises ValueError where SE cannot go there."""
    methods, changed, called = list(_methods(library)), {}, set()
    for method in methods:
        asked = [insertion for insertion in insertions if _may_use(method, insertion.layer)]
        caller = _caller(method, methods)
        if not asked or (method.is_hidden and caller is None):
            continue
        source, wraps = Source(method.function), []
        for insertion in asked:
            found = _wraps(source.tree, method, insertion)
            called |= {insertion} if found else set()
            wraps += found
        if wraps and method.is_hidden:
            raise ValueError(f"{method.path} calls it, and {caller.path} calls that")
        if wraps:
            changed[method.name] = source.with_wraps(wraps)
    for insertion in insertions:
        if insertion not in called:
            raise ValueError(
                f"no method of {path_of(library)} calls self.{insertion.layer}(…)"
                if insertion.layer
                else f"{path_of(library)} has no forward in Python"
            )
    return changed


def _methods(library: type[nn.Module]) -> Iterator[Method]:
    seen = set()
    for cls in library.__mro__:
        if cls in (nn.Module, object):
            continue
        for name, value in vars(cls).items():
            if isinstance(value, types.FunctionType):
                yield Method(cls, name, value, name in seen)
            elif isinstance(value, property) and isinstance(value.fget, types.FunctionType):
                yield Method(cls, name, value.fget, name in seen, is_property=True)
        seen |= vars(cls).keys()


def _may_use(method: Method, layer: str) -> bool:
    if not layer:
        return method.name == "forward" and not method.is_hidden
    return _has_name(inspect.unwrap(method.function).__code__, layer)


def _has_name(code: types.CodeType, name: str) -> bool:
    inner = [each for each in code.co_consts if isinstance(each, types.CodeType)]
    return name in code.co_names + code.co_consts or any(_has_name(each, name) for each in inner)


def _caller(method: Method, methods: list[Method]) -> Method | None:
    """What may call a hidden method, by super() or by the name of its class."""
    for other in methods:
        code = inspect.unwrap(other.function).__code__
        by_class = _has_name(code, "super") or _has_name(code, method.cls.__name__)
        if other.cls is not method.cls and by_class and _has_name(code, method.name):
            return other
    return None


def _wraps(tree: ast.FunctionDef, method: Method, insertion: Insertion) -> list[Wrap]:
    around = _around_calls if insertion.layer else _around_results
    return around(tree, method, insertion)


def _around_calls(tree: ast.FunctionDef, method: Method, insertion: Insertion) -> list[Wrap]:
    """SE around the calls of a layer; raises ValueError where it may be called otherwise."""
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    own = _first_argument(tree)
    calls = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value == insertion.layer:
            is_used = method.name != "__init__" and _is_looked_up(node, parents)
        elif isinstance(node, ast.Attribute) and node.attr == insertion.layer:
            is_own = isinstance(node.value, ast.Name) and node.value.id == own
            parent = parents[node]
            if is_own and isinstance(parent, ast.Call) and parent.func is node:
                calls.append(parent)
            is_used = is_own and not _is_harmless(node, parents)
        else:
            is_used = False
        if is_used:
            raise ValueError(f"{method.path} has {ast.unparse(parents[node])}")
    if method.name == "__init__":
        return []
    if calls and method.is_property:
        raise ValueError(f"the property {method.path} calls it")
    opening = f"{own}.{insertion.se}("
    if not insertion.before:
        return [Wrap(call, opening) for call in calls]
    for call in calls:
        if not call.args or isinstance(call.args[0], ast.Starred):
            raise ValueError(f"{method.path} has {ast.unparse(call)}, without a first argument")
    return [Wrap(call.args[0], opening, is_outer=True) for call in calls]


_QUESTIONS = ("callable", "getattr", "hasattr", "id", "isinstance", "len", "print", "repr", "type")


def _is_harmless(node: ast.Attribute, parents: dict) -> bool:
    """Whether a mention of a layer calls it right there, asks for it or sets it."""
    parent = parents[node]
    if isinstance(node.ctx, (ast.Store, ast.Del)) or isinstance(parent, ast.Compare):
        return True
    if isinstance(parent, ast.Attribute):
        return parent.attr not in ("forward", "__call__")
    if isinstance(parent, ast.Call):
        asks = isinstance(parent.func, ast.Name) and parent.func.id in _QUESTIONS
        return asks or (parent.func is node and not _is_in_text(node, parents))
    while isinstance(parent, (ast.BoolOp, ast.UnaryOp)):
        node, parent = parent, parents[parent]
    return isinstance(node, ast.UnaryOp) or node is getattr(parent, "test", None)


def _is_in_text(node: ast.AST, parents: dict) -> bool:
    """In an f-string, where Python 3.10 and 3.11 do not tell columns."""
    while node in parents:
        node = parents[node]
        if isinstance(node, ast.JoinedStr):
            return True
    return False


def _is_looked_up(node: ast.Constant, parents: dict) -> bool:
    """``getattr(self, "layer")``, ``self._modules["layer"]``"""
    parent = parents[node]
    if isinstance(parent, ast.Call):
        return ast.unparse(parent.func) != "hasattr"
    return isinstance(parent, ast.Subscript)


def _around_results(tree: ast.FunctionDef, method: Method, insertion: Insertion) -> list[Wrap]:
    """SE around what a forward returns."""
    returns = [node for node in _own_statements(tree) if isinstance(node, ast.Return)]
    for node in returns:
        if node.value is None or isinstance(node.value, (ast.Tuple, ast.List, ast.Dict)):
            raise ValueError(f"{method.path} has {ast.unparse(node)}, which is no feature map")
    if not returns:
        raise ValueError(f"{method.path} returns nothing")
    opening = f"{_first_argument(tree)}.{insertion.se}("
    return [Wrap(node.value, opening, is_outer=True) for node in returns]


def _own_statements(node: ast.AST) -> Iterator[ast.AST]:
    """Without those of functions inside."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)):
            yield child
            yield from _own_statements(child)


def _first_argument(tree: ast.FunctionDef) -> str | None:
    arguments = [*tree.args.posonlyargs, *tree.args.args]
    return arguments[0].arg if arguments else None
