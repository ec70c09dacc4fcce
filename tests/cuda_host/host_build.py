"""Compiles programs that run CUDA kernels on the CPU, once for each sanitizer.

Objects and programs stay in build/, under a hash of all that goes into them: the processes of the
tests share them, and a run in which no source has changed compiles nothing.
"""

import hashlib
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from filelock import FileLock

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
KEPT = ROOT / "build" / "cuda_host"
CUDA = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "include")

SANITIZERS = {
    "plain": [],
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-fsanitize=thread"],
    # gcc calls the functions of shared_memory.h at every access.
    "initialised": ["-fsanitize=kernel-address", "-DCUDA_HOST_INITIALISED"],
}


def why_not():
    """Why nothing can be built here; None if it can."""
    if not shutil.which("g++"):
        return "there is no g++"
    if not (CUDA / "cuda_fp16.h").is_file():
        return f"there are no CUDA headers in {CUDA}; CUDA_HOME names the toolkit's folder"
    return None


def build(sources, sanitizer, options=()):
    """The program of these sources, C++ whatever their names, for a key of SANITIZERS."""
    command = ["g++", "-std=c++17", "-O1", "-g", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]
    command += ["-I", str(HERE), "-isystem", str(CUDA), *SANITIZERS[sanitizer], *options]
    key = hashlib.sha256(repr((inputs(), command, sorted(map(str, sources)))).encode())
    program = KEPT / f"{sources[0].stem}-{sanitizer}-{key.hexdigest()[:16]}"
    KEPT.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{program}.lock"):
        if not program.exists():
            for older in KEPT.glob(f"{sources[0].stem}-{sanitizer}-*"):
                if not older.name.startswith(program.name):
                    older.unlink()
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                objects = [f"{program}-{source.stem}.o" for source in sources]
                compile_ = [[*command, "-x", "c++", "-c", source, "-o"] for source in sources]
                list(pool.map(lambda line, to: done([*line, to]), compile_, objects))
            done([*command, *objects, "-o", f"{program}.new"])
            os.replace(f"{program}.new", program)
            for each in objects:
                os.unlink(each)
    return program


def done(command):
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


@cache
def inputs() -> str:
    """A hash of the sources and headers, the compiler and the toolkit."""
    found = hashlib.sha256(subprocess.run(["g++", "-v"], capture_output=True).stderr)
    found.update((CUDA / "cuda.h").read_bytes())
    for folder, pattern in ((ROOT / "csrc", "**/*"), (HERE, "*.cpp"), (HERE, "*.h")):
        for path in sorted(folder.glob(pattern)):
            if path.is_file():
                found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()


def run(program, *arguments, timeout=120):
    """Runs the program, to its end or the first report of a sanitizer."""
    return subprocess.run(
        [program, *arguments],
        env={**os.environ, "TSAN_OPTIONS": "halt_on_error=1"},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
