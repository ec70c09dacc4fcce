"""What gpu.py has other programs find: bytes of DRAM by ncu, the tests, the sanitizer.

Each has a command and a reader of what it leaves in the folder.
"""

import csv
import itertools
import os
import re
import shutil
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from gpu_stages.cases import NO_TIME

METRICS = {
    "dram__bytes_read.sum": "read_bytes",
    "dram__bytes_write.sum": "write_bytes",
    "gpu__time_duration.sum": "nanoseconds",
}
# Triton's kernels and those of csrc/cuda; PyTorch has kernels with some of these words too.
KERNELS = "((reduce|apply)_(forward|backward)|moments)_kernel|se_fused::cuda::"
CASES, DRY_CASES = 600, 6  # of the tests
EXECUTABLES = {"ncu": "ncu", "sanitizer": "compute-sanitizer"}


def command(name: str, folder: Path, dry: bool, stage: list[str], seconds: float) -> list[str]:
    """stage: the command of a stage of gpu.py, without its name. Dry, the targets run alone.
    seconds: after which the tests begin no other case."""
    if name == "tests":
        workers = 0 if dry else min(12, os.cpu_count())
        return [
            sys.executable, "-m", "pytest", "-q", "--tb=line", "-p", "no:cacheprovider",
            "-p", "gpu_stages.cases", f"--gpu-cases={DRY_CASES if dry else CASES}",
            f"--gpu-device={'cpu' if dry else 'cuda'}", "-n", str(workers),
            f"--gpu-seconds={seconds:.0f}", f"--junitxml={folder / 'tests.xml'}",
            "tests/operators", "tests/autograd", "tests/modules",
        ]  # fmt: skip
    target = [*stage, "target:large" if name == "ncu" else "target:small"]
    if dry:
        return target
    if name == "ncu":
        # The caches as the kernel before has left them; clocks as they are.
        return [
            "ncu", "--csv", "--log-file", str(folder / "ncu.csv"), "--print-units", "base",
            "--target-processes", "all", "--clock-control", "none", "--cache-control", "none",
            "--kernel-name-base", "demangled", "-k", f"regex:.*({KERNELS}).*", "-c", "32",
            "--metrics", ",".join(METRICS), *target,
        ]  # fmt: skip
    log = folder / "sanitizer.txt"
    return ["compute-sanitizer", "--tool", "memcheck", "--log-file", str(log), *target]


def missing(name: str, dry: bool) -> str | None:
    """What is not installed."""
    executable = EXECUTABLES.get(name)
    if executable and not dry and shutil.which(executable) is None:
        return f"{executable} is not installed"
    return None


def forget(name: str, folder: Path):
    """What an earlier run has left is not read for this one's."""
    for left in {"ncu": ["ncu.csv"], "tests": ["tests.xml"], "sanitizer": ["sanitizer.txt"]}[name]:
        (folder / left).unlink(missing_ok=True)


def rows(name: str, folder: Path, dry: bool) -> list[dict]:
    """Rows of the section of this name; none if the tool has left nothing to read."""
    if name == "tests":
        path = folder / "tests.xml"
        found = junit(path.read_text()) if path.exists() else {"note": "no report, it was cut"}
        return [{"suite": "pytest", **found}]
    if dry:
        alone = {"note": "dry: the target ran without the tool"}
        return [{"kernel": "target", "launch": 0, **alone} if name == "ncu" else
                {"tool": "memcheck", **alone}]
    path = folder / ("ncu.csv" if name == "ncu" else "sanitizer.txt")
    if not path.exists():
        return []
    text = path.read_text(errors="replace")
    return ncu(text) if name == "ncu" else [{"tool": "memcheck", **sanitizer(text)}]


def ncu(text: str) -> list[dict]:
    """A row for each kernel in the order of the launches, from ncu's CSV of a line a metric."""
    lines = [line for line in text.splitlines() if line.startswith('"')]
    launches = {}
    for line in csv.DictReader(lines):
        name, metric = line["Kernel Name"], METRICS.get(line["Metric Name"])
        if metric and re.search(KERNELS, name):
            kernel = launches.setdefault(line["ID"], {"kernel": _short(name)})
            try:
                kernel[metric] = float(line["Metric Value"].replace(",", ""))
            except ValueError:  # "n/a"
                kernel[metric] = None
    found = list(launches.values())
    for kernel, number in zip(found, itertools.count()):
        kernel["launch"] = number
    return found or [{"kernel": "none", "launch": 0, "note": line} for line in _errors(text)[:1]]


def _short(name: str) -> str:
    """Without return type, namespaces, template and function arguments."""
    return re.sub(r"[<(].*", "", name).split("::")[-1].split()[-1]


def _errors(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("==ERROR==")]


def junit(text: str) -> dict:
    """How many tests ended how, and the names of those that failed. Those that no time was left for
    are not among the skipped."""
    root = ElementTree.fromstring(text)
    cases = list(root.iter("testcase"))

    def names(*tags):
        return [f"{case.get('classname')}::{case.get('name')}" for case in cases
                if any(case.find(tag) is not None for tag in tags)]

    failed, skipped = names("failure", "error"), names("skipped")
    unreached = sum(NO_TIME in (of.get("message") or "") for of in root.iter("skipped"))
    return {
        "passed": len(cases) - len(failed) - len(skipped), "failed": len(failed),
        "skipped": len(skipped) - unreached, "unreached": unreached, "failures": failed[:60],
    }  # fmt: skip


def sanitizer(text: str) -> dict:
    """Errors of the summary line; None without one, as of a run that was cut."""
    found = re.findall(r"ERROR SUMMARY: (\d+) error", text)
    kinds = re.findall(r"^========= ((?:Invalid|Misaligned|Program hit|Leaked).*)", text, re.M)
    return {"errors": sum(map(int, found)) if found else None, "kinds": sorted(set(kinds))[:10]}
