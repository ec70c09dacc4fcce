"""A method compiled again from its source, with calls put around some of its expressions.

The new one has the globals, the closure, the defaults, the decorators and the lines of the old one,
and a source of its own, which inspect, torch.jit.script, torch.compile and tracebacks show.
"""

import __future__

import ast
import functools
import inspect
import itertools
import linecache
import types
from collections.abc import Callable, Iterable
from typing import NamedTuple

_numbers = itertools.count()


class Wrap(NamedTuple):
    """To be put around an expression: the opening, and a closing parenthesis."""

    node: ast.expr
    opening: str
    is_outer: bool = False  # where another one is put around the same expression


class Source:
    """The text of a method and its syntax tree; raises ValueError where there is none."""

    def __init__(self, method: Callable):
        self.method, self.function = method, inspect.unwrap(method)
        name, code = self.function.__qualname__, self.function.__code__
        try:
            lines, self.first_line = inspect.getsourcelines(self.function)
            self.text = "".join(lines)
            self.tree = self._parse(self.text)
        except (OSError, TypeError, SyntaxError) as error:
            raise ValueError(f"{name} has no source") from error
        if not isinstance(self.tree, ast.FunctionDef):
            raise ValueError(f"{name} is no def")
        again = self._compile(self.text, code.co_filename)
        if _names_and_constants(again) != _names_and_constants(code):
            raise ValueError(f"{name} is not what its source file says")

    def with_wraps(self, wraps: Iterable[Wrap]) -> Callable:
        """The method with these in it."""
        file = f"<{self.function.__qualname__} with SE, {next(_numbers)}>"
        text = _insert(self.text, self.first_line, wraps)
        function = _of_code(self._compile(text, file), self.function)
        if self.method is not self.function:
            function = self._decorate(function)
        shown = "\n" * (self.first_line - 1) + text
        linecache.cache[file] = len(shown), None, shown.splitlines(keepends=True), file
        return function

    def _parse(self, text: str) -> ast.stmt:
        """The tree, with the line numbers of the file."""
        is_indented = text[:1].isspace()
        tree = ast.parse("if True:\n" + text if is_indented else text).body[0]
        tree = tree.body[0] if is_indented else tree
        return ast.increment_lineno(tree, self.first_line - 1 - is_indented)

    def _compile(self, text: str, file: str) -> types.CodeType:
        """Inside a function with the free variables, and inside a class of the name of the
        method's own, by which ``super()`` and ``self.__private`` are compiled."""
        code, function = self.function.__code__, self._parse(text)
        free = ", ".join(name for name in code.co_freevars if name != "__class__")
        cls = _class_name(self.function)
        around = ast.parse(f"def scope({free}):\n class {cls or '_'}:\n  pass")
        scope = around.body[0]
        (scope.body[0] if cls else scope).body = [function]
        flags = code.co_flags & __future__.annotations.compiler_flag
        found = compile(around, file, "exec", flags, dont_inherit=True)
        for name in ("scope", *([cls] if cls else ()), function.name):
            found = next(c for c in found.co_consts if getattr(c, "co_name", None) == name)
        return found

    def _decorate(self, function: Callable) -> Callable:
        name = self.function.__qualname__
        if not self.tree.decorator_list:
            raise ValueError(f"{name} is wrapped in another function")
        for decorator in reversed(self.tree.decorator_list):
            code = compile(ast.Expression(decorator), name, "eval")
            try:
                function = eval(code, self.function.__globals__)(function)
            except Exception as error:  # whatever a decorator raises
                raise ValueError(f"{name} cannot be decorated again: {error}") from error
        return function


def _names_and_constants(code: types.CodeType) -> list:
    """What two codes of one source have in common; instructions depend on what is around it."""
    inner = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    constants = [repr(c) for c in code.co_consts if c not in inner]
    return [code.co_names, code.co_varnames, constants, *map(_names_and_constants, inner)]


def _class_name(function: Callable) -> str | None:
    """Of the class in whose body the function stands."""
    outer = function.__qualname__.split(".")[-2:-1]
    return outer[0] if outer and outer != ["<locals>"] else None


def _insert(text: str, first_line: int, wraps: Iterable[Wrap]) -> str:
    lines = [line.encode() for line in text.split("\n")]  # columns count bytes
    places = []
    for node, opening, is_outer in wraps:
        end = node.end_lineno, node.end_col_offset
        order = -end[0], -end[1], not is_outer  # at one place: the outer one first
        places += [((node.lineno, node.col_offset), order, opening), (end, (), ")")]
    for (line, column), _, piece in sorted(places, reverse=True):
        before = lines[line - first_line]
        lines[line - first_line] = before[:column] + piece.encode() + before[column:]
    return b"\n".join(lines).decode()


def _of_code(code: types.CodeType, old: types.FunctionType) -> types.FunctionType:
    """A function with the code, and everything else of the old one's."""
    cells = dict(zip(old.__code__.co_freevars, old.__closure__ or ()))
    closure = tuple(cells[name] for name in code.co_freevars)
    new = types.FunctionType(code, old.__globals__, old.__name__, old.__defaults__, closure)
    new.__kwdefaults__ = old.__kwdefaults__
    functools.update_wrapper(new, old)
    del new.__wrapped__
    return new
