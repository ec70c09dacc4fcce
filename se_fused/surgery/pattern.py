"""What is fused, as found in a block's graph: BatchNorm → act → SE → + residual → ReLU."""

import operator
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import Graph, Node

from se_fused.activations import NORM_ACTS, function_name
from se_fused.modules.batch_norm_se import BATCH_NORMS
from se_fused.modules.layers import layers_of, names_of
from se_fused.modules.se import FusedSE
from se_fused.surgery.candidates import described
from se_fused.surgery.fused_end import norm_with_act
from se_fused.surgery.graph import IN_PLACE, may_write, name_of
from se_fused.surgery.report import NotFusible, path_of

_ACTS = tuple(name for name in NORM_ACTS if name != "identity")
_ADDS = (operator.add, torch.add, "add")
_ADDS_IN_PLACE = (IN_PLACE["iadd"], "add_")
_RELUS = (F.relu, torch.relu, torch.relu_, "relu", "relu_")


class NeedsOuterBlock(NotFusible):
    """The block has only a part of it: an enclosing module may have it all."""


@dataclass
class Match:
    """Calls in a block's graph that become one; modules are given by their name in the block."""

    se: str
    nodes: list[Node]
    x: Node = None
    bn: str = ""
    act: str | Callable | None = None
    act_name: str | None = None
    residual: Node | None = None
    in_place: bool = False
    post: str | Callable | None = None
    between: list[str] = field(default_factory=list)  # nn.Identity

    @property
    def covers(self) -> str:
        steps = ["BatchNorm", self.act_name, "SE"]
        steps += ["add" if self.residual else None, "relu" if self.post else None]
        return " + ".join(filter(None, steps))

    @property
    def modules(self) -> list[str]:
        called = [name for name in (self.act, self.post) if isinstance(name, str)]
        return [self.bn, *called, self.se, *self.between]

    @property
    def returned(self) -> bool:
        """Whether the result is the block's: what stands around the block may go on with it."""
        users = list(self.nodes[-1].users)
        return [user.op for user in users] == ["output"] and users[0].args == (self.nodes[-1],)


def find(block: nn.Module, graph: Graph, se: str) -> Match:
    """The calls around an SE module that can be fused; raises NotFusible where there are none."""
    calls = _calls(graph, se)
    if not calls:
        raise NeedsOuterBlock("no forward around it calls it")
    if len(calls) > 1:
        raise NotFusible("it is called more than once")
    match = Match(se, calls)
    _look_before(block, graph, match)
    _look_after(block, match)
    _check_order(block, graph, match)
    return match


def _calls(graph: Graph, name: str) -> list[Node]:
    return [node for node in graph.nodes if node.op == "call_module" and node.target == name]


def _look_before(block: nn.Module, graph: Graph, match: Match):
    node = _argument(block, match, match.nodes[0])
    module = _module(block, node)
    if node.op == "placeholder":
        raise NeedsOuterBlock("no BatchNorm comes before it")
    act = _act_of(node, module)
    after = ""
    if act is not None:
        match.act_name = function_name(act)
        match.act = node.target if module is not None else act
        after = f"{match.act_name} and "
        _take(match, node)
        node = _argument(block, match, node)
        if node.op == "placeholder":
            raise NeedsOuterBlock("no BatchNorm comes before it")
        module = _module(block, node)
    cls = type(module)
    _check_norm(block, node, cls, after)
    if cls not in BATCH_NORMS:
        _take_own_act(match, node.target, module)
    if len(_calls(graph, node.target)) > 1:
        raise NotFusible("its BatchNorm is called more than once")
    match.bn = node.target
    _take(match, node)
    match.x = _single(node)


def _act_of(node: Node, module: nn.Module | None) -> Callable | None:
    """The activation that a node calls, if it is one that can be fused."""
    if module is not None:
        return module if function_name(module) in _ACTS else None
    if _called(node) in _RELUS:
        act = torch.relu
    elif node.op == "call_function" and function_name(node.target) in _ACTS:
        act = node.target
    else:
        return None
    return act if set(node.kwargs) <= {"inplace"} else None


def _check_norm(block: nn.Module, node: Node, cls: type, after: str):
    if cls in BATCH_NORMS or norm_with_act(cls) is not None:
        return
    module = _module(block, node)
    what = name_of(node) if module is None else described(module, node.target, cls)
    before = next(iter(node.all_input_nodes), node)
    if type(_module(block, before)) in BATCH_NORMS and not after:
        raise NotFusible(f"between its BatchNorm and it stands {what}")
    raise NotFusible(f"before {after}it stands {what}, no BatchNorm of PyTorch's")


def _take_own_act(match: Match, name: str, norm: nn.Module):
    """The activation inside timm's BatchNormAct2d or SyncBatchNormAct."""
    if type(norm.drop) is not nn.Identity:
        raise NotFusible(f"its BatchNorm drops out by {path_of(type(norm.drop))}")
    match.between.append(f"{name}.drop")
    own = function_name(norm.act)
    if own == "identity":
        match.between.append(f"{name}.act")
    elif own not in _ACTS:
        raise NotFusible(f"its BatchNorm's activation is {path_of(type(norm.act))}")
    elif match.act is not None:
        raise NotFusible(f"two activations come before it, {own} and {match.act_name}")
    else:
        match.act_name, match.act = own, f"{name}.act"


def _look_after(block: nn.Module, match: Match):
    node, skipped = _next(block, match.nodes[-1])
    if node is not None and _is_add(node, skipped[-1]):
        (match.residual,) = [other for other in node.args if other is not skipped[-1]]
        match.in_place = _called(node) in _ADDS_IN_PLACE
        _append(match, skipped[1:], node)
        node, skipped = _next(block, node)
    if node is None or node.args != (skipped[-1],) or not set(node.kwargs) <= {"inplace"}:
        return
    if type(_module(block, node)) is nn.ReLU:
        match.post = node.target
    elif _called(node) in _RELUS:
        match.post = torch.relu
    else:
        return
    _append(match, skipped[1:], node)


def _next(block: nn.Module, node: Node) -> tuple[Node | None, list[Node]]:
    """The only user of a node, behind nn.Identity; and the way there."""
    way = [node]
    while len(way[-1].users) == 1:
        (user,) = way[-1].users
        if type(_module(block, user)) is not nn.Identity:
            return user, way
        way.append(user)
    return None, way


def _is_add(node: Node, value: Node) -> bool:
    if node.kwargs or len(node.args) != 2 or not all(isinstance(a, Node) for a in node.args):
        return False
    if node.args[0] is node.args[1]:
        return False
    function = _called(node)
    return function in _ADDS or (function in _ADDS_IN_PLACE and node.args[0] is value)


def _append(match: Match, identities: list[Node], node: Node):
    match.between += [identity.target for identity in identities]
    match.nodes += [*identities, node]


def _argument(block: nn.Module, match: Match, node: Node) -> Node:
    """What a node is called with, behind nn.Identity."""
    value = _single(node)
    while type(_module(block, value)) is nn.Identity:
        match.between.append(value.target)
        _take(match, value)
        value = _single(value)
    return value


def _single(node: Node) -> Node:
    if len(node.all_input_nodes) != 1 or node.args[:1] != tuple(node.all_input_nodes):
        raise NotFusible(f"{name_of(node)} is called with more than a feature map")
    return node.args[0]


def _take(match: Match, node: Node):
    if len(node.users) != 1:
        raise NotFusible(f"the result of {name_of(node)} is used elsewhere too")
    match.nodes.insert(0, node)


def _called(node: Node) -> Callable | str | None:
    """The function, or the name of the method; None for a module."""
    return node.target if node.op in ("call_function", "call_method") else None


def _module(block: nn.Module, node: Node) -> nn.Module | None:
    return block.get_submodule(node.target) if node.op == "call_module" else None


def _check_order(block: nn.Module, graph: Graph, match: Match):
    """All is computed where the last call stands: x and the residual must be the same there."""
    order = list(graph.nodes)
    for node in order[order.index(match.nodes[0]) : order.index(match.nodes[-1])]:
        if node in match.nodes or not {match.x, match.residual} & set(node.all_input_nodes):
            continue
        if may_write(_module(block, node), node):
            raise NotFusible(f"{name_of(node)} may change the feature map before its SE is through")


def check_se(module: FusedSE):
    """Raises NotFusible for SE that is no single operator."""
    form = module.__se_fused__
    if not form.is_se_alone or (type(module).forward is not FusedSE.forward and not form.guard):
        raise NotFusible("its forward is more than SE")
    if form.guard is not None and form.guard.difference(module):
        raise NotFusible(f"it runs its library's forward: {form.guard.difference(module)}")
    names = names_of(layers_of(module, form.paths)) if form.guard is None else form.names
    if form.squeeze(module) != "avg" or form.add_residual or names is None:
        raise NotFusible("it does not run as one operator")
