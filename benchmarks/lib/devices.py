"""The device that a benchmark ran on, as `pytest benchmarks` writes it into its JSON."""

import math
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path

import torch

from se_fused import backends
from se_fused.version import __version__


def facts(device: torch.device) -> dict:
    return {
        "name": cpu_name() if device.type == "cpu" else torch.cuda.get_device_name(device),
        "kind": device.type,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "se_fused": __version__,
        "driver": _driver() if device.type == "cuda" else None,
        **(_of_gpu(device) if device.type == "cuda" else _of_cpu()),
    }


def file_name(device: dict) -> str:
    """cpu-amd-epyc-avx2.json, nvidia-h200.json; virtual machines' processors share a name."""
    name = re.sub(r"\((R|TM|C)\)|@.*|\b(CPU|Processor|\d+-Core)\b", " ", device["name"], flags=re.I)
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "unknown"
    if device["kind"] == "cpu":
        slug = "-".join(filter(None, ("cpu", slug, device["capability"])))
    return slug + ".json"


def sets_past_cache(set_bytes: int, device: torch.device) -> int:
    """How many sets of tensors, taken in turn, pass a GPU's L2 cache twice; 1 on a CPU."""
    if device.type != "cuda":
        return 1
    l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size
    return 1 + math.ceil(2 * l2_bytes / set_bytes)


def cpu_name() -> str:
    try:
        return re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())[1]
    except (OSError, TypeError):
        return platform.processor() or platform.machine()


def _of_cpu() -> dict:
    built = backends.why_not("cpp", torch.device("cpu")) is None
    return {"capability": backends.load("cpp").cpu_capability() if built else None}


def _of_gpu(device) -> dict:
    properties = torch.cuda.get_device_properties(device)
    return {
        "capability": f"{properties.major}.{properties.minor}",
        "processors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
    }


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        return None
    return lines[0] if lines else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
