"""The CUDA kernels compiled for every architecture: registers, spills and the width of accesses.

    python tests/machine_code/cuda_code.py [sm_90 ...]

Prints a row for each kernel, and exits with 1 where one spills, uses local memory or more registers
than the budget that stands before it in csrc/cuda, or where a kernel that walks the map has no
16-byte loads (and stores, where it writes the map).
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("launch_*.cu"))
BUDGET = re.compile(
    r"// Budget: (\d+) registers\.\n"
    r"template[^\n]*\n__global__ void __launch_bounds__\([^)]*\)\s+(\w+)\("
)


class Row(NamedTuple):
    kernel: str
    dtype: str
    arch: str
    variants: int
    registers: int  # the most of any variant, as the rest
    spilled: int  # bytes of stack and spills
    least_wide_loads: int
    least_wide_stores: int


def toolkit() -> Path:
    nvcc = shutil.which("nvcc")
    for place in (os.environ.get("CUDA_HOME"), "/usr/local/cuda", nvcc and Path(nvcc).parents[1]):
        if place and Path(place, "bin", "nvcc").exists():
            return Path(place)
    raise SystemExit("no CUDA toolkit found; set CUDA_HOME")


def disassembler() -> str:
    found = shutil.which("nvdisasm")
    if found is None:
        import triton

        found = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    return str(found)


def budgets() -> dict[str, int]:
    texts = "".join(path.read_text() for path in (ROOT / "csrc" / "cuda").glob("*.cuh"))
    return {kernel: int(count) for count, kernel in BUDGET.findall(texts)}


def compile_rows(source: Path, arch: str) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernels.cubin")
        done = subprocess.run(
            [toolkit() / "bin" / "nvcc", "-std=c++17", "-O3", "-cubin", f"-arch={arch}",
             "-Xptxas", "-v", source, "-o", cubin],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        code = subprocess.run(
            [disassembler(), cubin], capture_output=True, text=True, check=True
        ).stdout
    wide = {}
    for section in code.split("\n.text.")[1:]:
        name = section[: section.index(":")]
        wide[name] = tuple(len(re.findall(rf"\b{op}\S*\.128", section)) for op in ("LDG", "STG"))
    found = defaultdict(list)
    for entry in done.stderr.split("Compiling entry function '")[1:]:
        name = entry[: entry.index("'")]
        stack = sum(int(n) for n in re.findall(r"(\d+) bytes (?:stack|spill)", entry))
        registers = int(re.search(r"Used (\d+) registers", entry)[1])
        found[re.search(r"\d([a-z_]+_kernel)I", name)[1]].append((registers, stack, *wide[name]))
    dtype = source.stem.removeprefix("launch_")
    return [
        Row(kernel, dtype, arch, len(all_), *(max(v) for v in list(zip(*all_))[:2]),
            *(min(v) for v in list(zip(*all_))[2:]))
        for kernel, all_ in sorted(found.items())
    ]


def faults(row: Row, budget: dict[str, int]) -> list[str]:
    found = []
    if row.kernel not in budget:
        found.append("has no budget")
    elif row.registers > budget[row.kernel]:
        found.append(f"{row.registers} registers, budget {budget[row.kernel]}")
    if row.spilled:
        found.append(f"spills {row.spilled} bytes")
    if row.kernel in ("reduce_kernel", "rescale_kernel") and not row.least_wide_loads:
        found.append("no 16-byte loads")
    if row.kernel == "rescale_kernel" and not row.least_wide_stores:
        found.append("no 16-byte stores")
    return [f"{row.kernel} {row.dtype} {row.arch}: {what}" for what in found]


def main():
    architectures = sys.argv[1:] or ARCHITECTURES
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [(source, arch) for arch in architectures for source in SOURCES]
        rows = sorted(row for found in pool.map(lambda job: compile_rows(*job), jobs)
                      for row in found)
    print(f"{'kernel':24}{'dtype':7}{'arch':8}{'variants':>9}{'registers':>10}{'spilled':>8}"
          f"{'16-byte loads':>15}{'stores':>7}")
    for row in rows:
        print(f"{row.kernel:24}{row.dtype:7}{row.arch:8}{row.variants:9}{row.registers:10}"
              f"{row.spilled:8}{row.least_wide_loads:15}{row.least_wide_stores:7}")
    wrong = [fault for row in rows for fault in faults(row, budgets())]
    sys.exit("\n".join(wrong) or 0)


if __name__ == "__main__":
    main()
