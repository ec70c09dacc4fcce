"""The forward of a block with fused calls in it: the code of its rewritten graph.

It looks the block's layers up at each call, so one may be put in the place of another of its class.
"""

from collections.abc import Callable, Iterable

from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from se_fused.modules.layers import has_hooks
from se_fused.surgery.call_forms import FusedCalls, Signature
from se_fused.surgery.comparison import description, first_line, once
from se_fused.surgery.fused_end import fused_end, synchronised_or_not
from se_fused.surgery.graph import containers, sharing_copy, trace
from se_fused.surgery.guard import Guard, guard_of
from se_fused.surgery.pattern import Match, check_se, find
from se_fused.surgery.report import NotFusible
from se_fused.surgery.verify_block import verify_block


class Fusion:
    """The forward of a block with its fused calls; the same for every copy of the block."""

    def __init__(self, names: tuple[str, ...]):
        self.names = names  # of the SE modules in the block
        self.covers: dict[str, str] = {}
        self.calls: FusedCalls | None = None

    def difference(self, block: nn.Module) -> str | None:
        """Why the block is not what it was when it was fused."""
        if self.calls is None:
            return "it could not be fused where it was loaded"
        differences = [guard.difference(block) for guard, _ in self.calls.functions.values()]
        return None if None in differences else differences[0]

    def __deepcopy__(self, memo) -> "Fusion":
        return self

    def __reduce__(self):  # to be built anew where it is loaded
        return Fusion, (self.names,)


def build(
    block: nn.Module,
    names: tuple[str, ...],
    examples: list[tuple] = (),
    verified: dict | None = None,
) -> Fusion:
    """The forward of a block with fused calls for these SE modules, once it is verified.

    examples: calls of the block to verify it with, each args and kwargs.
    verified: the results of other blocks, to which this one is added. Raises NotFusible.
    """
    for name in names:
        check_se(block.get_submodule(name))
    signature = Signature(type(block))
    seen, verified = _seen(signature, examples), {} if verified is None else verified
    call_forms = dict.fromkeys([*((*given,) for given in seen), *signature.call_forms()])
    fusion, functions, reasons = Fusion(names), {}, []
    for call_form in call_forms:
        try:
            matches, opened, code, function = _rewritten(block, names, call_form)
            guard = _guard(block, opened, matches)
            alike = [g for g in seen if (*g,) == call_form]
            shapes = [[tuple(t.shape) for t in given.values()] for given in alike]
            key = guard.signature, names, call_form, code, description(block), repr(shapes)
            once(verified, key, verify_block, block, call_form, function, alike)
        except NotFusible as reason:
            reasons.append(reason)
            continue
        except Exception as error:  # whatever a library's classes raise
            reasons.append(NotFusible(f"its block could not be looked at: {first_line(error)}"))
            continue
        fusion.covers = fusion.covers or {match.se: match.covers for match in matches}
        functions[call_form] = guard, function
    if not functions:
        raise reasons[0]
    fusion.calls = FusedCalls(signature, functions)
    return fusion


def _seen(signature: Signature, examples: list[tuple]) -> list[dict]:
    """What was given in calls with tensors alone."""
    found = [signature.given(*example) for example in examples]
    return [g for g in found if g and all(isinstance(t, Tensor) for t in g.values())]


def _rewritten(
    block: nn.Module, names: tuple[str, ...], call_form: tuple[str, ...]
) -> tuple[list[Match], list[str], str, Callable]:
    twin = sharing_copy(block)
    graph = trace(twin, containers(twin), call_form)
    opened = _around(find(twin, graph, name) for name in names)
    graph = trace(twin, [twin.get_submodule(name) for name in opened], call_form)
    matches = [find(twin, graph, name) for name in names]
    _check_modules(block, opened, matches)
    for name in names:  # found anew, as the last call is a part of the graph now
        _rewrite(graph, find(twin, graph, name))
    code = graph.python_code("self")
    exec(compile(code.src, f"<fused {block._get_name()}>", "exec"), code.globals)
    return matches, opened, code.src, code.globals["forward"]


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
        if parametrize.is_parametrized(module):
            blocker = "is parametrized"
        elif name in opened and "__fusion__" in vars(module):
            blocker = "is fused by itself"
        elif has_hooks(module):
            blocker = "has hooks"
        elif "forward" in vars(module):
            blocker = "has a patched forward"
        else:
            continue
        raise NotFusible(f"{name or 'its block'} {blocker}")


def _guard(block: nn.Module, opened: list[str], matches: list[Match]) -> Guard:
    norms, watched = {}, {"", *opened}
    for match in matches:
        norms[match.bn] = synchronised_or_not(type(block.get_submodule(match.bn)))
        watched |= {*match.modules} - {match.se}

    def classes(module: nn.Module) -> tuple[type, ...]:
        cls = type(module)
        return synchronised_or_not(cls) if isinstance(module, _BatchNorm) else (cls,)

    called = {
        path: classes(module)
        for path, module in block.named_modules(remove_duplicate=False)
        if path not in watched
    }
    return guard_of(block, called, norms)


def _rewrite(graph: Graph, match: Match):
    """Puts one call of ``fused_end`` in the place of the calls of a match."""

    def node_of(step: str | Callable | None) -> Node | None:
        if step is None or isinstance(step, str):
            return step and graph.get_attr(step)

        def function():
            return step

        return graph.call_function(function)

    last = match.nodes[-1]
    with graph.inserting_before(last):
        bn, act, se, post = map(node_of, (match.bn, match.act, match.se, match.post))
        y = graph.call_function(fused_end, (bn, act, se, match.x, match.residual, post))
        if match.in_place:  # x += residual keeps the dtype of x
            y = graph.call_method("type_as", (y, match.x))
    last.replace_all_uses_with(y)
    for node in reversed(match.nodes):
        graph.erase_node(node)
