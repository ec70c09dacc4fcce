"""From the JSON of pytest-benchmark to ``benchmarks/results/<device>.json``.

    pytest benchmarks/bench_block.py --benchmark-json=out/block.json
    pytest benchmarks/bench_tail.py --benchmark-json=out/tail.json
    pytest benchmarks/bench_network.py --benchmark-json=out/network.json
    python benchmarks/collect.py out/block.json out/tail.json out/network.json

All files are of one device and one commit. Prints the path of what it writes.
"""

import argparse
import sys
from pathlib import Path

import report
from lib.devices import file_name
from lib.errors import RequestError
from lib.results import SECTIONS, Case, dumps, read_json

KEPT_DIGITS = 6


def collect(paths) -> dict:
    """One dict of results from several files: see `lib/results.py`."""
    runs = {str(path): _load(path) for path in paths}
    return {
        "device": _same("device", {p: _device(run) for p, run in runs.items()}),
        "malloc": _mallocs(runs),
        "commit": _same("commit", {p: run["commit_info"].get("id") for p, run in runs.items()}),
        "dirty": any(bool(run["commit_info"].get("dirty")) for run in runs.values()),
        "date": max(run["datetime"] for run in runs.values()),
        **_rows(runs),
    }


def section_of(row: dict) -> str | None:
    """Which of the benchmarks an ``extra_info`` is of."""
    if "contender" in row:
        return "block"
    if "tail" in row:
        return "tail"
    return "network" if "images_per_second" in row else None


def identity(row: dict) -> tuple:
    if section_of(row) == "block":
        return (*Case.of(row), row["direction"], row["contender"])
    if section_of(row) == "tail":
        return row["tail"], *Case.of(row)
    return row["network"], row["batch"], row["size"], row["layout"], row["dtype"], row["backend"]


def _load(path) -> dict:
    found = read_json(path)
    missing = [
        key for key in ("machine_info", "commit_info", "benchmarks", "datetime") if key not in found
    ]
    if missing:
        raise RequestError(f"{path}: no {', '.join(missing)}; not written by pytest-benchmark")
    if "se_fused" not in found["machine_info"]:
        raise RequestError(
            f"{path}: machine_info has no se_fused; not measured by `pytest benchmarks`"
        )
    if not found["benchmarks"]:
        raise RequestError(f"{path}: no benchmarks in it")
    for benchmark in found["benchmarks"]:
        if section_of(benchmark["extra_info"]) is None:
            raise RequestError(
                f"{path}: {benchmark['name']} is neither of bench_block.py nor of "
                "bench_tail.py nor of bench_network.py"
            )
    return found


def _device(run) -> dict:
    facts = run["machine_info"]["se_fused"]
    return {key: value for key, value in facts.items() if key != "malloc"}


def _mallocs(runs) -> dict:
    found = {}
    for path, run in runs.items():
        for benchmark in run["benchmarks"]:
            section = section_of(benchmark["extra_info"])
            found.setdefault(section, {})[path] = run["machine_info"]["se_fused"]["malloc"]
    return {section: _same(f"malloc of the {section} rows", of) for section, of in found.items()}


def _rows(runs) -> dict:
    found, seen = {section: [] for section in SECTIONS}, {}
    for path, run in runs.items():
        for benchmark in run["benchmarks"]:
            row = benchmark["extra_info"]
            if identity(row) in seen:
                raise RequestError(f"{path}: {benchmark['name']} is in {seen[identity(row)]} too")
            seen[identity(row)] = path
            found[section_of(row)].append(rounded(row))
    return found


def _same(what: str, values: dict):
    """The one value that all files have."""
    (first, value), *others = values.items()
    for path, other in others:
        if other != value:
            differ = [value, other]
            if isinstance(value, dict):
                keys = [key for key in value | other if value.get(key) != other.get(key)]
                differ = [{key: of.get(key) for key in keys} for of in differ]
            raise RequestError(f"{what} differs: {first}: {differ[0]}, {path}: {differ[1]}")
    return value


def rounded(value):
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return float(f"{value:.{KEPT_DIGITS}g}") if isinstance(value, float) else value


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    args = parser.parse_args(arguments)
    try:
        result = collect(args.files)
    except RequestError as error:
        sys.exit(str(error))
    path = report.ROOT / "benchmarks" / "results" / file_name(result["device"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dumps(result))
    print(path)


if __name__ == "__main__":
    main()
