"""What ``replace_se`` says that it did."""

from dataclasses import dataclass, field
from typing import NamedTuple


class Entry(NamedTuple):
    """One SE module: its name in the model, its class, and why it was left (None: it was not)."""

    name: str
    cls: str
    reason: str | None = None


@dataclass
class Report:
    """The SE modules that were found; prints as a table."""

    action: str = "replaced"
    replaced: list[Entry] = field(default_factory=list)
    left: list[Entry] = field(default_factory=list)

    def __str__(self) -> str:
        rows = [(self.action, *entry[:2], "") for entry in self.replaced]
        rows += [("left", *entry[:2], f": {entry.reason}") for entry in self.left]
        width = max((len(name) for _, name, _, _ in rows), default=0)
        lines = [f"{len(self.replaced)} SE modules {self.action}, {len(self.left)} left"]
        lines += [f"{what:9} {name:{width}}  {cls}{reason}" for what, name, cls, reason in rows]
        return "\n".join(lines)
