"""Compiles programs that run CUDA kernels on the CPU, once for each sanitizer."""

import os
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
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


def build(sources, sanitizer, program, options=()):
    """Compiles the sources, C++ whatever their names, for a key of SANITIZERS."""
    command = ["g++", "-std=c++17", "-O1", "-g", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]
    command += ["-I", HERE, "-isystem", CUDA, *SANITIZERS[sanitizer], *options]
    command += ["-x", "c++", *sources, "-o", program]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return program


def run(program, *arguments, timeout=120):
    """Runs the program, to its end or the first report of a sanitizer."""
    return subprocess.run(
        [program, *arguments],
        env={**os.environ, "TSAN_OPTIONS": "halt_on_error=1"},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
