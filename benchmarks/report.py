"""Where results go: JSON beside the scripts, tables between markers in the README."""

import json
import platform
import re
from pathlib import Path

import torch

from se_fused import ops

ROOT = Path(__file__).resolve().parents[1]


def machine() -> dict:
    return {
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "capability": ops.backends.load("cpp").cpu_capability(),
    }


def measured_on(result: dict) -> str:
    return (
        f"Measured on a CPU: {result['cpu']}, {result['threads']} threads, "
        f"torch {result['torch']}, kernels for {result['capability']}."
    )


def write_json(result: dict, name: str):
    path = ROOT / "benchmarks" / "results" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


def write_readme(text: str, name: str):
    """Puts the text between ``<!-- name -->`` and ``<!-- end of name -->``."""
    path = ROOT / "README.md"
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    pattern = f"{re.escape(begin)}.*{re.escape(end)}"
    found, count = re.subn(
        pattern, lambda _: f"{begin}\n{text}\n{end}", path.read_text(), flags=re.DOTALL
    )
    assert count == 1, f"README.md: {begin} … {end} not found"
    path.write_text(found)


def _cpu_name() -> str:
    try:
        return re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())[1]
    except (OSError, TypeError):
        return platform.processor() or platform.machine()
