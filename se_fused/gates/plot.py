"""The paper's figure of mean gates: a panel per block, a curve per class."""

import math
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

Label = int | str

# Of the Okabe-Ito palette, colour-blind safe; the mean over all samples is black.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
STYLES = ("-", "--")
MOST = len(COLOURS) * len(STYLES)
COLUMNS = 3


def draw(
    path: str | Path,
    means: dict[str, Tensor],
    class_means: dict[str, dict[Label, Tensor]],
    class_deviations: dict[str, dict[Label, Tensor]],
    recorded: Sequence[Label],
    classes: Sequence[Label] | None,
):
    """One curve for each of the classes, and for all samples; see ``GateRecord.plot``."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("plot needs matplotlib, which is not installed") from None
    classes = _classes(recorded, classes)
    columns = min(COLUMNS, len(means))
    rows = math.ceil(len(means) / columns)
    figure = Figure((1.0 + 4.0 * columns, 1.0 + 2.1 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for ax in axes.flat[len(means) :]:
        ax.set_axis_off()
    for panel, (ax, (name, mean)) in enumerate(zip(axes.flat, means.items())):
        for index, label in enumerate(classes):
            if label not in class_means[name]:
                continue
            colour, style = COLOURS[index % len(COLOURS)], STYLES[index // len(COLOURS)]
            curve = class_means[name][label].numpy()
            ax.plot(curve, label=str(label), linewidth=1.2, color=colour, linestyle=style)
            if class_deviations:
                band = class_deviations[name][label].numpy()
                ends = curve - band, curve + band
                ax.fill_between(range(len(curve)), *ends, color=colour, alpha=0.2, linewidth=0)
        if panel + columns >= len(means):
            ax.set_xlabel("channel")
        ax.plot(mean.numpy(), label="all samples", color="black", linewidth=1.2, linestyle=":")
        ax.set_title(name or "(model)", loc="left", fontsize=10)
        ax.margins(x=0.01)
        ax.spines[["top", "right"]].set_visible(False)
    figure.supylabel("mean gate", fontsize=10)
    title = "Mean gate of each channel"
    if len(classes) < len(recorded):
        title += f", {len(classes)} of {len(recorded)} classes"
    figure.suptitle(title, fontweight="bold")
    handles = {}
    for ax in axes.flat:
        handles |= {label: line for line, label in zip(*ax.get_legend_handles_labels())}
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=8, frameon=False
    )
    figure.savefig(path, dpi=120)


def _classes(recorded: Sequence[Label], classes: Sequence[Label] | None) -> list[Label]:
    if classes is None:
        return list(recorded)[:MOST]
    classes = list(classes)
    unknown = [label for label in classes if label not in recorded]
    if unknown:
        raise ValueError(f"classes must be labels that were recorded, got {unknown[0]!r}")
    if len(classes) > MOST:
        raise ValueError(f"classes must be at most {MOST}, got {len(classes)}")
    return classes
