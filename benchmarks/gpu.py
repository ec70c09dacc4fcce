"""Correctness and the most wanted numbers of a GPU, in eight minutes.

    python benchmarks/gpu.py                 every stage, each a process of its own
    python benchmarks/gpu.py --dry           the same on tiny maps on the CPU, to try the script
    python benchmarks/gpu.py --stages network,ncu

A figure is a line in DIR/results.jsonl as soon as it is there (gpu_stages/lines.py); what the
processes print is in DIR/log.txt. A stage that hangs, crashes or takes too long leaves what it has
written, and the next one starts. `python benchmarks/report.py DIR/results.jsonl` makes tables of
the lines.
SE_FUSED_COMMIT names the commit where there is no .git.

Exit status: 0 if every comparison with float64 was made and right; dry, if nothing failed and no
figure is missing.
"""

import argparse
import datetime
import functools
import importlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gpu_stages import lines as gpu_lines
from gpu_stages import tools as gpu_tools
from gpu_stages.process import Process

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # se_fused need not be installed
# Most seconds of each, most wanted first.
STAGES = {
    "device": 25, "smoke": 80, "block": 90, "tail": 60, "network": 120,
    "ncu": 30, "tests": 90, "sanitizer": 60,
}  # fmt: skip
TOOLS = ("ncu", "tests", "sanitizer")
MODULES = {
    "device": "smoke", "smoke": "smoke", "block": "blocks", "tail": "blocks",
    "network": "networks", "target": "target",
}  # fmt: skip
# Compile beside the comparisons what is timed after them: nobody else is on the GPU then.
WARMERS = [
    "block:0", "block:1", "block:2", "tail:0", "tail:1",
    "network:eager", "network:fused blocks", "network:without SE",
]  # fmt: skip
DRY_WARMERS = ["tail:0"]
# Of the cases of a stage, processes that share them have every so-manieth.
STRIDES = {"smoke": 4, "block": 3, "tail": 2}
CACHES = Path(tempfile.gettempdir()) / f"se_fused-gpu-{os.getuid()}"
WARMING = 20  # most seconds that warmers have after the comparisons
DRY_PATIENCE = 4  # times the limits
GRACE = 20  # seconds of its limit that a tool has for its report
LEAST = 25  # seconds, with fewer left a stage is not begun


def main(arguments=None) -> int:
    args = _arguments(arguments)
    folder = args.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if args.stage:
        run_stage(args.stage, folder, args.dry)
        return 0
    gpu_lines.write(folder, "run", **_commit(), dry=args.dry)
    try:
        run_stages(args.stages, folder, args.dry, time.monotonic() + args.seconds)
    finally:  # interrupted: nobody is left on the GPU
        for process in [*Process.started]:
            process.kill()
    return _conclude(folder, args.dry, args.stages)


def run_stages(stages, folder: Path, dry: bool, end: float):
    warmed = DRY_WARMERS if dry else WARMERS
    with (folder / "log.txt").open("a") as log:
        run = functools.partial(start, folder=folder, dry=dry, log=log)
        for stage in stages:
            left = end - time.monotonic()
            if left < LEAST:
                _ended(folder, stage, "not begun", 0)
                continue
            warmers = [run(f"warm:{name}") for name in warmed] if stage == "smoke" else []
            limit = STAGES[stage] * (DRY_PATIENCE if dry else 1)
            timed_stage(stage, run, folder, dry, min(limit, left))
            until = min(time.monotonic() + WARMING, end)
            for warmer in warmers:
                warmer.wait_until(until)
            if warmers:
                _forget_choices()


def timed_stage(stage: str, run, folder: Path, dry: bool, seconds: float):
    """One stage within its limit, and the line that says how it ended."""
    lacking = gpu_tools.missing(stage, dry)
    if lacking:
        gpu_lines.write(folder, stage, **_note(stage, lacking))
        _ended(folder, stage, lacking, 0)
        return
    if stage in TOOLS:
        gpu_tools.forget(stage, folder)
    begin = time.monotonic()
    parts = [f"smoke:{part}" for part in range(STRIDES["smoke"])]
    names = parts if stage == "smoke" and not dry else [stage]
    grace = GRACE / 2 if stage in TOOLS else 0
    processes = [run(name, seconds=seconds - 2 * grace) for name in names]
    ends = [process.wait_until(begin + seconds - grace, grace) for process in processes]
    status = next(filter(None, ends), 0)
    if stage in TOOLS:
        for row in gpu_tools.rows(stage, folder, dry):
            gpu_lines.write(folder, stage, **row)
    _ended(folder, stage, status, time.monotonic() - begin)


def start(stage: str, folder: Path, dry: bool, log, seconds: float = 0) -> Process:
    """seconds: after which the tests begin no other case."""
    given = os.environ.get("PYTHONPATH")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), str(ROOT / "benchmarks"), given])),
        "PYTHONUNBUFFERED": "1",
        "SE_FUSED_AUTOTUNE": "0",  # the stages choose the number of warps
        "TORCHINDUCTOR_CACHE_DIR": str(CACHES / "inductor"),
        # It keeps what is compiled around an autograd Function, too.
        "TORCHINDUCTOR_AUTOGRAD_CACHE_ALLOW_CUSTOM_AUTOGRAD": "1",
        "TRITON_CACHE_DIR": str(CACHES / "triton"),
    }
    if dry:  # beside others on few processors
        environment = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"} | environment
    is_warmer = stage.startswith("warm:")
    if is_warmer:
        environment["TORCHINDUCTOR_COMPILE_THREADS"] = "4"
    if stage == "sanitizer":  # every tensor an allocation, so that its bounds are seen
        environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    command = [sys.executable, __file__, "--out", str(folder), *["--dry"] * dry, "--stage"]
    if stage in TOOLS:
        command = gpu_tools.command(stage, folder, dry, command, seconds)
    else:
        command.append(stage)
    if is_warmer and shutil.which("nice"):  # the comparisons come first
        command = ["nice", "-n", "15", *command]
    log.write(f"\n== {stage}\n")
    log.flush()
    return Process(command, environment, log)


def run_stage(name: str, folder: Path, dry: bool):
    """In a process of its own: ``<stage>``, ``<stage>:<part>``, ``warm:<stage>:<part>``."""
    import torch
    from gpu_stages.stage import Stage

    if dry:  # the compilers behind Dynamo take minutes
        torch.compile = functools.partial(torch.compile, backend="eager")
    warming = name.startswith("warm:")
    name, _, part = name.removeprefix("warm:").partition(":")
    arguments = [part] if part else []
    if part.isdigit():
        arguments = [slice(int(part), None, STRIDES[name])]
    stage = getattr(importlib.import_module(f"gpu_stages.{MODULES[name]}"), name)
    stage(Stage(name, folder, dry, warming), *arguments)


def _forget_choices():
    """Which of its configurations is fastest Inductor has tried beside others: it tries again."""
    for choice in (CACHES / "inductor").glob("**/*.best_config"):
        choice.unlink()


def _ended(folder, stage, status, seconds):
    gpu_lines.write(folder, "stages", stage=stage, exit=status, seconds=round(seconds, 1))
    how = f"exit status {status}" if isinstance(status, int) else status
    print(f"{stage}: {how if status else 'done'} ({seconds:.0f} s)", flush=True)


def _note(stage: str, note: str) -> dict:
    key = {"ncu": {"kernel": "none", "launch": 0}, "sanitizer": {"tool": "memcheck"}}[stage]
    return {**key, "note": note}


def _conclude(folder: Path, dry: bool, stages) -> int:
    from gpu_stages import tables as gpu_tables
    from lib.errors import RequestError

    path = folder / gpu_lines.NAME
    try:
        result = gpu_lines.collected(path)
    except RequestError as error:
        print(error)
        return 1
    print(f"\n{gpu_tables.summary(result)}\n\nLines: {path}")
    wrong = [row for row in result["smoke"] if not row["ok"]]
    faults = [f"wrong: {row['backend']} {row['kind']} {row['shape']} {row['layout']}: "
              f"{row['error']}" for row in wrong]
    lacking = gpu_lines.missing_figures(path)
    faults += [text for text in lacking if dry or text.startswith("smoke")]
    if "smoke" in stages and not result["smoke"]:
        faults.append("no comparison with float64")
    if dry:
        faults += [f"{row['stage']}: exit status {row['exit']}" for row in result["stages"]
                   if row["stage"] in stages and row["exit"] != 0]
        faults += [f"{row['of']}: {row['what']}: {row['error']}" for row in result["errors"]]
        sections = {stage: "copy" if stage == "device" else stage for stage in stages}
        faults += [f"{stage}: no figure" for stage, of in sections.items() if not result[of]]
    print("\n".join(faults))
    return int(bool(faults))


def _commit() -> dict:
    def git(*command):
        try:
            return subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True,
                                  check=True).stdout.strip()  # fmt: skip
        except (OSError, subprocess.CalledProcessError):
            return None

    commit = os.environ.get("SE_FUSED_COMMIT") or git("rev-parse", "HEAD")
    return {"commit": commit, "dirty": bool(git("status", "--porcelain", "-uno")),
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat()}  # fmt: skip


def _arguments(arguments):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def stages(text):
        names = text.split(",")
        unknown = set(names) - set(STAGES)
        if unknown:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not among {', '.join(STAGES)}")
        return names

    parser.add_argument("--seconds", type=float, default=480, help="for all of it")
    parser.add_argument("--out", type=Path, metavar="DIR", default=ROOT / "out" / "gpu")
    parser.add_argument("--dry", action="store_true", help="tiny maps on the CPU")
    parser.add_argument("--stages", type=stages, default=list(STAGES), help=", ".join(STAGES))
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("gpu.py: told to end"))
    sys.exit(main())
