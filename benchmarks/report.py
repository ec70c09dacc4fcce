"""Where results go: JSON beside the scripts, tables between markers in the README.

    python benchmarks/report.py FILE               the tables of one results file
    python benchmarks/report.py FILE FILE …        compares devices or commits
    python benchmarks/report.py FILE --readme --plots DIR

FILE: benchmarks/results/<device>.json, as `collect.py` writes it; or the results.jsonl of `gpu.py`,
of which that file is made first. Of a GPU, the README has one table.
"""

import argparse
import json
import re
import sys
from pathlib import Path

import torch
from lib.devices import cpu_name
from lib.errors import RequestError

from se_fused import backends

ROOT = Path(__file__).resolve().parents[1]
BESIDE = Path("beside the results")  # what --plots has without DIR


def machine() -> dict:
    return {
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "capability": backends.load("cpp").cpu_capability(),
    }


def measured_on(result: dict) -> str:
    return (
        f"Measured on a CPU: {result['cpu']}, {result['threads']} threads, "
        f"torch {result['torch']}, kernels for {result['capability']}."
    )


def write_json(result: dict, name: str) -> Path:
    path = ROOT / "benchmarks" / "results" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path


def write_readme(text: str, name: str, source: Path):
    """Puts the text between ``<!-- name: source -->`` and ``<!-- end of name -->``."""
    path, source, root = ROOT / "README.md", source.resolve(), ROOT.resolve()
    if not source.is_relative_to(root):
        raise RequestError(f"{source}: not in {root}, so that README.md cannot name it")
    begin = f"<!-- {name}: {source.relative_to(root).as_posix()} -->"
    end = f"<!-- end of {name} -->"
    pattern = rf"<!-- {re.escape(name)}(: \S+)? -->.*{re.escape(end)}"
    found, count = re.subn(
        pattern, lambda _: f"{begin}\n{text}\n{end}", path.read_text(), flags=re.DOTALL
    )
    if count != 1:
        raise RequestError(f"README.md: {begin} … {end} found {count} times, must be there once")
    path.write_text(found)


def show(result: dict, source: str, readme: bool, plots: Path | None):
    from gpu_stages import tables as gpu_tables
    from lib import (
        tables,  # the scripts that import this one have tables of their own
        tail_table,
    )

    made = {}
    if result["device"]["kind"] == "cuda" or "smoke" in result:
        made["gpu table"] = gpu_tables.table
    else:
        if result["block"]:
            made["bench table"] = tables.block
        if result["tail"]:
            made["tail table"] = tail_table.table
        if result["network"]:
            made["network bench table"] = tables.network
    shown = "\n\n".join(table(result) for table in made.values())
    if not shown:
        raise RequestError(f"{source}: no figures in it")
    print(shown)
    if plots:
        from lib.plots import draw

        draw(result, plots)
    if readme:
        for name, table in made.items():
            write_readme(table(result, folded=True), name, Path(source))


def stored(lines: str, readme: bool) -> str:
    """The path of the results file, made of the lines of gpu.py; of a dry run it is beside them."""
    from gpu_stages.lines import collected
    from lib.devices import file_name
    from lib.results import dumps

    result = collected(lines)
    if result["dry"] and readme:
        raise RequestError(f"{lines}: of a dry run, on tiny maps; nothing for README.md")
    folder = Path(lines).parent if result["dry"] else ROOT / "benchmarks" / "results"
    path = folder / file_name(result["device"])
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(dumps(result))
    print(f"Results: {path}")
    return str(path)


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--readme", action="store_true", help="write the tables into README.md")
    parser.add_argument(
        "--plots", type=Path, metavar="DIR", nargs="?", const=BESIDE,
        help="draw the plots there; without DIR: in a folder beside the results, named as they are",
    )
    args = parser.parse_args(arguments)
    if len(args.files) > 1 and (args.readme or args.plots):
        parser.error("--readme and --plots take one FILE")
    from lib.comparison import compare
    from lib.results import load

    try:
        files = [stored(path, args.readme) if path.endswith(".jsonl") else path
                 for path in args.files]
        results = {path: load(path) for path in files}
        if len(files) > 1:
            print(compare(results))
        else:
            plots = Path(files[0]).with_suffix("") if args.plots is BESIDE else args.plots
            show(results[files[0]], files[0], args.readme, plots)
    except RequestError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
