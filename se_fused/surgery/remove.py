"""``remove_se``, which undoes ``insert_se``."""

from torch import nn

from se_fused.surgery.attach_se import MARK, BlockWithSE, is_sequential
from se_fused.surgery.class_swap import kind_of, library_of
from se_fused.surgery.report import Entry, Report, check_model, path_of

_CHANGED = "the class of what calls it was changed after insert_se: unfuse or unwrap that first"
_MOVED = "it is not where insert_se put it"


def remove_se(model: nn.Module) -> Report:
    """Undoes ``insert_se``, in place: children, classes and attributes are what they were.

    Returns:
        A report of the SE blocks removed (as ``replaced``) and of those left, which were moved, or
        whose blocks were fused (``unfuse`` first) or wrapped after ``insert_se``.
    """
    check_model(model)
    report = Report("removed")
    for path, parent in list(model.named_modules()):
        for name, child, reason in _removed_from(parent):
            entry = Entry(f"{path}.{name}".lstrip("."), path_of(type(child)), reason)
            (report.replaced if reason is None else report.left).append(entry)
    return report


def _removed_from(parent: nn.Module) -> list[tuple[str, nn.Module, str | None]]:
    """The SE blocks of a module, removed or with the reason why they are left."""
    found = []
    if kind_of(type(parent)) is BlockWithSE:
        for insertion in type(parent).__insertions__:
            child = parent._modules.pop(insertion.se, None)
            found += [(insertion.se, child, None)] if child is not None else []
        parent.__class__ = library_of(type(parent))
    for name, child in list(parent._modules.items()):
        if is_inserted(child):
            reason = _CHANGED if isinstance(parent, (BlockWithSE, nn.Sequential)) else _MOVED
            found.append((name, child, None if is_sequential(parent) else reason))
            if is_sequential(parent):
                del parent._modules[name]
        elif child is not None and list(child._modules) == ["se"] and is_sequential(child):
            se = child.se
            if is_inserted(se):  # on an identity branch, which was None
                del child._modules["se"], parent._modules[name]
                setattr(parent, name, None)
                found.append((f"{name}.se", se, None))
    return found


def is_inserted(module: nn.Module | None) -> bool:
    return MARK in vars(module) if module is not None else False
