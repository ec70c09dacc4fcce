"""Builds the C++ extension where torch and a compiler are found; pure Python otherwise.

SE_FUSED_NO_EXT=1 leaves the extension out; SE_FUSED_NO_EXT=0 makes a failed build an error.
The CUDA kernels are part of it where a CUDA toolkit is found (no GPU is needed) and works;
SE_FUSED_CUDA=0 leaves them out, SE_FUSED_CUDA=1 makes it an error not to have them.
TORCH_CUDA_ARCH_LIST, as "8.0 9.0+PTX", chooses the architectures.
"""

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path

from setuptools import setup

asked = os.environ.get("SE_FUSED_NO_EXT", "")
cuda_asked = os.environ.get("SE_FUSED_CUDA", "")
ARCHITECTURES = "7.5 8.0 8.6 8.9 9.0 10.0 12.0+PTX"
CUDA_FLAGS = ["-std=c++17", "-O3", "-Xcompiler", "-fPIC,-fvisibility=hidden"]


def skip(reason):
    if asked == "0":
        raise SystemExit(f"se_fused: the C++ extension cannot be built: {reason}")
    print(
        f"se_fused: installing without the C++ extension ({reason}). "
        "CPU tensors will run on the slower 'eager' backend; see `python -m se_fused`."
    )
    return {}


def cuda_toolkit():
    """The folder of the CUDA toolkit, None without one."""
    if cuda_asked == "0":
        return None
    nvcc = shutil.which("nvcc")
    places = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda",
              nvcc and Path(nvcc).resolve().parents[1]]
    for place in filter(None, places):
        if all(Path(place, part).exists() for part in ("bin/nvcc", "include/cuda_runtime.h")):
            return Path(place)
    if cuda_asked == "1":
        raise SystemExit("se_fused: SE_FUSED_CUDA=1, but no CUDA toolkit is found; set CUDA_HOME")
    return None


def architecture_flags(nvcc):
    """-gencode options for TORCH_CUDA_ARCH_LIST, by default for those that this nvcc knows."""
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST")
    known = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True)
    flags = []
    for entry in re.split(r"[\s;]+", (listed or ARCHITECTURES).strip()):
        number = entry.removesuffix("+PTX").replace(".", "")
        if not listed and f"compute_{number}" not in known.stdout.split():
            continue
        flags += ["-gencode", f"arch=compute_{number},code=sm_{number}"]
        if entry.endswith("+PTX"):
            flags += ["-gencode", f"arch=compute_{number},code=compute_{number}"]
    return flags


def compile_cuda(toolkit, folder):
    """Objects of csrc/cuda/*.cu, by nvcc: they know nothing of torch."""
    nvcc = toolkit / "bin" / "nvcc"
    flags = CUDA_FLAGS + architecture_flags(nvcc)
    sources = sorted(glob("csrc/cuda/*.cu"))
    newest = max(os.path.getmtime(path) for path in glob("csrc/**/*.*", recursive=True))
    folder = Path(folder, "cuda")
    folder.mkdir(parents=True, exist_ok=True)

    def compile_one(source):
        target = folder / (Path(source).stem + ".o")
        if not target.exists() or target.stat().st_mtime < newest:
            subprocess.run([nvcc, *flags, "-c", source, "-o", target], check=True)
        return str(target)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(compile_one, sources))


def add_cuda(module, toolkit, folder):
    """Compiles the CUDA kernels and adds them; where that fails, the CPU kernels are left."""
    try:
        module.extra_objects = compile_cuda(toolkit, folder)
    except (OSError, subprocess.CalledProcessError) as error:
        if cuda_asked == "1" or asked == "0":
            raise SystemExit(f"se_fused: the CUDA kernels cannot be built: {error}") from None
        print(f"se_fused: building the extension without CUDA kernels ({error})")
        return
    module.sources += sorted(glob("csrc/cuda/*.cpp"))
    # The runtime is linked statically: the extension also loads where there is no CUDA.
    module.extra_link_args += [
        f"-L{toolkit}/lib64", "-lcudart_static", "-ldl", "-lpthread", "-lrt"
    ]


def extension():
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError as error:
        return skip(f"torch is not importable at build time: {error}")
    toolkit = cuda_toolkit()

    class OptionalBuild(BuildExtension):
        def build_extensions(self):
            try:
                if toolkit:
                    add_cuda(module, toolkit, self.build_temp)
                super().build_extensions()
            except Exception as error:
                skip(f"the build failed: {error}")
                self.extensions = []

    module = CppExtension(
        "se_fused._C",
        sorted(glob("csrc/*.cpp") + glob("csrc/cpu/**/*.cpp", recursive=True)),
        depends=sorted(glob("csrc/**/*.*", recursive=True)),
        # Comparisons that may not trap become vectors: the loops over activations.
        extra_compile_args=["-O3", "-fno-trapping-math", "-fopenmp", "-fvisibility=hidden",
                            "-Wno-psabi", "-Wno-maybe-uninitialized", "-Wno-uninitialized"],
        extra_link_args=["-fopenmp"],
        define_macros=[
            ("TORCH_TARGET_VERSION", "0x020a000000000000"),
        ],
        py_limited_api=True,
    )
    return {
        "ext_modules": [module],
        "cmdclass": {"build_ext": OptionalBuild},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


setup(**(skip("SE_FUSED_NO_EXT=1") if asked == "1" else extension()))
