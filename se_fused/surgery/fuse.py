"""``fuse``, which fuses SE with the layers around it, and ``unfuse``, which undoes it."""

from torch import nn
from torch.fx import Graph

from se_fused.module import FusedSE
from se_fused.surgery.blocks import FusedBlock, fuse_block, unfuse_block
from se_fused.surgery.graph import containers, is_layer_with_se, trace
from se_fused.surgery.pattern import Match, Outside, check_se, find
from se_fused.surgery.report import Entry, Fused, Left, Report, path_of


def fuse(model: nn.Module) -> Report:
    """Fuses SE with the BatchNorm, activation, residual and ReLU around it, in place.

    ``replace_se(model); print(fuse(model))``: where a block's forward is BatchNorm → (ReLU, SiLU or
    hardswish) → FusedSE → (+ residual) → (ReLU), these run as one function. The block is the same
    object with another forward: parameters, state-dict keys and attributes are what they were, and
    a layer of another class put in the place of one of these runs by the library's forward.
    ``unfuse(model)`` undoes it.

    The forward of each block is read by torch.fx. One that it cannot read, that is another in
    training than in eval mode, or whose layers have hooks, parametrizations or a patched forward,
    is left, with the reason in the report. A change to plain attributes of a block (a flag that its
    forward asks for) is not seen; ``unfuse`` before it and ``fuse`` after it.

    Args:
        model: any module. Only FusedSE modules are looked at: call ``replace_se`` first.

    Returns:
        A report of the blocks that are fused now (as ``replaced``), each with what its fusion
        covers, and of the SE modules left; it prints as a table.

    Raises:
        TypeError: model is no module.
    """
    _check_model(model)
    search = _Search(model)
    for name, module in search.modules.items():
        if isinstance(module, FusedSE):
            search.add(name, module)
    return search.fuse()


class _Search:
    """The blocks of a model, each with the names of the SE modules that are fused in it."""

    def __init__(self, model: nn.Module):
        self.modules = dict(model.named_modules())
        self.blocks: dict[str, list[str]] = {}
        self.reasons: dict[str, str] = {}
        self.graphs: dict[str, Graph | Left] = {}
        self.fused = {
            _join(name, inner)
            for name, module in self.modules.items()
            if isinstance(module, FusedBlock) and module._fusion is not None
            for inner in module._fusion.names
        }

    def add(self, name: str, module: FusedSE):
        try:
            if name in self.fused:
                raise Left("it is fused already")
            check_se(module)
            self.blocks.setdefault(self._block_of(name), []).append(name)
        except Left as reason:
            self.reasons[name] = str(reason)

    def _block_of(self, name: str) -> str:
        """The smallest module around it that can be fused, or a larger one with more to fuse."""
        best, most, reason = None, "", Left("no forward around it calls it")
        for block in _around(name):
            try:
                match = self._match(block, name)
            except Outside as outside:
                reason = outside
                continue
            except Left as left:
                reason = left
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
        is_no_block = type(module).forward is nn.Module.forward  # nn.ModuleList
        if is_no_block or is_layer_with_se(module):
            raise Outside("no forward around it calls it")
        if block not in self.graphs:
            try:
                self.graphs[block] = trace(module, containers(module))
            except Left as reason:
                self.graphs[block] = reason
        graph = self.graphs[block]
        if isinstance(graph, Left):
            raise graph
        return find(module, graph, _inside(block, name))

    def fuse(self) -> Report:
        fused = {}
        for block in sorted(self.blocks, key=len, reverse=True):  # the inner before the outer
            module, names = self.modules[block], self.blocks[block]
            entry = Entry(block or "(model)", path_of(type(module)))
            earlier = module._fusion.names if isinstance(module, FusedBlock) else ()
            try:
                fusion = fuse_block(module, (*earlier, *(_inside(block, name) for name in names)))
            except Left as reason:
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
    _check_model(model)
    report = Report("unfused")
    for name, module in model.named_modules():
        if not isinstance(module, FusedBlock):
            continue
        if "library" not in vars(type(module)):
            reason = "its class was changed after fuse"
            report.left.append(Entry(name or "(model)", path_of(type(module)), reason))
        else:
            fusion = unfuse_block(module)
            entry = Fused(name or "(model)", path_of(type(module)), "")
            if fusion is not None:
                report.replaced += [entry._replace(covers=c) for c in fusion.covers.values()]
    return report


def _check_model(model: nn.Module):
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
