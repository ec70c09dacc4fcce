"""Results files beside each other: other devices, or other commits."""

import statistics

from lib import results as results_file
from lib import tables
from lib.errors import RequestError
from lib.results import CONTENDERS, Case, speedup, stands

MARK = "*"


def compare(results: dict[str, dict]) -> str:
    """Tables of the rows that all files have, {path: result}; the first is what others are over."""
    letters = dict(zip(results, "ABCDEFGHIJKLMNOPQRSTUVWXYZ"))
    legend = []
    for path, result in results.items():
        section = next((name for name in results_file.SECTIONS if result[name]), "block")
        legend.append(f"- {letters[path]}: `{path}`. {stands(result, section)}")
    parts = ["\n".join(legend)]
    same_kind = len({result["device"]["kind"] for result in results.values()}) == 1
    blocks = [_blocks(result["block"], same_kind) for result in results.values()]
    networks = [_networks(result["network"], same_kind) for result in results.values()]
    tails = [_tails(result["tail"], same_kind) for result in results.values()]
    names = list(letters.values())
    for title, columns, found in (
        ("One block, FusedSE's median microseconds", _BLOCK, blocks),
        ("The end of a block fused, forward + backward, median microseconds", _TAIL, tails),
        ("Training step of the swapped network, median microseconds per image", _NETWORK, networks),
    ):
        shared = [key for key in found[0] if all(key in of for of in found[1:])]
        if shared:
            parts.append(f"{title}; rows that all files have:")
            parts.append(_table(columns, names, shared, found))
    if len(parts) == 1:
        raise RequestError("no common rows: " + "; ".join(
            f"{path} has {_summary(result)}" for path, result in results.items()
        ))
    parts.append(
        f"A/B: A's time over B's, above 1: B is faster. {MARK}: the ranges from first to third "
        "quartile do not overlap."
    )
    return "\n\n".join(parts)


def apart(one: dict, other: dict) -> bool:
    """Whether the ranges between quartiles have nothing in common."""
    return one["q3"] < other["q1"] or other["q3"] < one["q1"]


_BLOCK = ["network, map, hidden", "dtype, layout", "pass", "speed-up over"]
_TAIL = ["end of the block", "network, map, hidden", "dtype, layout", "speed-up over"]
_NETWORK = ["network, image", "layout", "dtype", "speed-up over"]


class _Measured:
    """FusedSE's quartiles in microseconds, and the speed-up over what was beside it."""

    def __init__(self, quartiles, per, speedup):
        self.microseconds = {name: 1e3 * quartiles[name] / per for name in ("median", "q1", "q3")}
        self.speedup = speedup


def _blocks(rows, with_backend) -> dict[tuple, _Measured]:
    """{cells of a line: measured}; the first contender of a case in the order of CONTENDERS."""
    found = {}
    for row in _preferred(rows, with_backend):
        case = Case.of(row)
        block = f"{case.dtype}, {case.layout}" + (f", {case.backend}" if with_backend else "")
        key = (case.map, block, row["direction"].replace("+", " + "), row["contender"])
        found[key] = _Measured(row["fused_ms"], 1, speedup(row))
    return found


def _networks(rows, with_backend) -> dict[tuple, _Measured]:
    found = {}
    for row in _preferred(rows, with_backend):
        layout = row["layout"] + (f", {row['backend']}" if with_backend else "")
        key = (f"{row['network']} {row['size']}²", layout, row["dtype"], "untouched")
        ratio = row["ms"]["eager"]["median"] / row["ms"]["fused"]["median"]
        found[key] = _Measured(row["ms"]["fused"], row["batch"], ratio)
    return found


def _tails(rows, with_backend) -> dict[tuple, _Measured]:
    found = {}
    for row in _preferred(rows, with_backend):
        case, ms = Case.of(row), row["ms"]
        block = f"{case.dtype}, {case.layout}" + (f", {case.backend}" if with_backend else "")
        speedup = ms["eager"]["median"] / ms["fused"]["median"]
        found[row["tail"], case.map, block, "eager"] = _Measured(ms["fused"], 1, speedup)
    return found


def _preferred(rows, with_backend):
    """Between a CPU and a GPU no backend is the same: each one's preferred stands for it."""
    return [row for row in rows if with_backend or row["backend"] == results_file.backends(rows)[0]]


def _table(columns, names, shared, found) -> str:
    shared = _one_contender(shared)
    first, *others = names
    head = [
        *columns, *names, *(f"{first}/{other}" for other in others),
        *(f"speed-up, {name}" for name in names),
    ]
    lines = []
    ratios, speedups = [[] for _ in others], [[] for _ in names]
    for key in shared:
        base, *rest = all_measured = [of[key] for of in found]
        cells = [*key, *(tables.number(of.microseconds["median"]) for of in all_measured)]
        for of, column in zip(rest, ratios):
            column.append(base.microseconds["median"] / of.microseconds["median"])
            mark = MARK if apart(base.microseconds, of.microseconds) else ""
            cells.append(f"{column[-1]:.2f}{mark}")
        for of, column in zip(all_measured, speedups):
            column.append(of.speedup)
            cells.append(f"{of.speedup:.2f}")
        lines.append(cells)
    means = [f"{statistics.geometric_mean(column):.2f}" for column in (*ratios, *speedups)]
    lines.append(
        [f"geometric mean of {len(shared)}", *[""] * (len(columns) - 1 + len(names)), *means]
    )
    return tables.markdown(head, lines)


def _one_contender(keys) -> list[tuple]:
    """Each block once: beside the first contender that all files have."""
    rank = {name: index for index, name in enumerate(CONTENDERS)}
    best = {}
    for *block, beside in keys:
        held = best.get(tuple(block), beside)
        best[tuple(block)] = min(held, beside, key=lambda name: rank.get(name, 0))
    return [(*block, beside) for block, beside in best.items()]


def _summary(result) -> str:
    counts = [f"{len(result[name])} {name} rows" for name in results_file.SECTIONS if result[name]]
    rows = [row for section in results_file.SECTIONS for row in result[section]]
    networks = ", ".join(dict.fromkeys(row["network"] for row in rows))
    return f"{' and '.join(counts) or 'no rows'} of {networks or 'no network'}"
