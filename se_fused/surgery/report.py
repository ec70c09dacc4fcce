"""What ``replace_se``, ``insert_se`` and ``fuse`` say that they did, and what modules warn of."""

import warnings
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import nn

is_verifying = ContextVar("is_verifying", default=False)  # copies warn of nothing


def path_of(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def check_model(model):
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")


class NotFusible(Exception):
    """Why a module or a block is left as it is."""


class Entry(NamedTuple):
    """One SE module: its name in the model, its class, and why it was left (None: it was not)."""

    name: str
    cls: str
    reason: str | None = None


class Fused(NamedTuple):
    """What stands around one SE module, fused: its block's name and class, and what it covers."""

    name: str
    cls: str
    covers: str


class Inserted(NamedTuple):
    """One SE block put into a model: its name, the class of the block that it is in, its width."""

    name: str
    cls: str
    width: str


@dataclass
class Report:
    """The SE modules that were found; prints as a table."""

    action: str = "replaced"
    replaced: list[Entry | Fused | Inserted] = field(default_factory=list)
    left: list[Entry] = field(default_factory=list)

    def __str__(self) -> str:
        rows = [(self.action, *entry) for entry in self.replaced]
        rows += [("left", *entry) for entry in self.left]
        width = max((len(name) for _, name, _, _ in rows), default=0)
        lines = [f"{len(self.replaced)} SE modules {self.action}, {len(self.left)} left"]
        for what, name, cls, note in rows:
            lines.append(f"{what:9} {name:{width}}  {cls}" + (f": {note}" if note else ""))
        return "\n".join(lines)


def warn_once(module: nn.Module, reason: str, what: str = "runs its library's forward, unfused"):
    """A warning, once for a reason, of what a module does instead of its fused forward."""
    if torch.compiler.is_compiling():
        _warn(f"{type(module).__name__} {what}: {reason}")
    elif module.__dict__.get("__said__") != reason:
        module.__dict__["__said__"] = reason
        _warn(f"{type(module).__name__} {what}: {reason}")


def _warn(text: str):
    if not is_verifying.get():
        warnings.warn(text, UserWarning, stacklevel=2)


# torch.compiler.assume_constant_result, without its import of torch._dynamo: said while it traces.
_warn._dynamo_marked_constant = True
