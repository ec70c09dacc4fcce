"""What a fused forward relies on in a module, recorded once and compared at each call.

A replaced SE module or a fused block computes what its library's forward computes of the layers and
attributes that it had then. Where one of them is another now, the library's own forward runs.
"""

import copy
import types
from collections.abc import Iterable, Mapping
from operator import itemgetter
from typing import NamedTuple

import torch
from torch import nn

from se_fused.modules.layers import has_global_hooks, has_hooks
from se_fused.surgery.attribute_reads import Reads, is_harmless, is_watchable, reads_of
from se_fused.surgery.report import NotFusible, path_of

_OURS = {"__se_fused__", "__fusion__", "__said__", "__on_gate__"}
_LAST = {"__se_fused__", "__fusion__"}  # what is set on a module when it is replaced or fused
_OF_MODULES = {*vars(nn.Module()), "inplace"}
_NONE = types.MappingProxyType({})
_MAY_COME = {"weight", "bias", "_former_parameters", "_is_replica"}  # of FSDP and DataParallel


class Watched(NamedTuple):
    """A module of the subtree: where it is, and what must be as it was."""

    path: str
    parent: int  # the entry that it is a child of
    name: str
    classes: tuple[type, ...]
    is_called: bool = False  # nothing else of it matters: its call is part of what runs
    attributes: int = 0  # how many it has
    last: str | None = None  # the one set last: another where a new one is in the place of one
    get: itemgetter | None = None
    values: tuple = ()  # of plain attributes that its forward reads
    children: tuple[str, ...] | None = None  # None: whatever there is
    names: tuple[str, ...] = ()  # of these attributes
    reads: Reads | None = None


class Guard:
    """Compares a module with what was recorded of it; the same object for all its copies."""

    def __init__(self, entries: Iterable[Watched], values: Iterable[tuple[dict, str, object]]):
        self.root, *self.entries = entries
        self.values = tuple(values)
        watched = [e.classes[0] for e in (self.root, *self.entries) if not e.is_called]
        self.forwards = tuple((cls, cls.forward) for cls in dict.fromkeys(watched))
        self.checks = tuple((entry, *entry[1:10]) for entry in self.entries)

    def difference(self, root: nn.Module) -> str | None:
        """What has changed, if anything."""
        if has_global_hooks():
            return "there are global hooks on the forward of all modules"
        if torch.compiler.is_compiling():
            return self._traced_difference(root)
        try:
            return self._difference(root)
        except KeyError as error:
            return f"{error.args[0]} is gone"
        except (RuntimeError, ValueError, TypeError) as error:  # of a tensor or array among them
            return f"an attribute cannot be compared: {error}"

    def _difference(self, root: nn.Module) -> str | None:
        own = root.__dict__
        entry = self.root
        if len(own) - ("__said__" in own) != entry.attributes or next(reversed(own)) not in _LAST:
            if self._new_attribute(entry, own):
                return self._new_attribute(entry, own)
        if entry.get is not None and entry.get(own) != entry.values:
            return _changed_value(entry, own)
        if tuple(own["_modules"]) != entry.children:
            return "its children are others"
        modules = [root]
        for check in self.checks:
            entry, parent, name, classes, is_called, count, last, get, values, children = check
            module = modules[parent]._modules.get(name)
            if type(module) not in classes:
                return _changed_class(entry, module)
            modules.append(module)
            if is_called:
                continue
            own = module.__dict__
            if (
                own["_forward_hooks"]
                or own["_forward_pre_hooks"]
                or own["_backward_hooks"]
                or own["_backward_pre_hooks"]
            ):
                return f"{entry.path} has hooks"
            if len(own) != count or (last is not None and next(reversed(own)) != last):
                if self._new_attribute(entry, own):
                    return self._new_attribute(entry, own)
            if "forward" in own:
                return f"{entry.path}.forward has been set"
            if get is not None and get(own) != values:
                return _changed_value(entry, own)
            if children is not None and (children or own["_modules"]):
                if tuple(own["_modules"]) != children:
                    return f"the children of {entry.path} are others"
        for cls, forward in self.forwards:
            if cls.forward is not forward:
                return f"the forward of {path_of(cls)} is another"
        for namespace, name, value in self.values:
            if name not in namespace or namespace[name] != value:
                return f"{name} is {_short(namespace.get(name))} now, and was {_short(value)}"
        return None

    def _traced_difference(self, root: nn.Module) -> str | None:
        """The same in steps that torch.compile can trace, and guards."""
        modules = [root]
        for entry in (self.root, *self.entries):
            if entry.path:
                module = modules[entry.parent]._modules.get(entry.name)
                if type(module) not in entry.classes:
                    return f"{entry.path} is of another class"
                modules.append(module)
            else:
                module = root
            if entry.is_called:
                continue
            if entry.path and ("forward" in module.__dict__ or has_hooks(module)):
                return f"{entry.path} has hooks or a forward of its own"
            if any([getattr(module, n) != v for n, v in zip(entry.names, entry.values)]):
                return f"an attribute of {entry.path or 'it'} is another"
            if entry.children is not None and len(module._modules) != len(entry.children):
                return f"the children of {entry.path or 'it'} are others"
        if any([namespace[name] != value for namespace, name, value in self.values]):
            return "a value that its forward reads is another"
        return None

    def _new_attribute(self, entry: Watched, own: dict) -> str | None:
        new = own.keys() - _OF_MODULES - _OURS - _MAY_COME - {*entry.names}
        read = entry.reads.attributes if entry.reads is not None else set()
        for name in sorted(new & (read | {"forward"})):
            return f"{_of(entry)}{name} has been set"
        missing = [name for name in entry.names if name not in own]
        return f"{_of(entry)}{missing[0]} is gone" if missing else None

    @property
    def signature(self) -> str:
        """The same for modules that are alike."""
        entries = [e._replace(reads=None, get=None) for e in (self.root, *self.entries)]
        return repr((entries, [(name, value) for _, name, value in self.values]))

    def __deepcopy__(self, memo) -> "Guard":
        return self

    def __reduce__(self):  # what was recorded here need not hold where it is loaded
        return type(None), ()


_Classes = Mapping[str, tuple[type, ...]]


def guard_of(
    root: nn.Module, called: _Classes = _NONE, norms: _Classes = _NONE
) -> Guard:
    """Of a module with all that is in it; raises NotFusible.

    called, norms: by path, the classes that a module there may have. Only the call of the first
    matters, and nothing in it; the attributes of the others are read anew at each call.
    """
    entries, numbers, values = [], {}, {}
    for path, module in root.named_modules(remove_duplicate=False):
        parent, _, name = path.rpartition(".")
        if path and parent not in numbers:
            continue  # inside of what is only called
        if path in called:
            entries.append(Watched(path, numbers[parent], name, called[path], is_called=True))
            continue
        numbers[path] = len(entries)
        reads = reads_of(type(module))
        if reads.sets_globals:
            raise NotFusible(f"the forward of a {path_of(type(module))} sets globals")
        own = vars(module)
        plain = own.keys() - _OF_MODULES - _OURS
        names = tuple(name for name in own if name in plain and name in reads.attributes)
        if path in norms:
            names = ()
        for each in names:
            if not is_watchable(own[each]):
                raise NotFusible(_reason(f"{path}.{each}".lstrip("."), own[each]))
        is_pytorch_s = type(module).__module__.startswith("torch.nn.")
        names = names * 2 if len(names) == 1 else names  # itemgetter makes no tuple of one
        get = itemgetter(*names) if names else None
        entry = Watched(
            path,
            parent=numbers.get(parent, 0),
            name=name,
            classes=norms.get(path, (type(module),)),
            attributes=len(own) if path else len(own.keys() - _OURS) + 1,
            last=None if path in norms or is_pytorch_s else next(reversed(own)),
            reads=None if path in norms else reads,
            names=names,
            values=copy.deepcopy(get(own)) if names else (),
            get=get,
            children=None if path in norms else tuple(own["_modules"]),
        )
        entries.append(entry)
        for namespace, each in reads.values:
            value = namespace[each]
            if is_watchable(value):
                if not is_harmless(value):
                    values[id(namespace), each] = namespace, each, copy.deepcopy(value)
            elif not is_harmless(value):
                raise NotFusible(_reason(each, value))
    return Guard(entries, values.values())


def _reason(name: str, value) -> str:
    return f"its forward reads {name}, a {path_of(type(value))} that may change unseen"


def _changed_class(entry: Watched, module: nn.Module | None) -> str:
    now = "None" if module is None else f"a {path_of(type(module))}"
    return f"{entry.path} is {now} now, and was a {path_of(entry.classes[0])}"


def _changed_value(entry: Watched, own: dict) -> str:
    for name, value in zip(entry.names, entry.values):
        if own[name] != value:
            return f"{_of(entry)}{name} is {_short(own[name])} now, and was {_short(value)}"
    return f"an attribute of {entry.path or 'it'} has changed"


def _of(entry: Watched) -> str:
    return f"{entry.path}." if entry.path else ""


def _short(value) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:57]}..."
