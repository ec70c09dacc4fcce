"""``replace_se``: the one-line swap."""

from dataclasses import dataclass, field
from typing import NamedTuple

from torch import nn

from se_fused.module import FusedSE
from se_fused.surgery.families import FAMILIES


class Entry(NamedTuple):
    """One module of the model: its name there, its class, and why it was left (None: replaced)."""

    name: str
    cls: str
    reason: str | None = None


@dataclass
class Report:
    """What ``replace_se`` did; prints as a table."""

    replaced: list[Entry] = field(default_factory=list)
    left: list[Entry] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{len(self.replaced)} SE modules replaced, {len(self.left)} left"]
        lines += [f"  replaced  {entry.name}  {entry.cls}" for entry in self.replaced]
        lines += [f"  left      {entry.name}  {entry.cls}: {entry.reason}" for entry in self.left]
        return "\n".join(lines)


def replace_se(model: nn.Module) -> Report:
    """Replaces the SE modules inside a model by FusedSE, in place: ``replace_se(model)``.

    The fused modules hold the same layers under the same names: parameters stay the same objects
    (optimizers keep working) and state dicts load strictly both ways. A module with hooks of its
    own is left alone, with the reason in the report. Known families: ``surgery/families.py``.

    Raises:
        ValueError: the model itself is an SE module, which cannot be replaced in place.
    """
    if _family(model) is not None:
        raise ValueError(
            f"model is itself a {type(model).__name__}; use FusedSE in its place, "
            "replace_se swaps the SE modules inside a model"
        )
    report = Report()
    for name, module in list(model.named_modules()):
        family = _family(module)
        if family is None:
            continue
        entry = Entry(name, f"{type(module).__module__}.{type(module).__qualname__}")
        if _has_hooks(module):
            report.left.append(entry._replace(reason="its hooks would not be carried over"))
            continue
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, family.from_layers(module))
        report.replaced.append(entry)
    return report


def _family(module: nn.Module) -> type[FusedSE] | None:
    cls = type(module)
    return FAMILIES.get(f"{cls.__module__}.{cls.__qualname__}")


def _has_hooks(module: nn.Module) -> bool:
    return any(value for name, value in vars(module).items() if name.endswith("_hooks"))
