"""``fuse``, which fuses SE with the layers around it, and ``unfuse``, which undoes it."""

import copy
from typing import NamedTuple

import torch
from torch import nn
from torch.fx import Graph

from se_fused.modules.se import FusedSE
from se_fused.surgery.call_forms import Signature
from se_fused.surgery.class_swap import library_of
from se_fused.surgery.comparison import first_line
from se_fused.surgery.fused_block import FusedBlock, fuse_block, unfuse_block
from se_fused.surgery.graph import containers, sharing_copy, trace
from se_fused.surgery.pattern import Match, NeedsOuterBlock, check_se, find
from se_fused.surgery.report import Entry, Fused, NotFusible, Report, check_model, path_of


def fuse(model: nn.Module, *, example_inputs=None) -> Report:
    """Fuses SE with the BatchNorm, activation, residual and ReLU around it, in place.

    ``replace_se(model); print(fuse(model))``: where a block's forward is BatchNorm → (ReLU, SiLU or
    hardswish) → FusedSE → (+ residual) → (ReLU), these run as one function. The block is the same
    object with another forward: parameters, state-dict keys and attributes are what they were, and
    a layer of another class put in the place of one of these runs by the library's forward.
    ``unfuse(model)`` undoes it.

    The forward of each block is read by torch.fx, and then verified: a block is fused only if
    copies of it with random parameters, as it is and fused, agree in float64 in results, gradients,
    running statistics and random numbers drawn, in training and in eval mode, at two sizes, with
    optional arguments left out and given. One that cannot be read or verified, whose layers have
    hooks, parametrizations or a patched forward, or that reads what may change unseen, is left,
    with the reason in the report. Where something that a fused block relies on changes later (a
    flag, a layer's class, a hook), its library's forward runs, once with a warning; ``fuse`` again
    fuses what it is then.

    Args:
        model: any module. Only FusedSE modules are looked at: call ``replace_se`` first.
        example_inputs: what to call the model with, a tensor or a tuple of arguments, where blocks
            take inputs that cannot be made from their layers: a copy of the model runs once, and
            each block is verified with inputs of the shapes that it gets there.

    Returns:
        A report of the blocks that are fused now (as ``replaced``), each with what its fusion
        covers, and of the SE modules left; it prints as a table.

    Raises:
        TypeError: model is no module; whatever the model raises with ``example_inputs``.
    """
    check_model(model)
    search = _Search(model, {} if example_inputs is None else _recorded(model, example_inputs))
    for name, module in search.modules.items():
        if isinstance(module, FusedSE):
            search.add(name, module)
    return search.fuse()


def _recorded(model: nn.Module, inputs) -> dict[str, list[tuple]]:
    """What each module of a model is called with: args and kwargs of its first calls."""
    twin, calls = copy.deepcopy(model).eval(), {}

    def look(name):
        def hook(module, args, kwargs):
            calls.setdefault(name, []).append((args, kwargs))

        return hook

    for name, module in twin.named_modules():
        module.register_forward_pre_hook(look(name), with_kwargs=True)
    with torch.no_grad():
        twin(*inputs) if isinstance(inputs, (tuple, list)) else twin(inputs)
    return calls


class _Traced(NamedTuple):
    """A copy of a block, and its forward."""

    block: nn.Module
    graph: Graph


class _Search:
    """The blocks of a model, each with the names of the SE modules that are fused in it."""

    def __init__(self, model: nn.Module, recorded: dict[str, list[tuple]]):
        self.recorded = recorded
        self.modules = dict(model.named_modules())
        self.blocks: dict[str, list[str]] = {}
        self.reasons: dict[str, str] = {}
        self.traced: dict[str, list[_Traced] | NotFusible] = {}
        self.fused = set()
        for name, module in self.modules.items():
            if not isinstance(module, FusedBlock) or library_of(type(module)) is None:
                continue
            if module.__fusion__ is None:
                continue
            if _is_outdated(module):
                unfuse_block(module)
            else:
                self.fused |= {_join(name, inner) for inner in module.__fusion__.names}

    def add(self, name: str, module: FusedSE):
        try:
            if name in self.fused:
                raise NotFusible("it is fused already")
            check_se(module)
            self.blocks.setdefault(self._block_of(name), []).append(name)
        except NotFusible as reason:
            self.reasons[name] = str(reason)

    def _block_of(self, name: str) -> str:
        """The smallest module around it that can be fused, or a larger one that fuses more."""
        best, most, reason = None, "", NotFusible("no forward around it calls it")
        for block in _around(name):
            try:
                match = self._match(block, name)
            except NeedsOuterBlock as needed:
                reason = needed
                continue
            except NotFusible as blocker:
                reason = blocker
                break
            if len(match.covers) > len(most):
                best, most = block, match.covers
            if match.post or not match.returned:
                break
        if best is None:
            raise reason
        return best

    def _match(self, block: str, name: str) -> Match:
        module = self.modules[block]
        if type(module).forward is nn.Module.forward:  # nn.ModuleList
            raise NeedsOuterBlock("no forward around it calls it")
        if block not in self.traced:
            self.traced[block] = _traced(module)
        found, reason = self.traced[block], None
        if isinstance(found, NotFusible):
            raise found
        for twin, graph in found:
            try:
                return find(twin, graph, _inside(block, name))
            except NotFusible as blocker:
                reason = reason or blocker
        raise reason

    def fuse(self) -> Report:
        fused, verified = {}, {}
        for block in sorted(self.blocks, key=len, reverse=True):  # the inner before the outer
            module, names = self.modules[block], self.blocks[block]
            cls = library_of(type(module)) or type(module)
            entry = Entry(block or "(model)", path_of(cls))
            earlier = module.__fusion__.names if isinstance(module, FusedBlock) else ()
            inner = *earlier, *(_inside(block, name) for name in names)
            try:
                fusion = fuse_block(module, inner, self.recorded.get(block, []), verified)
            except NotFusible as reason:
                self.reasons |= dict.fromkeys(names, str(reason))
                continue
            for name in names:
                fused[name] = Fused(*entry[:2], fusion.covers[_inside(block, name)])
        return Report(
            "fused",
            [fused[name] for name in self.modules if name in fused],
            [
                Entry(name or "(model)", path_of(type(module)), self.reasons[name])
                for name, module in self.modules.items()
                if name in self.reasons
            ],
        )


def _is_outdated(block: FusedBlock) -> bool:
    """Whether a fused block is not any more what it was when it was fused."""
    if block.__fusion__.difference(block) is not None:
        return True
    try:
        for name in block.__fusion__.names:
            check_se(block.get_submodule(name))
    except NotFusible:
        return True
    return False


def _traced(block: nn.Module) -> list[_Traced] | NotFusible:
    """The forward, for each way to call it for which it can be traced; or why for none."""
    found, reason = [], None
    try:
        for call_form in Signature(type(block)).call_forms():
            twin = sharing_copy(block)
            try:
                found.append(_Traced(twin, trace(twin, containers(twin), call_form)))
            except NotFusible as blocker:
                reason = reason or blocker
    except NotFusible as blocker:
        reason = blocker
    except Exception as error:  # whatever a library's classes raise
        reason = NotFusible(f"its block could not be looked at: {first_line(error)}")
    return found or reason


def _around(name: str) -> list[str]:
    """The names of the modules around a module, the smallest first; the model's own is ""."""
    parts = name.split(".") if name else []
    return [".".join(parts[:end]) for end in reversed(range(len(parts)))]


def _inside(block: str, name: str) -> str:
    return name[len(block) + 1 :] if block else name


def _join(block: str, name: str) -> str:
    return f"{block}.{name}" if block else name


def unfuse(model: nn.Module) -> Report:
    """Undoes ``fuse``, in place: every fused block has its library's forward again.

    Returns:
        A report of the blocks restored (as ``replaced``) and of those left, which were wrapped
        after ``fuse`` (FSDP).
    """
    check_model(model)
    report = Report("unfused")
    for name, module in model.named_modules():
        if not isinstance(module, FusedBlock):
            continue
        if library_of(type(module)) is None:
            reason = "its class was changed after fuse"
            report.left.append(Entry(name or "(model)", path_of(type(module)), reason))
        else:
            fusion = unfuse_block(module)
            if fusion is None:
                continue
            entry = Fused(name or "(model)", path_of(type(module)), "")
            report.replaced += [entry._replace(covers=c) for c in fusion.covers.values()]
    return report
