"""What the two runs amount to: numbers, table, JSON."""

import json
import math
import platform
import statistics

import torch
from lib.peak_memory import MEANING

import se_fused.backends


def summarise(
    args, runs, accuracies, peaks, block_times, steps, world_size, test_images
) -> dict:
    """Everything observed, and the comparison. Ratios say how many times better fused is."""
    eager, fused = runs
    # The first epoch pays for start-up and compiling: it counts only where it is the only one.
    timed = slice(1 if args.epochs > 1 else 0, None)
    images = steps * args.batch_size * world_size
    seconds = {run.name: run.epoch_seconds[timed] for run in runs}
    se_ms = {
        "eager": sum(block.eager_ms for block in block_times),
        "fused": sum(block.fused_ms for block in block_times),
    }
    ratios = [e / f for e, f in zip(seconds["eager"], seconds["fused"])]
    differences = [abs(a - b) for a, b in zip(eager.losses, fused.losses)]
    largest = max(differences) if all(map(math.isfinite, differences)) else math.nan
    return {
        "settings": {name: value for name, value in vars(args).items() if name != "out"},
        "device": device_name(eager.device),
        "backend": se_fused.backends.backend_for(eager.device),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processes": world_size,
        "steps_per_epoch": steps,
        "test_images": test_images,
        "peak_memory_meaning": MEANING,
        "runs": {
            run.name: {
                "images_per_second": images / statistics.median(seconds[run.name]),
                "se_ms_per_step": se_ms[run.name],
                "peak_memory_bytes": peak,
                "test_accuracy": accuracy,
                "final_loss": statistics.mean(run.losses[-steps:]),
                "epoch_seconds": run.epoch_seconds,
                "losses": run.losses,
            }
            for run, accuracy, peak in zip(runs, accuracies, peaks)
        },
        "speed_ratio": statistics.median(ratios),
        "speed_ratio_range": [min(ratios), max(ratios)],
        "se_time_ratio": se_ms["eager"] / se_ms["fused"],
        "first_loss_difference": differences[0],
        "largest_loss_difference": largest,
        "largest_loss_difference_step": differences.index(max(differences)) + 1,
        "se_blocks": [block._asdict() for block in block_times],
    }


def table(result: dict) -> str:
    eager, fused = result["runs"]["eager"], result["runs"]["fused"]
    accuracy_gain = 100 * (fused["test_accuracy"] - eager["test_accuracy"])
    # Of the difference of two such counts of right answers, as if they were drawn anew.
    wrong = 1 - statistics.mean([eager["test_accuracy"], fused["test_accuracy"]])
    deviation = 100 * math.sqrt(2 * wrong * (1 - wrong) / result["test_images"])
    slowest, fastest = result["speed_ratio_range"]
    timed = "blocks around SE" if result["settings"]["fuse"] else "SE blocks"
    rows = [
        ("", "eager", "fused", "fused against eager"),
        _row("training, images/s", eager, fused, "images_per_second", "{:.1f}")
        + (f"{result['speed_ratio']:.2f}× the speed ({slowest:.2f} to {fastest:.2f})",),
        _row(f"inside the {timed}, ms/step", eager, fused, "se_ms_per_step", "{:.2f}")
        + (f"{result['se_time_ratio']:.2f}× the speed",),
        _row("peak memory of a step, MiB", eager, fused, "peak_memory_bytes", "{:.1f}", 2**-20)
        + (f"{fused['peak_memory_bytes'] / eager['peak_memory_bytes']:.2f}× the memory",),
        _row("training loss, last epoch", eager, fused, "final_loss", "{:.4f}")
        + (f"{fused['final_loss'] - eager['final_loss']:+.4f}",),
        _row("test accuracy, %", eager, fused, "test_accuracy", "{:.2f}", 100)
        + (f"{accuracy_gain:+.2f} (chance alone: ± {deviation:.2f})",),
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = [
        f"{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}   {row[3]}"
        for row in rows
    ]
    rule = "─" * max(map(len, lines))
    lines = ["", lines[0], rule, *lines[1:], rule]
    lines.append(
        f"Loss curves differ by {result['first_loss_difference']:.1e} at the first step and by at "
        f"most {result['largest_loss_difference']:.1e} (step "
        f"{result['largest_loss_difference_step']} of {len(eager['losses'])})."
    )
    return "\n".join(lines)


def write_json(result: dict, path):
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"Numbers: {path}")


def _row(label, eager, fused, key, form, scale=1.0):
    return label, form.format(eager[key] * scale), form.format(fused[key] * scale)


def device_name(device):
    if device.type == "cuda":
        return torch.cuda.getdevice_name(device)
    return f"{device.type} ({platform.machine()})"
