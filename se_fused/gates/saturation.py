"""Which SE blocks do little: their gates near 0 or 1, or the same for every sample."""

from dataclasses import dataclass, field
from typing import NamedTuple

from se_fused.gates.sums import GateSums


class Row(NamedTuple):
    """One block: shares of its gates near 0 and near 1, and how they spread over the samples."""

    name: str
    channels: int
    samples: int
    near_0: float
    near_1: float
    constant: float  # share of the channels
    spread: float  # standard deviation over the samples, mean over the channels
    finding: str | None  # why SE could be dropped here; None if it does something


@dataclass
class Saturation:
    """The blocks that ran, and the names of those that did not; prints as a table."""

    rows: list[Row] = field(default_factory=list)
    not_run: list[str] = field(default_factory=list)

    @property
    def droppable(self) -> list[str]:
        """The names of the blocks whose gates are all near 0 or 1, or constant."""
        return [row.name for row in self.rows if row.finding]

    def __str__(self) -> str:
        names = [name or "(model)" for name in [*(row.name for row in self.rows), *self.not_run]]
        width = max(map(len, ["block", *names]))
        lines = [f"{'block':{width}}  channels  samples   near 0   near 1  constant  spread"]
        for name, row in zip(names, self.rows):
            cells = f"{row.near_0:7.1%}  {row.near_1:7.1%}  {row.constant:8.1%}  {row.spread:6.4f}"
            line = f"{name:{width}}  {row.channels:8}  {row.samples:7}  {cells}"
            lines.append(line + (f"  {row.finding}" if row.finding else ""))
        lines += [f"{name:{width}}  did not run" for name in names[len(self.rows) :]]
        return "\n".join(lines)


def saturation_of(blocks: dict[str, GateSums], near: float, share: float) -> Saturation:
    found = Saturation(not_run=[name for name, sums in blocks.items() if not sums.samples])
    for name, sums in blocks.items():
        if not sums.samples:
            continue
        gates = sums.samples * sums.channels
        near_0, near_1 = sums.near_0 / gates, sums.near_1 / gates
        constant = (sums.highest - sums.lowest <= near).double().mean().item()
        finding = None
        if near_1 >= share:
            finding = "all near 1: it changes nothing"
        elif near_0 >= share:
            finding = "all near 0: it removes every channel"
        elif near_0 + near_1 >= share:
            finding = "all near 0 or 1: it removes channels or leaves them as they are"
        elif constant >= share:
            finding = "constant: its neighbour's weights could hold the factors"
        found.rows.append(
            Row(
                name, sums.channels, sums.samples, near_0, near_1, constant,
                sums.deviation().mean().item(), finding,
            )
        )  # fmt: skip
    return found
