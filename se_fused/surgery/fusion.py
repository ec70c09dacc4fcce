"""The forward of a block with fused calls in it: the code of its rewritten graph.

It looks the block's layers up at each call, so one may be put in the place of another.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from torch import nn
from torch.fx import Graph, Node
from torch.nn.utils import parametrize

from se_fused.layers import has_hooks
from se_fused.norm import BATCH_NORMS, batch_norm_se
from se_fused.surgery.graph import containers, trace
from se_fused.surgery.pattern import Match, check_se, find
from se_fused.surgery.report import Left


class Guard(NamedTuple):
    """What the graph takes for granted of a module in the block, given by its path."""

    path: tuple[str, ...]
    classes: tuple[type, ...]
    children: int | None = None  # of a module whose forward is a part of the graph


class Fusion:
    """The forward of a block with its fused calls; the same for every copy of the block."""

    def __init__(self, names: tuple[str, ...]):
        self.names = names  # of the SE modules in the block
        self.covers: dict[str, str] = {}
        self.children = 0  # of the block
        self.guards: tuple[Guard, ...] = ()
        self.function: Callable | None = None

    def holds(self, block: nn.Module) -> bool:
        if len(block._modules) != self.children:
            return False
        for path, classes, children in self.guards:
            module = block
            for name in path:
                module = module._modules.get(name)
                if module is None:
                    return False
            if type(module) not in classes or "forward" in module.__dict__ or has_hooks(module):
                return False
            if children is not None and len(module._modules) != children:
                return False
        return True

    def __deepcopy__(self, memo) -> "Fusion":
        return self

    def __reduce__(self):
        return Fusion, (self.names,)


def obstacle(module: nn.Module) -> str | None:
    """Why a call of a module is more than its class's forward."""
    if has_hooks(module):
        return "has hooks"
    if "forward" in vars(module):
        return "has a patched forward"
    return None


def build(block: nn.Module, names: tuple[str, ...]) -> Fusion:
    """The forward of a block with fused calls for these SE modules; raises Left."""
    for name in names:
        check_se(block.get_submodule(name))
    graph = trace(block, containers(block))
    opened = _around(find(block, graph, name) for name in names)
    graph = trace(block, [block.get_submodule(name) for name in opened])
    matches = [find(block, graph, name) for name in names]
    _check_modules(block, opened, matches)
    fusion = Fusion(names)
    fusion.children = len(block._modules)
    fusion.guards = (*_guards(block, opened, matches),)
    fusion.covers = {match.se: match.covers for match in matches}
    for name in names:  # found anew, as the last call is a part of the graph now
        _rewrite(graph, find(block, graph, name))
    code = graph.python_code("self")
    exec(compile(code.src, f"<fused {block._get_name()}>", "exec"), code.globals)
    fusion.function = code.globals["forward"]
    return fusion


def _around(matches: Iterable[Match]) -> list[str]:
    """The modules in the block that have a part of a match in them."""
    parents = set()
    for match in matches:
        names = [name.split(".") for name in match.modules]
        parents |= {".".join(name[:end]) for name in names for end in range(1, len(name))}
        parents.discard(match.bn)  # it has its activation in it
    return sorted(parents)


def _check_modules(block: nn.Module, opened: list[str], matches: list[Match]):
    for name in ["", *opened, *(name for match in matches for name in match.modules)]:
        module = block.get_submodule(name)
        reason = obstacle(module)
        if parametrize.is_parametrized(module):
            reason = "is parametrized"
        elif name in opened and "_fusion" in vars(module):
            reason = "is fused by itself"
        if reason is not None:
            raise Left(f"{name or 'its block'} {reason}")


def _guards(block: nn.Module, opened: list[str], matches: list[Match]) -> Iterable[Guard]:
    for name in opened:
        module = block.get_submodule(name)
        yield Guard(tuple(name.split(".")), (type(module),), len(module._modules))
    for name in {name: None for match in matches for name in match.modules}:
        cls = type(block.get_submodule(name))
        yield Guard(tuple(name.split(".")), tuple(BATCH_NORMS) if cls in BATCH_NORMS else (cls,))


def _rewrite(graph: Graph, match: Match):
    """Puts one call of ``batch_norm_se`` in the place of the calls of a match."""

    def node_of(step: str | Callable | None) -> Node | None:
        if step is None or isinstance(step, str):
            return step and graph.get_attr(step)

        def function():
            return step

        return graph.call_function(function)

    last = match.nodes[-1]
    with graph.inserting_before(last):
        bn, act, se, post = map(node_of, (match.bn, match.act, match.se, match.post))
        y = graph.call_function(batch_norm_se, (bn, act, se, match.x, match.residual, post))
        if match.in_place:  # x += residual keeps the dtype of x
            y = graph.call_method("type_as", (y, match.x))
    last.replace_all_uses_with(y)
    for node in reversed(match.nodes):
        graph.erase_node(node)
