"""What the ablations amount to: JSON, tables and a plot, each beside the paper's figures."""

import math
import statistics

import torch
from lib.plot import COLOURS
from training.ablation_rows import TABLES
from training.summary import device_name

import se_fused.backends

NONE = "–"
OURS, PAPER = COLOURS["fused"], COLOURS["eager"]


def summarise(args, device, tables, trained, left, test_images) -> dict:
    return {
        "settings": {name: value for name, value in vars(args).items() if name != "out"},
        "device": device_name(device),
        "backend": se_fused.backends.backend_for(device),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "test_images": test_images,
        "tables": {
            name: {
                "title": TABLES[name].title,
                "paper": f"ImageNet, SENet paper table {TABLES[name].number}",
                "rows": [_row(row, trained.get(row.se), left.get(row.se)) for row in rows],
            }
            for name, rows in tables.items()
        },
    }


def _row(row, runs, reason) -> dict:
    found = {
        "name": row.name,
        "se": row.se and row.se._asdict(),
        "paper": row.paper and row.paper._asdict(),
    }
    if runs is None:
        return {**found, "left": reason}
    # The first epoch pays for start-up and compiling: it counts only where it is the only one.
    timed = slice(1 if len(runs[0]["seconds_per_step"]) > 1 else 0, None)
    speeds = [
        run["images_per_step"] / statistics.median(run["seconds_per_step"][timed]) for run in runs
    ]
    return {
        **found,
        "parameters": runs[0]["parameters"],
        "test_accuracy": _spread([run["test_accuracy"] for run in runs]),
        "images_per_second": _spread(speeds),
        "runs": runs,
    }


def _spread(values: list[float]) -> dict:
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.mean(values), "deviation": deviation, "of_seeds": values}


def text(result: dict) -> str:
    settings = result["settings"]
    parts = [_table(table, settings) for table in result["tables"].values()]
    rows = [row for table in result["tables"].values() for row in table["rows"]]
    right = statistics.mean(row["test_accuracy"]["mean"] for row in rows if "runs" in row)
    chance = 100 * math.sqrt(right * (1 - right) / result["test_images"])
    count = settings["seeds"]
    seeds = "one seed" if count == 1 else f"mean ± deviation of {count} seeds"
    parts.append(
        f"Left: {seeds}; with {result['test_images']} test images, chance alone makes "
        f"± {chance:.2f} in each run.\nRight: the paper's ResNet-50 on ImageNet, another network "
        "and other images; nothing is compared with it."
    )
    return "\n\n".join(["", *parts])


def _table(table: dict, settings: dict) -> str:
    head = [
        table["title"], "accuracy, %", "parameters", "images/s",
        "top-1 error, %", "top-5 error, %", "parameters",
    ]  # fmt: skip
    body, notes = [head], []
    for row in table["rows"]:
        cells = [row["name"], NONE, NONE, NONE]
        if "runs" in row:
            cells[1] = _with_deviation(row["test_accuracy"], 100, ".2f")
            cells[2] = f"{row['parameters']:,}"
            cells[3] = _with_deviation(row["images_per_second"], 1, ".0f")
        else:
            notes.append(f"{row['name']}: {row['left']}")
        paper = row["paper"]
        if paper is None:
            cells += ["not in the paper", "", ""]
        else:
            parameters = f"{paper['parameters']} M" if paper["parameters"] else NONE
            cells += [f"{paper['top1_error']:.2f}", f"{paper['top5_error']:.2f}", parameters]
        body.append(cells)
    widths = [max(len(cells[i]) for cells in body) for i in range(7)]
    lines = []
    for name, *cells in body:
        cells = [f"{cell:>{width}}" for cell, width in zip(cells, widths[1:])]
        ours = f"{name:<{widths[0]}}  {'  '.join(cells[:3])}"
        lines.append(f"{ours}  │  {'  '.join(cells[3:])}".rstrip())
    what = f"{settings['model']} on {settings['data']}"
    over = f"{'':{widths[0]}}  {what}".ljust(len(ours)) + f"  │  {table['paper']}"
    rule = "─" * max(map(len, [over, *lines]))
    return "\n".join([over, lines[0], rule, *lines[1:], rule, *notes])


def _with_deviation(spread: dict, scale: float, form: str) -> str:
    mean = f"{scale * spread['mean']:{form}}"
    if spread["deviation"] is None:
        return mean
    return f"{mean} ± {scale * spread['deviation']:{form}}"


def draw(result: dict, path):
    try:
        import matplotlib
    except ImportError:
        print("Plot: skipped, matplotlib is not installed")
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    settings, tables = result["settings"], result["tables"]
    heights = [len(table["rows"]) for table in tables.values()]
    figure, axes = plt.subplots(
        len(tables), 3, figsize=(11, 1.2 + 0.75 * len(tables) + 0.26 * sum(heights)),
        layout="constrained", squeeze=False, sharex="col", height_ratios=heights,
    )  # fmt: skip
    for (accuracy, speed, paper), table in zip(axes, tables.values()):
        rows = table["rows"]
        names = [row["name"] for row in rows]
        _points(accuracy, [row.get("test_accuracy") for row in rows], 100)
        _points(speed, [row.get("images_per_second") for row in rows], 1)
        for y, row in enumerate(rows):
            if row["paper"]:
                paper.plot(row["paper"]["top1_error"], y, "s", color=PAPER)
            else:
                _say(paper, y, "not in the paper")
            if "left" in row:
                _say(accuracy, y, "leaves no hidden unit here")
        for ax in (accuracy, speed, paper):
            ax.set_yticks(range(len(rows)), names if ax is accuracy else [])
            ax.set_ylim(len(rows) - 0.5, -0.5)
            ax.grid(axis="x", color="0.9")
            ax.set_axisbelow(True)
            ax.spines[["top", "right"]].set_visible(False)
        accuracy.set_title(table["title"], loc="left", fontweight="bold", fontsize=10)
        speed.set_title("this run", loc="left", fontsize=10)
        paper.set_title(table["paper"], loc="left", fontsize=10)
    axes[-1, 0].set_xlabel("test accuracy, %")
    axes[-1, 1].set_xlabel("training, images/s")
    axes[-1, 2].set_xlabel("top-1 error, %, better to the right")
    axes[-1, 2].xaxis.set_inverted(True)
    figure.suptitle(
        f"{settings['model']} on {settings['data']}, mean ± deviation of {settings['seeds']} seeds "
        "(small dots: each), and the paper's ResNet-50 on ImageNet, which nothing is compared with",
        fontsize=10,
    )
    figure.savefig(path, dpi=120)
    plt.close(figure)
    print(f"Plot: {path}")


def _say(ax, y, words):
    ax.text(
        0.5, y, words, va="center", ha="center", color="0.4", fontsize=8,
        transform=ax.get_yaxis_transform(),
    )  # fmt: skip


def _points(ax, spreads, scale):
    for y, spread in enumerate(spreads):
        if spread is None:
            continue
        values = [scale * value for value in spread["of_seeds"]]
        ax.plot(values, [y] * len(values), ".", color=OURS, alpha=0.4, markersize=5)
        deviation = scale * (spread["deviation"] or 0)
        ax.errorbar(scale * spread["mean"], y, xerr=deviation, fmt="o", color=OURS, capsize=3)
