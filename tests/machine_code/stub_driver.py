"""Real launches without a GPU: Triton's own driver, JIT and C launcher over ``stub_libcuda.c``.

``fresh_process`` runs Python where Triton finds that library; there ``install`` comes first. From
then on the Triton backend of se_fused takes CPU tensors, whose memory no kernel touches: kernels
are compiled for sm_90 and launched, and the library records the launch or refuses it.
"""

import ctypes
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

HERE = Path(__file__).resolve().parent
LIBRARY = "libcuda.so.1"


def build(folder: Path) -> Path:
    """The library, with the declarations of the installed Triton's cuda.h."""
    import triton

    include = Path(triton.__file__).parent / "backends" / "nvidia" / "include"
    library = folder / LIBRARY
    subprocess.run(
        ["gcc", "-O1", "-shared", "-fPIC", "-I", include, HERE / "stub_libcuda.c", "-o", library],
        check=True,
    )
    return library


def fresh_process(*arguments: str, **environment: str) -> str:
    """What Python prints, given these arguments, where libcuda is the stub. Nothing that Triton
    compiled before is used, nothing that it compiles is kept."""
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder))
        root = HERE.parents[1]
        libraries = folder, os.environ.get("LD_LIBRARY_PATH")
        inherited = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        given = {
            "PYTHONPATH": f"{root}:{HERE}",
            "LD_LIBRARY_PATH": ":".join(filter(None, libraries)),
            "TRITON_LIBCUDA_PATH": folder,
            "TRITON_CACHE_DIR": str(Path(folder, "cache")),
            "SE_FUSED_BACKEND": "triton",
        }
        done = subprocess.run(
            [sys.executable, *arguments], env=inherited | given | environment,
            stdout=subprocess.PIPE, text=True, timeout=3600,
        )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} ended with status {done.returncode}")
    return done.stdout


class Record(ctypes.Structure):
    """What a launch asked of the driver."""

    _fields_ = [
        ("grid", ctypes.c_uint * 3), ("block", ctypes.c_uint * 3), ("shared", ctypes.c_uint),
        ("function", ctypes.c_char_p),
    ]  # fmt: skip


class Library:
    """The stub's own functions."""

    def __init__(self, path: str | Path = LIBRARY):
        self.functions = ctypes.CDLL(str(path))
        self.functions.stub_count.restype = ctypes.c_size_t
        self.functions.stub_record.argtypes = [ctypes.c_size_t]
        self.functions.stub_record.restype = ctypes.POINTER(Record)

    def count(self) -> int:
        return self.functions.stub_count()

    def record(self, at: int) -> Record:
        return self.functions.stub_record(at).contents

    def forget(self):
        self.functions.stub_forget()

    def attribute(self, which: int) -> int:
        """Of the device."""
        value = ctypes.c_int()
        assert self.functions.cuDeviceGetAttribute(ctypes.byref(value), which, 0) == 0
        return value.value


MULTIPROCESSORS, L2_BYTES, SHARED_BYTES = 16, 38, 97  # CUdevice_attribute


def install() -> Library:
    """Triton launches on the stub, and se_fused's Triton backend takes CPU tensors."""
    from triton.backends.nvidia.driver import CudaDriver
    from triton.runtime import driver

    library = Library()
    active = CudaDriver()
    # These three ask torch, which sees no GPU.
    active.get_current_device = lambda: 0
    active.get_current_stream = lambda device: 0
    active.get_device_capability = lambda device: (9, 0)
    driver.set_active(active)

    from se_fused.backends import triton as backend
    from se_fused.backends.triton import feature_map, plan

    device = plan.Device(*map(library.attribute, (MULTIPROCESSORS, L2_BYTES, SHARED_BYTES)))
    feature_map.device_of = lambda x: device  # a CPU tensor's is the interpreter's
    backend.unavailable = lambda device: None  # CPU tensors are refused without the interpreter
    return library


class Launch(NamedTuple):
    """One launch as Triton's JIT function saw it and as the library did."""

    kernel: str
    arguments: dict
    compiled: object  # triton.compiler.CompiledKernel
    seconds: float  # of processor time, to compile and to launch
    grid: list[int]
    threads: int
    shared: int


@contextmanager
def recording(library: Library) -> Iterator[list[Launch]]:
    """Inside, launches join the list. Raises where Triton skips one: it does so, without a word,
    where the grid is empty."""
    from compiled import bound_arguments, processor_seconds
    from triton.runtime import JITFunction

    launches, run = [], JITFunction.run

    def run_and_record(self, *args, grid, warmup, **kwargs):
        before, start = library.count(), processor_seconds()
        compiled = run(self, *args, grid=grid, warmup=warmup, **kwargs)
        seconds = processor_seconds() - start
        name = self.fn.__name__
        if library.count() != before + 1:
            raise RuntimeError(f"{name} was not launched, its grid is {grid}")
        record = library.record(before)
        launches.append(
            Launch(
                name, bound_arguments(self, args, kwargs), compiled, seconds,
                list(record.grid), record.block[0], record.shared,
            )
        )  # fmt: skip
        return compiled

    with patch.object(JITFunction, "run", run_and_record):
        yield launches
