"""The graph of a block's forward, traced by torch.fx on a copy that shares the block's tensors."""

import copy
import operator
import threading
from collections import OrderedDict
from collections.abc import Iterable

import torch
from torch import nn
from torch.fx import Graph, Node, Proxy, Tracer
from torch.nn.modules.batchnorm import _BatchNorm

from se_fused.modules.layers import is_plain
from se_fused.modules.se import FusedSE
from se_fused.surgery.attribute_reads import SavedContainers
from se_fused.surgery.comparison import (
    RandomStates,
    attributes_of,
    changed_attribute,
    first_line,
    without_global_hooks,
)
from se_fused.surgery.report import NotFusible

_DEVICES = ("cpu", "cuda")
_tracing = threading.Lock()  # torch.fx patches nn.Module while it traces
_HOOKS = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"
_SHARDED = ("_fsdp_flattened", "ds_id")  # how FSDP and DeepSpeed mark parameters


def sharing_copy(block: nn.Module) -> nn.Module:
    """A copy of the modules and their attributes, with the same parameters and buffers."""
    shared = {id(t): t for t in [*block.parameters(), *block.buffers()]}
    for t in shared.values():
        if not is_plain(t):
            raise NotFusible(f"its block has a {type(t).__name__} among its tensors")
        if any(hasattr(t, mark) for mark in _SHARDED):
            raise NotFusible("its block's parameters are sharded: call fuse before")
    try:
        twin = copy.deepcopy(block, shared)
    except Exception as error:  # whatever a library's attributes raise
        raise NotFusible(f"its block cannot be copied: {first_line(error)}") from error
    for module in twin.modules():  # hooks would be called with what torch.fx traces by
        vars(module).update({name: OrderedDict() for name in _HOOKS})
    return twin


def trace(block: nn.Module, opened: Iterable[nn.Module], given: tuple[str, ...]) -> Graph:
    """The forward of a copy of a block, the same in training and in eval mode.

    Modules in it are nodes, but for the ``opened`` ones, whose own forward is a part of the graph.
    given: the arguments that it is called with; the others are left out.
    """
    attributes, states, saved = attributes_of(block), RandomStates.now(), SavedContainers(block)
    try:
        graphs = []
        for training in (True, False):
            graphs.append(_trace(block, set(opened), given, training))
            if changed_attribute(block, attributes) is not None:
                raise NotFusible("its block's forward sets attributes or makes tensors of its own")
        if RandomStates.now() != states:
            raise NotFusible("its block's forward draws random numbers")
    finally:
        changed = saved.put_back()
        if RandomStates.now() != states:
            states.restore()
    if changed is not None:
        raise NotFusible(f"its block's forward changes {changed}")
    first, second = (graph.python_code("self").src for graph in graphs)
    if first != second:
        raise NotFusible("its block's forward is another in training than in eval mode")
    return graphs[0]


def _in_place(name: str):
    """``x += y`` as a node: torch.fx by itself takes it for ``x = x + y``."""
    operation = getattr(operator, name)

    def apply(x, y):
        return operation(x, y)

    def record(proxy: Proxy, other) -> Proxy:
        return proxy.tracer.create_proxy("call_function", apply, (proxy, other), {})

    apply.__name__ = name
    return apply, record


_NAMES = "iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor"
_RECORDED = {name: _in_place(name) for name in _NAMES}
IN_PLACE = {name: apply for name, (apply, _) in _RECORDED.items()}
_METHODS = {f"__{name}__": record for name, (_, record) in _RECORDED.items()}
OwnProxy = type("OwnProxy", (Proxy,), _METHODS)


class _Tracer(Tracer):
    proxy_buffer_attributes = True

    def __init__(self, opened: set[nn.Module], given: tuple[str, ...]):
        super().__init__(autowrap_modules=())  # else it patches math while it traces
        self.opened, self.given = opened, given
        self.context = _context()

    def create_args_for_root(self, root_fn, is_module, concrete_args=None):
        proxies = {name: self.create_proxy("placeholder", name, (), {}) for name in self.given}
        return (lambda: root_fn(self.root, **proxies)), []

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m not in self.opened

    def proxy(self, node: Node) -> Proxy:
        return OwnProxy(node, self)

    def create_node(self, *args, **kwargs) -> Node:
        if _context() != self.context:  # the graph would not have it
            raise NotFusible("its block's forward switches gradients or autocast")
        return super().create_node(*args, **kwargs)


def _context() -> tuple[bool, ...]:
    return torch.is_grad_enabled(), *map(torch.is_autocast_enabled, _DEVICES)


def _trace(block: nn.Module, opened: set, given: tuple[str, ...], training: bool) -> Graph:
    """With everything on in training mode and off in eval mode, so that a switch is seen."""
    before = _context()
    for module in block.modules():
        vars(module)["training"] = training
    try:
        _switch(training, training, training)
        with _tracing, without_global_hooks():
            return _Tracer(opened, given).trace(block)
    except NotFusible:
        raise
    except Exception as error:  # whatever a library's forward raises
        raise NotFusible(f"its block's forward cannot be traced: {first_line(error)}") from error
    finally:
        _switch(*before)


def _switch(gradients: bool, *autocast: bool):
    torch.set_grad_enabled(gradients)
    for device, enabled in zip(_DEVICES, autocast):
        torch.set_autocast_enabled(device, enabled)


def containers(block: nn.Module) -> set[nn.Module]:
    """The modules inside the block that have BatchNorm or SE in them."""
    kinds = (_BatchNorm, FusedSE)
    return {
        module
        for module in block.modules()
        if module is not block
        and not isinstance(module, kinds)
        and any(isinstance(inner, kinds) for inner in module.modules())
    }


def may_write(module: nn.Module | None, node: Node) -> bool:
    """Whether a call may change what it is given."""
    if module is not None:
        return any(getattr(inner, "inplace", False) for inner in module.modules())
    name = name_of(node)
    is_named_so = name.endswith("_") and not name.endswith("__")
    return is_named_so or node.target in IN_PLACE.values() or bool(node.kwargs.get("inplace"))


def name_of(node: Node) -> str:
    return node.target if isinstance(node.target, str) else node.target.__name__
