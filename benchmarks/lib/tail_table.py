"""The table of what a block's end takes, fused and not, with SE and without, in Markdown."""

import statistics

from lib import results as results_file
from lib import tables
from lib.results import BESIDE_TAIL, Case, stands


def table(result: dict, folded: bool = False) -> str:
    """Ratios map by map, and their means; ``folded`` as the other tables have it."""
    rows = result["tail"]
    several = len(results_file.backends(rows)) > 1
    parts = [
        f"{stands(result, 'tail')} The end of a residual block in training, forward + backward: "
        "times of the other side over the fused one's, which take turns. Above 1 the fused one is "
        "faster; above 1 under “without SE” it takes, SE included, less than the other without."
    ]
    for name in dict.fromkeys(row["tail"] for row in rows):
        parts.append(f"{name}:")
        parts.append(_of_one([row for row in rows if row["tail"] == name], several))
    return "\n\n".join(parts)


def over_fused(row: dict, side: str) -> float | None:
    """The time of a side over that of the fused one; None where it was not measured."""
    found = row["ms"].get(side)
    return None if found is None else found["median"] / row["ms"]["fused"]["median"]


def _of_one(rows: list[dict], with_backend: bool) -> str:
    sides = [side for side in BESIDE_TAIL if any(side in row["ms"] for row in rows)]
    lines = []
    for row in rows:
        case = Case.of(row)
        kind = f"{case.dtype}, {case.layout}" + (f", {case.backend}" if with_backend else "")
        cells = [tables.cell(over_fused(row, side), "{:.2f}".format) for side in sides]
        milliseconds = tables.number(row["ms"]["fused"]["median"])
        lines.append([case.map, kind, *cells, milliseconds])
    means = []
    for side in sides:
        ratios = [ratio for row in rows if (ratio := over_fused(row, side)) is not None]
        means.append(f"{statistics.geometric_mean(ratios):.2f} ({min(ratios):.2f})")
    lines.append(["geometric mean (lowest)", "", *means, ""])
    head = ["network, map, hidden", "dtype, layout", *map(BESIDE_TAIL.get, sides), "fused, ms"]
    return tables.markdown(head, lines)
