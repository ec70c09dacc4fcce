"""``replace_se``, which fuses the SE modules of libraries, and ``restore_se``, which undoes it."""

from collections.abc import Iterable

import torch
from torch import nn

from se_fused.modules.se import FusedSE
from se_fused.surgery.candidates import named_modules
from se_fused.surgery.class_swap import library_of
from se_fused.surgery.find_se import find_by_class, find_by_layers
from se_fused.surgery.registry import BY_CLASS, Family
from se_fused.surgery.replaced_se import ReplacedSE, replace_forward, restore_forward
from se_fused.surgery.report import Entry, NotFusible, Report, check_model, path_of
from se_fused.surgery.verify import NO_SE, verify


def replace_se(
    model: nn.Module,
    *,
    optimizers: torch.optim.Optimizer | Iterable[torch.optim.Optimizer] | None = None,
) -> Report:
    """Fuses the SE modules inside a model, in place: ``print(replace_se(model))``.

    A replaced module is the same object with another forward: its parameters, state-dict keys and
    attributes (``m.se.conv_reduce.weight``, ``m.fc[0]``) are what they were, so optimizers keep
    working and checkpoints load strictly both ways. ``restore_se(model)`` undoes it.

    SE modules are known by class (the table in ``surgery/registry.py``) or found by their layers,
    with functions (``F.relu``, ``torch.sigmoid``) for an activation and a gate or with modules.
    Each is verified first: copies of it with random parameters, before and after, must agree in
    float64 in result, gradients and buffers. One that does not, or that has hooks,
    parametrizations, a patched forward, or is a subclass of a known class, is left, with the
    reason in the report.

    Where something that a replaced module relies on changes later (a hook or another layer in it,
    an attribute or a global that its library's forward reads, weights that are no plain tensors),
    or a call has more than a map, its library's forward runs; after a change once with a warning.
    ``replace_se`` again fuses what it is then.

    Args:
        model: any module; it may itself be an SE module.
        optimizers: the optimizers of the model. Nothing in them changes, as parameters stay the
            same objects; given here, they are checked to be this model's.

    Returns:
        A report with the lists ``replaced`` and ``left``; it prints as a table.

    Raises:
        TypeError: model is no module, or optimizers are none.
        ValueError: an optimizer has no parameter of this model, as one built for a copy of it.
    """
    check_model(model)
    _check_optimizers(model, optimizers)
    search = _Search(model)
    search.by_class()
    search.by_layers()
    return search.report()


class _Search:
    """The SE modules of a model, replaced as they are found; one lies never within another."""

    def __init__(self, model: nn.Module):
        self.modules = dict(named_modules(model))
        for module in self.modules.values():
            if _is_outdated(module):
                restore_forward(module)
        self.entries: dict[str, Entry] = {}
        self.verified = {}
        self.settled = {name for name, m in self.modules.items() if isinstance(m, FusedSE)}

    def by_class(self):
        for name, module in self.modules.items():
            if any(_is_within(name, other) for other in self.settled):
                continue
            family, reason = find_by_class(module)
            if family or reason:
                reason = reason or _replaced(module, family, self.verified)
                self._enter(name, module, reason)
                self.settled.add(name)

    def by_layers(self):
        """From the inside out, so that a container of one SE module is not taken for it."""
        for name, module in reversed(self.modules.items()):
            if any(_is_within(name, o) or _is_within(o, name) for o in self.settled):
                continue
            is_known = path_of(type(module)) in BY_CLASS
            try:
                family, reason = find_by_layers(module, self.verified), None
            except NotFusible as blocker:
                family, reason = None, str(blocker)
            if family is None and reason is None:
                if not is_known or _has_fused(module):
                    continue
                reason = "it has not the layers that se_fused knows of its class"
            if family is not None:
                reason = _replaced(module, family, self.verified)
            parts = [other for other in self.entries if _is_within(other, name)]
            if reason is None:  # what was left inside were parts of this
                for other in parts:
                    del self.entries[other]
                self.settled.add(name)
            elif parts or (reason == NO_SE and not is_known):
                continue  # a container, or something else with the layers of SE
            self._enter(name, module, reason)

    def _enter(self, name: str, module: nn.Module, reason: str | None):
        cls = type(module) if reason is not None else library_of(type(module))
        self.entries[name] = Entry(name or "(model)", path_of(cls), reason)

    def report(self) -> Report:
        found = [self.entries[name] for name in self.modules if name in self.entries]
        return Report(
            replaced=[entry for entry in found if entry.reason is None],
            left=[entry for entry in found if entry.reason is not None],
        )


def _replaced(module: nn.Module, family: Family, verified: dict) -> str | None:
    """Replaces a module that can be, else says why not."""
    try:
        form = verify(module, family.kind, family.paths, verified)
        replace_forward(module, family.kind, form)
    except NotFusible as reason:
        return str(reason)
    except Exception as error:  # objects whose class is fixed
        return f"its class cannot be changed: {error}"
    return None


def _has_fused(module: nn.Module) -> bool:
    """Under another name, or it would be settled."""
    return any(isinstance(m, FusedSE) for _, m in named_modules(module))


def _is_outdated(module: nn.Module) -> bool:
    """Whether a replaced module is not any more what it was then."""
    is_replaced = isinstance(module, ReplacedSE) and library_of(type(module)) is not None
    return is_replaced and not module.__se_fused__.intact(module)


def _is_within(name: str, other: str) -> bool:
    """Whether the module called ``name`` is ``other`` or in it; the model itself is called ""."""
    return name == other or other == "" or name.startswith(other + ".")


def restore_se(model: nn.Module) -> Report:
    """Undoes ``replace_se``, in place: every replaced module has its library's forward again.

    Returns:
        A report of the modules restored (as ``replaced``) and those left: modules that were
        built as FusedSE, and such as were wrapped after ``replace_se`` (FSDP).
    """
    check_model(model)
    report = Report("restored")
    for name, module in named_modules(model):
        if not isinstance(module, FusedSE):
            continue
        entry = Entry(name or "(model)", path_of(type(module)))
        if not isinstance(module, ReplacedSE):
            report.left.append(entry._replace(reason="it was built as FusedSE, not replaced"))
        elif library_of(type(module)) is None:
            report.left.append(entry._replace(reason="its class was changed after replace_se"))
        else:
            restore_forward(module)
            report.replaced.append(entry._replace(cls=path_of(type(module))))
    return report


def _check_optimizers(model: nn.Module, optimizers):
    if optimizers is None:
        return
    if isinstance(optimizers, torch.optim.Optimizer):
        optimizers = [optimizers]
    own = {p for _, m in named_modules(model) for p in vars(m).get("_parameters", {}).values()}
    for optimizer in optimizers:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(
                f"optimizers must be torch.optim.Optimizer objects, got {type(optimizer).__name__}"
            )
        if own.isdisjoint(p for group in optimizer.param_groups for p in group["params"]):
            raise ValueError(
                f"optimizers: this {type(optimizer).__name__} has no parameter of the model; "
                "was it built for a copy of it?"
            )
