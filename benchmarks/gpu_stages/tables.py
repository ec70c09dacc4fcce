"""What a run of gpu.py found, in Markdown: all of it, and the most wanted numbers in short."""

import collections

from lib import tables, tail_table
from lib.results import COPIES, DIRECTIONS, Case, cases, stands
from lib.tables import cell, number

WANTED_MAPS = 3  # of the summary


def table(result: dict, folded: bool = False) -> str:
    """Everything that is there; ``folded`` as the other tables have it."""
    parts = []
    checked = correctness(result)
    if checked:
        parts.append(f"{stands(result, 'smoke')} " + " ".join(checked))
    if result["block"]:
        parts.append(tables.block(result, folded))
        parts += kernels(result["block"])
    if result.get("variants"):
        title = (
            "FusedSE's launches with other numbers of warps (all else here has the plan's and "
            "no autotuning), and the excitation inside the first launch or between the two: "
            "microseconds as a CUDA graph, of the first backend."
        )
        parts.append(tables.fold(title, variants(result["variants"]), folded))
    if result["tail"]:
        parts.append(tail_table.table(result))
    if result["network"]:
        parts.append(tables.network(result))
    if result.get("ncu"):
        parts.append(tables.fold("Bytes of DRAM that each kernel moved, by ncu.",
                                 dram(result["ncu"]), folded))
    return "\n\n".join(parts)


def correctness(result: dict) -> list[str]:
    """A sentence for each thing that was checked."""
    found = []
    smoke = result.get("smoke") or []
    if smoke:
        right = [row for row in smoke if row["ok"]]
        backends = " and ".join(dict.fromkeys(row["backend"] for row in smoke))
        text = f"{len(right)} of {len(smoke)} comparisons with float64 right ({backends})"
        used = max((row["used"] for row in right), default=None)
        found.append(f"{text}, {cell(used, '{:.2f}'.format)} of the allowed error used.")
    for row in result.get("backends") or []:
        if row["why_not"]:
            found.append(f"Not run: {row['backend']}, {row['why_not']}.")
    for row in result.get("tests") or []:
        if "note" in row:
            found.append(f"Tests: {row['note']}.")
        else:
            counts = [f"{row[how]} {how}" for how in ("passed", "failed", "skipped", "unreached")]
            found.append(f"Tests: {', '.join(counts)}.")
    for row in result.get("sanitizer") or []:
        errors = row.get("note") or f"{cell(row['errors'], str)} errors"
        found.append(f"compute-sanitizer {row['tool']}: {errors}.")
    for row in result.get("copy") or []:
        megabytes = number(row["bytes"] / 1e6)
        found.append(f"PyTorch's copy of {megabytes} MB: {number(row['gbs'])} GB/s.")
    return found


def kernels(rows: list[dict]) -> list[str]:
    """A sentence of how many kernels each side starts, one pass after the other."""
    counts = {}
    for row in rows:
        sides = {f"FusedSE ({row['backend']})": "fused_kernels", row["contender"]: "this_kernels"}
        for side, key in sides.items():
            if row.get(key) is not None:
                of = counts.setdefault(side, {name: set() for name in DIRECTIONS})
                of[row["direction"]].add(row[key])
    named = [
        f"{side} " + " / ".join(_range(of[name]) for name in DIRECTIONS)
        for side, of in counts.items()
    ]
    return [f"Kernels of a call, forward / forward + backward: {', '.join(named)}."] * bool(named)


def _range(counts: set[float]) -> str:
    if len(counts) < 2:
        return cell(next(iter(counts), None), "{:g}".format)
    return f"{min(counts):g} to {max(counts):g}"


def variants(rows: list[dict]) -> str:
    names = list(dict.fromkeys(row["variant"] for row in rows))
    found = {}
    for row in rows:
        case = Case.of(row | {"backend": None})
        key = row["of"], case.map, row["layout"], tables.spaced(row["direction"])
        found.setdefault(key, {})[row["variant"]] = row
    lines = []
    for key, of in found.items():
        cells = [cell(graph_ms(of[name]) * 1e3 if name in of else None, number) for name in names]
        cells.append(_range({row.get("kernels") for row in of.values()} - {None}))
        lines.append([*key, *cells])
    head = ["block", "network, map, hidden", "layout", "pass", *names, "kernels"]
    return tables.markdown(head, lines)


def dram(rows: list[dict]) -> str:
    lines = []
    for row in rows:
        if row.get("note"):
            lines.append([row["kernel"], row["note"], "", "", ""])
            continue
        read, written, ns = (row.get(key) for key in ("read_bytes", "write_bytes", "nanoseconds"))
        whole = None not in (read, written, ns)
        lines.append([
            row["kernel"],
            *(cell(None if size is None else size / 1e6, number) for size in (read, written)),
            cell(None if ns is None else ns / 1e3, number),
            cell((read + written) / ns if whole and ns else None, number),
        ])
    return tables.markdown(["kernel", "MB read", "MB written", "µs", "GB/s"], lines)


def summary(result: dict) -> str:
    """The most wanted numbers, those that are there."""
    lines = correctness(result)
    wanted = list(cases(result["block"]).items())
    maps = list(dict.fromkeys(case.map for case, _ in wanted))[:WANTED_MAPS]
    for case, directions in wanted:
        if case.map in maps:
            lines += [_of_block(case, *of) for of in directions.items()]
    for row in result["tail"]:
        times = row["graph_ms" if "fused" in row["graph_ms"] else "ms"]
        fused = times["fused"]["median"]
        sides = [f"{side} {of['median'] / fused:.2f}×" for side, of in times.items()
                 if side != "fused"]
        lines.append(f"{row['tail']} {Case.of(row).size}: {number(fused * 1e3)} µs; "
                     + ", ".join(sides))
    for row in result["network"]:
        speeds = [f"{COPIES.get(kind, kind)} {number(speed)}"
                  for kind, speed in row["images_per_second"].items()]
        name = f"{row['network']}, {row['batch']} × {row['size']}², {row['dtype']}"
        lines.append(f"{name}, images/s: {', '.join(speeds)}")
    best = _best_warps(result.get("variants") or [])
    if best:
        lines.append(f"Fastest number of warps, cases: {best}")
    lines += [f"Error in {row['of']}: {row['what']}: {row['error']}"
              for row in result.get("errors") or []]
    return "\n".join(lines)


def graph_ms(row: dict, who: str = "") -> float:
    """As a CUDA graph, or launched one by one where there was none."""
    return (row.get(f"{who}graph_ms") or row[f"{who}ms"])["median"]


def _of_block(case, direction, contenders) -> str:
    row = next(iter(contenders.values()))
    fused = graph_ms(row, "fused_")
    gbs = row["passes"]["fused"] * row["map_bytes"] / fused / 1e6
    ratios = [f"{name} {graph_ms(of, 'this_') / graph_ms(of, 'fused_'):.2f}×"
              for name, of in contenders.items()]
    return (
        f"{case.size} {case.layout}, {tables.spaced(direction)}, {case.backend}: "
        f"{number(fused * 1e3)} µs, {number(gbs)} GB/s, {100 * gbs / row['copy_gbs']:.0f} % of a "
        f"copy, launched in {number(row['fused_launch_ms']['median'] * 1e3)} µs; "
        + ", ".join(ratios)
    )


def _best_warps(rows) -> str:
    groups = {}
    for row in rows:
        if row["variant"].endswith("warps"):
            key = row["of"], Case.of(row | {"backend": None}), row["direction"]
            groups.setdefault(key, []).append((graph_ms(row), row["variant"]))
    best = collections.Counter(min(of)[1] for of in groups.values())
    return ", ".join(f"{name} {count}" for name, count in best.most_common())
