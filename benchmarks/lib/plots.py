"""Three pictures of one results file: speed-ups, a roofline, and SE inside a training step."""

import math
import statistics
from pathlib import Path

from lib import results as results_file
from lib import tables
from lib.plot import COLOURS as PAIR
from lib.results import COPIES, DIRECTIONS, cases, speedup, without_se
from traffic import roofline

# Of the Okabe-Ito palette, colour-blind safe; grey is what no side adds.
COLOURS = {**PAIR, "compiled": "#009E73"}
GREY = "#BBBBBB"
MARKERS = {"eager": "s", "compiled": "^", "fused": "o"}
INCHES, DPI = 9.0, 150
_ADDS = {
    COLOURS["eager"]: "what SE adds, untouched",
    COLOURS["compiled"]: "what SE adds, compiled",
    COLOURS["fused"]: "what FusedSE adds",
}
MANY_MAPS = 10  # above it, a bar of the overview stands for a network


def draw(result: dict, folder: Path):
    try:
        import matplotlib
    except ImportError:
        print("Plots: skipped, matplotlib is not installed")
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({
        "font.size": 9, "axes.titlesize": 10, "axes.spines.top": False, "axes.spines.right": False,
    })
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in _figures(plt, result):
        figure.savefig(folder / name, dpi=DPI)
        plt.close(figure)
        print(f"Plot: {folder / name}")


def _figures(plt, result):
    rows = result["block"]
    if rows:
        backend = results_file.backends(rows)[0]
        rows = [row for row in rows if row["backend"] == backend]
        where = _measured_on(result["device"], backend)
        dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
        if len({case.map for case in cases(rows)}) <= MANY_MAPS:
            yield "speedup.png", _speedups(plt, rows, dtypes, _map_and_layout, where)
        else:
            yield "speedup.png", _speedups(plt, rows, dtypes, _network, where)
            for dtype in dtypes:
                yield f"speedup-{dtype}.png", _speedups(plt, rows, [dtype], _map, where)
        yield "roofline.png", _roofline(plt, rows, dtypes, where)
    if result["network"]:
        rows = result["network"]
        backend = results_file.backends(rows)[0]
        where = _measured_on(result["device"], backend)
        rows = [row for row in rows if row["backend"] == backend]
        yield "training_step.png", _training_steps(plt, rows, where)


def _measured_on(device, backend) -> str:
    threads = f", {results_file.threads(device)}" if device["kind"] == "cpu" else ""
    return f"measured on {device['name']}{threads}, {backend} backend"


def fastest(contenders: dict, side: str) -> dict | None:
    """Of a case's eager or compiled contenders, the row of the fastest against FusedSE."""
    rows = [row for name, row in contenders.items() if (side == "compiled") == ("," in name)]
    return min(rows, key=speedup, default=None)


def _map_and_layout(case):
    return f"{case.network}\n{case.size} {case.layout}"


def _network(case):
    return case.network


def _map(case):
    return f"{case.network} {case.size}, {case.hidden}"


def _speedups(plt, rows, dtypes, label, where):
    labels = list(dict.fromkeys(map(label, cases(rows))))
    bars = {dtype: {direction: {} for direction in DIRECTIONS} for dtype in dtypes}
    for case, directions in cases(rows).items():
        for direction, contenders in directions.items():
            for side in ("eager", "compiled"):
                row = fastest(contenders, side)
                if row and case.dtype in bars:
                    sides = bars[case.dtype][direction].setdefault(side, {})
                    sides.setdefault(label(case), []).append(speedup(row))
    lines = 1 + ("\n" in labels[0])
    height = 1.3 + len(dtypes) * (0.55 + len(labels) * (0.10 + 0.14 * lines))
    figure, axes = plt.subplots(
        len(dtypes), 2, figsize=(INCHES, height), sharex="col", sharey=True, layout="constrained",
        squeeze=False,
    )
    pooled = False
    for dtype, line in zip(dtypes, axes):
        for direction, ax in zip(DIRECTIONS, line):
            pooled |= _bars(ax, bars[dtype][direction], labels)
            ax.set_title(f"{dtype}, {tables.spaced(direction)}", loc="left")
    for direction, ax in zip(DIRECTIONS, axes[-1]):
        longest = max(
            (ratio for of in bars.values() for side in of[direction].values()
             for ratios in side.values() for ratio in ratios), default=1,
        )
        ax.set(xlim=(0, 1.14 * longest), xlabel="time over FusedSE's (×)")
    axes[0, 0].invert_yaxis()
    _legend(figure, axes, ncols=3)
    title = f"Speed-up of FusedSE, {where}"
    if pooled:
        each = "network's maps" if label is _network else "map"
        title += f"\nbar: geometric mean of a {each} in both layouts; line: lowest to highest"
    figure.suptitle(title, fontweight="bold")
    return figure


def _bars(ax, sides, labels) -> bool:
    """A bar per label and side; whether any stands for several measurements."""
    pooled, width = False, 0.8 / 2
    for index, (side, of) in enumerate(sides.items()):
        for position, name in enumerate(labels):
            if name not in of:
                continue
            mean, y = statistics.geometric_mean(of[name]), position + (index - 0.5) * width
            ax.barh(
                y, mean, width, color=COLOURS[side],
                label=f"fastest {side} block",
            )
            if len(of[name]) > 1:
                pooled = True
                ax.plot([min(of[name]), max(of[name])], [y, y], color="0.25", linewidth=1)
            ax.text(max(of[name]), y, f" {mean:.2f}", va="center", fontsize=7.5)
    ax.axvline(1, color=COLOURS["fused"], linewidth=1.5, label="FusedSE (1×)")
    ax.set_yticks(range(len(labels)), labels, fontsize=8)
    ax.margins(y=0.01)
    return pooled


def _roofline(plt, rows, dtypes, where):
    figure, axes = plt.subplots(
        1, 2, figsize=(INCHES, 5.2), sharex=True, sharey=True, layout="constrained"
    )
    copies = [row["copy_gbs"] for row in rows]
    for direction, ax in zip(DIRECTIONS, axes):
        points = {side: [] for side in MARKERS}
        for contenders in (of[direction] for of in cases(rows).values() if direction in of):
            first = next(iter(contenders.values()))
            fused = tables.fused_microseconds(contenders) / 1e3
            points["fused"].append(_point(first, "fused", fused))
            for side in ("eager", "compiled"):
                row = fastest(contenders, side)
                if row:
                    points[side].append(_point(row, side, row["this_ms"]["median"]))
        for side, of in points.items():
            name = "FusedSE" if side == "fused" else f"fastest {side} block"
            for small, face in ((False, COLOURS[side]), (True, "none")):
                some = [point[:2] for point in of if (point[2] != "fp32") == small]
                if some:
                    ax.scatter(
                        *zip(*some), marker=MARKERS[side], facecolors=face,
                        edgecolors=COLOURS[side], linewidths=1.3, s=34 if len(of) < 40 else 14,
                        label=f"{name}, {'16 bit' if small else 'fp32'}",
                    )
        ax.set(xscale="log", yscale="log", xlabel="FLOP per byte")
        formula = roofline.FORMULAS[direction]
        ax.set_title(f"{tables.spaced(direction)}\nFLOP = {formula}", loc="left")
    low, high = axes[0].get_xlim()
    for ax in axes:
        ends = (low, high)
        middle = statistics.median(copies)
        ax.fill_between(
            ends, *([bandwidth * end for end in ends] for bandwidth in (min(copies), max(copies))),
            color="0.92", zorder=0.1, label="copies of single maps, slowest to fastest",
        )
        ax.plot(
            ends, [middle * end for end in ends], color="0.2", zorder=1,
            label=f"roof: copy, {tables.number(middle)} GB/s (median)",
        )
        ax.set_xlim(low, high)
        ax.grid(which="major", color="0.85")
        ax.set_axisbelow(True)
    axes[0].set_ylabel("GFLOP/s")
    note = (
        "N samples, C channels, M positions, R hidden units. Bytes: each side's counted passes × "
        "the map's bytes;\npasses of compiled blocks as counted in Inductor's code for the CPU."
    )
    _legend(figure, axes, ncols=3, fontsize=8, title=note, title_fontsize=8)
    figure.suptitle(f"Roofline of SE blocks, {where}", fontweight="bold")
    return figure


def _legend(figure, axes, **settings):
    """One legend below, each label once."""
    found = {}
    for ax in axes.flat:
        for handle, label in zip(*ax.get_legend_handles_labels()):
            found.setdefault(label, handle)
    figure.legend(
        found.values(), found.keys(), loc="outside lower center", frameon=False, **settings
    )


def _point(row, side, milliseconds):
    return roofline.intensity(row, side), roofline.gigaflops(row, milliseconds), row["dtype"]


def _training_steps(plt, rows, where):
    names = list(dict.fromkeys((row["network"], row["batch"], row["size"]) for row in rows))
    lines, bars = math.ceil(len(names) / 2), sum(len(row["ms"]) for row in rows) / len(names)
    figure, axes = plt.subplots(
        lines, 2, figsize=(INCHES, 0.9 + lines * (1.0 + 0.19 * bars)), layout="constrained",
        squeeze=False,
    )
    for ax in axes.flat[len(names):]:
        ax.set_axis_off()
    for ax, (name, batch, size) in zip(axes.flat, names):
        group = [row for row in rows if (row["network"], row["batch"], row["size"])
                 == (name, batch, size)]
        _stacks(ax, group)
        ax.set_title(f"{name}, {batch} × {size}²", loc="left")
    _legend(figure, axes, ncols=3)
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    dtype = f", {dtypes[0]}" if len(dtypes) == 1 else ""
    figure.suptitle(f"SE in a training step{dtype}, {where}", fontweight="bold")
    return figure


def _stacks(ax, rows):
    ticks, names, y = [], [], 0
    several = len({row["dtype"] for row in rows}) > 1
    for row in rows:
        name = f" {row['dtype']}, {row['layout']}" if several else f" {row['layout']}"
        ax.text(0, y - 0.55, name, va="bottom", fontsize=8, style="italic")
        for kind in (kind for kind in COPIES if kind in row["ms"]):
            total = row["ms"][kind]["median"]
            base = row["ms"].get(without_se(kind), {}).get("median")
            colour = COLOURS["fused" if "fused" in kind else kind]
            if base is None:
                ax.barh(y, total, color="white", edgecolor=colour, hatch="///",
                        label="whole step, SE not told apart")
                text = f" {tables.number(total)}"
            else:
                ax.barh(y, min(base, total), color=GREY, label="the network without SE")
                ax.barh(y, max(total - base, 0), left=base, color=colour, label=_ADDS[colour])
                text = f" {tables.number(total)}, SE {100 * (total / base - 1):+.0f} %"
            ax.text(total, y, text, va="center", fontsize=7.5)
            ticks.append(y)
            names.append(COPIES[kind])
            y += 1
        y += 0.9
    ax.set_yticks(ticks, names, fontsize=8)
    longest = max(of["median"] for row in rows for of in row["ms"].values())
    ax.set(xlim=(0, 1.38 * longest), ylim=(y - 1.2, -1.3), xlabel="ms per step")
