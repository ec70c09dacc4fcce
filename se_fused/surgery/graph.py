"""The graph of a block's forward, traced by torch.fx without changing the block."""

import operator
import random
from collections.abc import Iterable

import torch
from torch import nn
from torch.fx import Graph, Node, Proxy, Tracer
from torch.nn.modules.batchnorm import _BatchNorm

from se_fused.followed import WithSE
from se_fused.module import FusedSE
from se_fused.surgery.report import Left

_DEVICES = ("cpu", "cuda")


def trace(block: nn.Module, opened: Iterable[nn.Module]) -> Graph:
    """The block's forward, the same in training and in eval mode.

    Modules in it are nodes, but for the ``opened`` ones, whose own forward is a part of the graph.
    """
    modules = list(block.modules())
    attributes = [dict(vars(module)) for module in modules]
    python_state, torch_state = random.getstate(), torch.get_rng_state()
    try:
        graphs = [_trace(block, modules, set(opened), training) for training in (True, False)]
        if any(map(_has_changed, modules, attributes)):
            raise Left("its block's forward sets attributes or makes tensors of its own")
        if random.getstate() != python_state or not torch.get_rng_state().equal(torch_state):
            raise Left("its block's forward draws random numbers")
    finally:
        for module, before in zip(modules, attributes):
            vars(module).clear()
            vars(module).update(before)
        random.setstate(python_state)
        torch.set_rng_state(torch_state)
    first, second = (graph.python_code("self").src for graph in graphs)
    if first != second:
        raise Left("its block's forward is another in training than in eval mode")
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
_Proxy = type("_Proxy", (Proxy,), _METHODS)


class _Tracer(Tracer):
    proxy_buffer_attributes = True

    def __init__(self, opened: set[nn.Module]):
        super().__init__()
        self.opened = opened
        self.context = _context()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m not in self.opened

    def proxy(self, node: Node) -> Proxy:
        return _Proxy(node, self)

    def create_node(self, *args, **kwargs) -> Node:
        if _context() != self.context:  # the graph would not have it
            raise Left("its block's forward switches gradients or autocast")
        return super().create_node(*args, **kwargs)


def _context() -> tuple[bool, ...]:
    return torch.is_grad_enabled(), *map(torch.is_autocast_enabled, _DEVICES)


def _trace(block: nn.Module, modules: list, opened: set[nn.Module], training: bool) -> Graph:
    """With everything on in training mode and off in eval mode, so that a switch is seen."""
    before = _context()
    for module in modules:
        vars(module)["training"] = training
    try:
        _switch(training, training, training)
        return _Tracer(opened).trace(block)
    except Left:
        raise
    except Exception as error:  # whatever a library's forward raises
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        raise Left(f"its block's forward cannot be traced: {what}") from error
    finally:
        _switch(*before)


def _switch(gradients: bool, *autocast: bool):
    torch.set_grad_enabled(gradients)
    for device, enabled in zip(_DEVICES, autocast):
        torch.set_autocast_enabled(device, enabled)


def _has_changed(module: nn.Module, before: dict) -> bool:
    now = vars(module)
    names = (now.keys() | before.keys()) - {"training"}
    return any(name not in now or now[name] is not before.get(name) for name in names)


def containers(block: nn.Module) -> set[nn.Module]:
    """The modules inside the block that have BatchNorm or SE in them."""
    kinds = (_BatchNorm, FusedSE)
    return {
        module
        for module in block.modules()
        if module is not block
        and not isinstance(module, kinds)
        and not is_layer_with_se(module)
        and any(isinstance(inner, kinds) for inner in module.modules())
    }


def is_layer_with_se(module: nn.Module) -> bool:
    return isinstance(module, WithSE) and module.is_layer


def may_write(module: nn.Module | None, node: Node) -> bool:
    """Whether a call may change what it is given."""
    if module is not None:
        return any(getattr(inner, "inplace", False) for inner in module.modules())
    name = name_of(node)
    is_named_so = name.endswith("_") and not name.endswith("__")
    return is_named_so or node.target in IN_PLACE.values() or bool(node.kwargs.get("inplace"))


def name_of(node: Node) -> str:
    return node.target if isinstance(node.target, str) else node.target.__name__
