"""The picture of the comparison: loss curves and speed bars."""

COLOURS = {"eager": "#E69F00", "fused": "#0072B2"}  # of the Okabe-Ito palette, colour-blind safe


def draw(result: dict, path):
    try:
        import matplotlib
    except ImportError:
        print("Plot: skipped, matplotlib is not installed")
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplot_mosaic(
        [["steps", "time", "training", "blocks"], ["difference", "time", "training", "blocks"]],
        figsize=(14, 4.6),
        width_ratios=(3.5, 2.5, 1.2, 1.2),
        height_ratios=(3, 1),
        layout="constrained",
    )
    settings = result["settings"]
    figure.suptitle(
        f"{settings['model']} on {settings['data']}, {result['device']}: "
        f"eager SE and FusedSE ({result['backend']} backend)",
        fontweight="bold",
    )
    _loss_by_step(axes["steps"], axes["difference"], result)
    _loss_by_time(axes["time"], result)
    _bars(axes["training"], result, "images_per_second", "Training\nimages/s", "speed_ratio")
    timed = "Blocks around SE" if settings["fuse"] else "SE blocks"
    _bars(axes["blocks"], result, "se_ms_per_step", f"{timed}\nms per step", "se_time_ratio")
    figure.savefig(path, dpi=120)
    print(f"Plot: {path}")


def _loss_by_step(ax, ax_difference, result):
    curves = {name: run["losses"] for name, run in result["runs"].items()}
    steps = range(1, len(curves["eager"]) + 1)
    for name, width in (("eager", 4.0), ("fused", 1.0)):
        ax.plot(steps, curves[name], color=COLOURS[name], linewidth=width, label=name)
    ax.set(title="Training loss by step", yscale="log")
    ax.tick_params(labelbottom=False)
    ax.legend()
    differences = [abs(e - f) for e, f in zip(curves["eager"], curves["fused"])]
    ax_difference.sharex(ax)
    ax_difference.plot(steps, differences, color="0.3", linewidth=1.0)
    ax_difference.set(yscale="log", xlabel="step", ylabel="|eager − fused|")


def _loss_by_time(ax, result):
    steps = result["steps_per_epoch"]
    for name, marker in (("eager", "s"), ("fused", "o")):
        run = result["runs"][name]
        times, means = [], []
        for epoch, seconds in enumerate(run["epoch_seconds"]):
            times.append(seconds + (times[-1] if times else 0.0))
            means.append(sum(run["losses"][epoch * steps : (epoch + 1) * steps]) / steps)
        ax.plot(times, means, marker=marker, color=COLOURS[name], label=name)
    ax.set(title="Training loss by time", xlabel="seconds (a point is an epoch)", yscale="log")
    ax.legend()


def _bars(ax, result, key, title, ratio):
    names = list(result["runs"])
    values = [result["runs"][name][key] for name in names]
    bars = ax.bar(names, values, color=[COLOURS[name] for name in names], width=0.7)
    ax.bar_label(bars, fmt="{:.3g}", padding=2)
    ax.set_title(f"{title}\n{result[ratio]:.2f}× the speed")
    ax.margins(y=0.1)
    ax.spines[["top", "right"]].set_visible(False)
