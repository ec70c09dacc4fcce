"""The lines of a run of gpu.py, and the results file made of them.

DIR/results.jsonl has a JSON object a line, {"section": …, …}, appended as the figures come, so that
a run that is cut leaves what it has. Of lines with the same key the last counts; a torn one is
passed over.

    run                    commit, dirty, date, dry: the beginning of a run
    device                 devices.facts
    block, tail, network   rows as bench_block.py, bench_tail.py and bench_network.py have them
    the rest               SECTIONS below
"""

import json
from pathlib import Path

from lib.errors import RequestError

NAME = "results.jsonl"
# Sections that a GPU's results file has beside the others, and what tells their rows apart.
SECTIONS = {
    "copy": ("bytes",),  # GB/s of PyTorch's copy
    "backends": ("backend",),  # which run, and why the others do not
    "smoke": ("backend", "kind", "shape", "layout", "dtype"),  # comparisons with float64
    "variants": ("of", "shape", "hidden", "dtype", "layout", "direction", "variant"),
    "ncu": ("kernel", "launch"),  # bytes of DRAM
    "tests": ("suite",),
    "sanitizer": ("tool",),
    "stages": ("stage",),  # exit status and seconds
    "errors": ("of", "what"),
}
BENCHMARKS = ("block", "tail", "network")


def write(folder: Path, section: str, **row):
    """Appends a line, behind the end of one that was cut."""
    path = folder / NAME
    torn = path.exists() and path.stat().st_size and path.read_bytes()[-1:] != b"\n"
    with path.open("a") as file:
        file.write("\n" * bool(torn) + json.dumps({"section": section, **row}) + "\n")


def read(path: Path) -> list[dict]:
    """The lines of the last commit that was run, dry or not."""
    found, current = [], None
    try:
        text = path.read_text()
    except OSError as error:
        raise RequestError(f"{path}: {error.strerror}") from None
    for line in text.splitlines():
        try:
            row = json.loads(line)
            section = row["section"]
        except (ValueError, TypeError, KeyError):
            continue
        if section == "run":
            run = row["commit"], row["dry"]
            if run != current:
                found, current = [], run
        found.append(row)
    return found


def collected(path) -> dict:
    """What results.load returns, with SECTIONS; whatever is missing is empty."""
    from collect import identity, rounded  # needs torch, which gpu.py can do without

    lines = read(Path(path))
    device = next((line for line in reversed(lines) if line["section"] == "device"), None)
    run = next((line for line in reversed(lines) if line["section"] == "run"), None)
    if device is None or run is None:
        missing = "run" if run is None else "device"
        raise RequestError(f"{path}: no line of section {missing}; not written by gpu.py")
    rows = {section: {} for section in (*BENCHMARKS, *SECTIONS)}
    for line in lines:
        row = {key: value for key, value in line.items() if key != "section"}
        section = line["section"]
        if section in BENCHMARKS:
            rows[section][identity(row)] = rounded(row)
        elif section in SECTIONS:
            key = tuple(str(row.get(name)) for name in SECTIONS[section])
            rows[section][key] = rounded(row)
    found = {section: list(of.values()) for section, of in rows.items()}
    # What their tables have every other time over.
    found["tail"] = [row for row in found["tail"] if "fused" in row["ms"]]
    ours = {"fused", "fused blocks"}
    found["network"] = [row for row in found["network"]
                        if "eager" in row["ms"] and ours & row["ms"].keys()]
    return {
        "device": {key: value for key, value in device.items() if key != "section"},
        "malloc": {}, "commit": run["commit"], "dirty": run["dirty"], "date": run["date"],
        "dry": run["dry"], **found,
    }  # fmt: skip


def missing_figures(path: Path) -> list[str]:
    """Of the sections that a stage has planned: those that have fewer rows."""
    lines, found = read(path), collected(path)
    planned = {line["of"]: line["count"] for line in lines if line["section"] == "planned"}
    return [
        f"{section}: {len(found[section])} of {count}"
        for section, count in planned.items()
        if len(found[section]) < count
    ]
