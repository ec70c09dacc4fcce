"""The tables of one results file, in Markdown."""

import itertools
import statistics

from lib import results as results_file
from lib.results import CONTENDERS, COPIES, DIRECTIONS, cases, speedup, stands, without_se

FOLDED = 24  # lines of a table in the README, above which it is folded
NONE = "–"


def block(result: dict, folded: bool = False) -> str:
    """Speed-ups in means and map by map; on a GPU kernels and launches apart."""
    parts = [
        f"{stands(result, 'block')} Times of the other block over FusedSE's, which takes turns "
        "with it: above 1, FusedSE is faster."
    ]
    several = len(results_file.backends(result["block"])) > 1
    for backend in results_file.backends(result["block"]):
        rows = [row for row in result["block"] if row["backend"] == backend]
        if several:
            parts.append(f"FusedSE's `{backend}` backend:")
        parts += [
            "Geometric mean over the maps (lowest):",
            means(rows),
            fold("Map by map, forward / forward + backward. GB/s: the map's bytes × the passes "
                 "that FusedSE makes over it (3 / 7), over its time; share: over the GB/s of "
                 "PyTorch's copy of such a map. A map that stays in the cache may pass 100 %.",
                 by_map(rows), folded),
        ]
        if any("fused_graph_ms" in row for row in rows):
            parts.append(
                fold("Microseconds: kernels, queued before they start / the same as a CUDA graph "
                     "/ the CPU until all is queued.", launches(rows), folded)
            )
    return "\n\n".join(parts)


def means(rows) -> str:
    names = _contenders(rows)
    kinds = sorted(
        {(row["dtype"], row["layout"], row["direction"]) for row in rows},
        key=[(row["dtype"], row["layout"], row["direction"]) for row in rows].index,
    )
    lines = []
    for kind in kinds:
        of_kind = [row for row in rows if (row["dtype"], row["layout"], row["direction"]) == kind]
        dtype, layout, direction = kind
        cells = [f"{dtype}, {layout}", spaced(direction)]
        cells.append(str(len({results_file.Case.of(row) for row in of_kind})))
        for name in names:
            ratios = [speedup(row) for row in of_kind if row["contender"] == name]
            cells.append(
                f"{statistics.geometric_mean(ratios):.2f} ({min(ratios):.2f})" if ratios else NONE
            )
        lines.append(cells)
    return markdown(["dtype, layout", "pass", "maps", *names], lines)


def by_map(rows) -> str:
    names, lines = _contenders(rows), []
    for case, directions in cases(rows).items():
        def each(cell, directions=directions):
            return " / ".join(
                cell(directions[name]) if name in directions else NONE for name in DIRECTIONS
            )

        cells = [case.map, f"{case.dtype}, {case.layout}"]
        cells += [each(lambda of, name=name: _ratio(of, name)) for name in names]
        cells.append(each(lambda of: number(fused_microseconds(of))))
        cells.append(each(lambda of: number(gigabytes_per_second(of))))
        cells.append(each(lambda of: f"{100 * share_of_copy(of):.0f} %"))
        lines.append(cells)
    head = ["network, map, hidden", "dtype, layout", *names, "FusedSE, µs", "GB/s", "share of copy"]
    return markdown(head, lines)


def launches(rows) -> str:
    """On a GPU: what the kernels take, what a graph of them takes, and what launching takes."""
    names, lines = _contenders(rows), []
    for (case, directions), direction in itertools.product(cases(rows).items(), DIRECTIONS):
        if direction not in directions:
            continue
        of = directions[direction]
        cells = [case.map, f"{case.dtype}, {case.layout}", spaced(direction)]
        cells.append(_three(of.values(), "fused"))
        cells += [_three([of[name]], "this") if name in of else NONE for name in names]
        lines.append(cells)
    return markdown(["network, map, hidden", "dtype, layout", "pass", "FusedSE", *names], lines)


def fused_microseconds(contenders: dict) -> float:
    """FusedSE's median time; of those beside each contender, their median."""
    return 1e3 * statistics.median(row["fused_ms"]["median"] for row in contenders.values())


def gigabytes_per_second(contenders: dict) -> float:
    """What FusedSE's passes over the map move, over its time."""
    row = next(iter(contenders.values()))
    return row["passes"]["fused"] * row["map_bytes"] / fused_microseconds(contenders) / 1e3


def share_of_copy(contenders: dict) -> float:
    copy = statistics.median(row["copy_gbs"] for row in contenders.values())
    return gigabytes_per_second(contenders) / copy


def network(result: dict, folded: bool = False) -> str:
    rows = result["network"]
    kinds = [kind for kind in COPIES if any(kind in row["ms"] for row in rows)]
    taxed = [kind for kind in kinds if any(without_se(kind) in row["ms"] for row in rows)]
    ours = [kind for kind in ("fused", "fused blocks") if kind in kinds]
    several = len(results_file.backends(rows)) > 1
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    lines = []
    for row in rows:
        ms = {kind: found["median"] for kind, found in row["ms"].items()}
        how = [row["dtype"]] * (len(dtypes) > 1) + [row["layout"]] + [row["backend"]] * several
        cells = [f"{row['network']}, {row['batch']} × {row['size']}²", ", ".join(how)]
        cells += [cell(row["images_per_second"].get(kind), number) for kind in kinds]
        cells += [cell(ms["eager"] / ms[kind] if kind in ms else None, "{:.2f}".format)
                  for kind in ours]
        cells.append(_each([se_tax(row, kind) for kind in taxed], "{:.2f}".format))
        cells.append(_each([_mebibytes(row, kind) for kind in kinds], number))
        lines.append(cells)
    named = " / ".join
    head = [
        "network, batch", "dtype, layout" if len(dtypes) > 1 else "layout",
        *(f"images/s, {COPIES[kind]}" for kind in kinds),
        *(f"{COPIES[kind]} over untouched" for kind in ours),
        f"SE tax: {named(COPIES[kind] for kind in taxed)}",
        f"peak MiB: {named(COPIES[kind] for kind in kinds)}",
    ]
    means = []
    for kind in ours:
        speedups = [
            row["ms"]["eager"]["median"] / row["ms"][kind]["median"]
            for row in rows if kind in row["ms"]
        ]
        name = f"{COPIES[kind]} " if len(ours) > 1 else ""
        means.append(f"{name}{statistics.geometric_mean(speedups):.2f}")
    dtype = f", {dtypes[0]}" if len(dtypes) == 1 else ""
    return "\n\n".join([
        f"{stands(result, 'network')} Training step{dtype}: forward, loss, backward. SE tax: its "
        "time over that of the network without its SE blocks, which is compiled for a compiled "
        "one. Peak: what a step allocates.",
        markdown(head, lines),
        f"Geometric mean of the speed-ups: {', '.join(means)}.",
    ])


def se_tax(row, kind) -> float | None:
    """The time of a copy over that without SE."""
    if kind not in row["ms"] or without_se(kind) not in row["ms"]:
        return None
    return row["ms"][kind]["median"] / row["ms"][without_se(kind)]["median"]


def markdown(head: list[str], lines: list[list[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def number(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:.0f}" if value >= 99.95 else f"{value:#.3g}"


def _contenders(rows) -> list[str]:
    return [name for name in CONTENDERS if any(row["contender"] == name for row in rows)]


def _ratio(contenders, name) -> str:
    return f"{speedup(contenders[name]):.2f}" if name in contenders else NONE


def _three(rows, who) -> str:
    def median(what):
        times = [row[f"{who}_{what}"]["median"] for row in rows if f"{who}_{what}" in row]
        return cell(1e3 * statistics.median(times) if times else None, number)

    return " / ".join(map(median, ("ms", "graph_ms", "launch_ms")))


def _mebibytes(row, kind) -> float | None:
    peak = row["peak_bytes"].get(kind)
    return None if peak is None else peak / 2**20


def _each(values, form) -> str:
    return " / ".join(cell(value, form) for value in values)


def cell(value, form) -> str:
    return NONE if value is None else form(value)


def spaced(direction) -> str:
    return direction.replace("+", " + ")


def fold(title: str, table: str, folded: bool) -> str:
    lines = table.count("\n") - 1
    if not folded or lines <= FOLDED:
        return f"{title}\n\n{table}"
    return (
        f"<details><summary>{lines} lines, one by one</summary>\n\n{title}\n\n{table}\n\n</details>"
    )
