"""The files ``benchmarks/results/<device>.json``, which `collect.py` writes and `report.py` reads.

    {"device": {"name", "kind": "cpu" or "cuda", "threads", "torch", "triton", "se_fused", …},
     "malloc": {"block": …, "network": …, "tail": …}, "commit": …, "dirty": …, "date": …,
     "block": [a row of bench_block.py, …], "network": [a row of bench_network.py, …],
     "tail": [a row of bench_tail.py, …]}

The tail is younger than the others: a file without it has none. What gpu.py measures beside these
stands in sections of its own, see `gpu_stages/lines.py`.
"""

import json
from pathlib import Path
from typing import NamedTuple

from gpu_stages.lines import SECTIONS as OF_A_GPU
from lib.contenders import COMPILED, EAGER
from lib.errors import RequestError

SECTIONS = ("block", "network", "tail")
DIRECTIONS = ("forward", "forward+backward")
CONTENDERS = (*EAGER, *COMPILED)
KEYS = ("device", "malloc", "commit", "dirty", "date", "block", "network")
# What bench_network.py calls its copies, and what the tables do.
COPIES = {
    "eager": "untouched",
    "compiled": "compiled",
    "fused": "swapped",
    "fused, compiled": "swapped, compiled",
    "fused blocks": "fused",
    "fused blocks, compiled": "fused, compiled",
}
# What bench_tail.py has beside the fused one, and what the tables call it.
BESIDE_TAIL = {
    "eager": "eager",
    "swapped": "FusedSE alone",
    "compiled": "compiled",
    "fused, compiled": "fused, compiled",
    "without SE": "eager, without SE",
    "without SE, compiled": "compiled, without SE",
}


class Case(NamedTuple):
    """One block on one map; a row is a case, a direction and a contender."""

    network: str
    size: str
    hidden: int
    dtype: str
    layout: str
    backend: str | None

    @classmethod
    def of(cls, row):
        size = "×".join(map(str, row["shape"]))
        return cls(
            row["network"], size, row["hidden"], row["dtype"], row["layout"], row["backend"]
        )

    @property
    def map(self) -> str:
        return f"{self.network} {self.size}, {self.hidden}"


def cases(rows) -> dict[Case, dict[str, dict[str, dict]]]:
    """{case: {direction: {contender: row}}}, contenders in the order of CONTENDERS."""
    found = {}
    for row in sorted(rows, key=lambda row: CONTENDERS.index(row["contender"])):
        found.setdefault(Case.of(row), {}).setdefault(row["direction"], {})[row["contender"]] = row
    order = {Case.of(row): None for row in rows}
    return {case: found[case] for case in order}


def backends(rows) -> list[str]:
    """In the order of measuring, which is that of preference."""
    return list(dict.fromkeys(row["backend"] for row in rows))


def speedup(row) -> float:
    """The contender's time over FusedSE's."""
    return row["this_ms"]["median"] / row["fused_ms"]["median"]


def without_se(kind: str) -> str:
    """The copy without SE that a copy is compared with."""
    return "without SE, compiled" if "compiled" in kind else "without SE"


def read_json(path) -> dict:
    try:
        found = json.loads(Path(path).read_text())
    except OSError as error:
        raise RequestError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise RequestError(f"{path}: not JSON: {error}") from None
    if not isinstance(found, dict):
        raise RequestError(f"{path}: a {type(found).__name__}, not an object")
    return found


def load(path) -> dict:
    found = read_json(path)
    if "benchmarks" in found:
        raise RequestError(f"{path}: of pytest-benchmark; run benchmarks/collect.py {path} first")
    missing = [key for key in KEYS if key not in found]
    if missing:
        raise RequestError(f"{path}: no {', '.join(missing)}; not written by benchmarks/collect.py")
    return {"tail": []} | found


def dumps(result: dict) -> str:
    """JSON with a line per row, so that a diff shows rows."""
    sections = [name for name in (*SECTIONS, *OF_A_GPU) if name in result]
    head = {key: value for key, value in result.items() if key not in sections}
    parts = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    for section in sections:
        rows = ",\n".join(f"  {json.dumps(row)}" for row in result[section])
        parts.append(f' "{section}": [\n{rows}\n ]' if rows else f' "{section}": []')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def threads(device: dict) -> str:
    return f"{device['threads']} thread{'s' * (device['threads'] != 1)}"


def stands(result: dict, section: str) -> str:
    """Where and of what the numbers of a section are."""
    device = result["device"]
    if device["kind"] == "cpu":
        facts = [threads(device), f"kernels for {device['capability']}"]
    else:
        facts = [f"capability {device['capability']}", f"driver {device['driver']}"]
    for package in ("torch", "triton", "se_fused"):
        if device[package]:
            facts.append(f"{package} {device[package]}")
    dirty = " with uncommitted changes" if result["dirty"] else ""
    facts.append(f"commit {(result['commit'] or 'unknown')[:10]}{dirty}")
    facts.append(f"{result['date'][:10]}")
    malloc = result["malloc"].get(section)
    if device["kind"] == "cpu" and malloc:
        facts.append("default malloc" if malloc == "default" else f"a malloc that {malloc}")
    kind = {"cpu": "CPU", "cuda": "GPU"}.get(device["kind"], device["kind"])
    return f"Measured on {device['name']} ({kind}): {', '.join(facts)}."
