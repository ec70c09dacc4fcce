"""Builds the C++ extension where torch and a compiler are found; pure Python otherwise.

SE_FUSED_NO_EXT=1 leaves the extension out; SE_FUSED_NO_EXT=0 makes a failed build an error.
"""

import os
from glob import glob

from setuptools import setup

asked = os.environ.get("SE_FUSED_NO_EXT", "")


def skip(reason):
    if asked == "0":
        raise SystemExit(f"se_fused: the C++ extension cannot be built: {reason}")
    print(
        f"se_fused: installing without the C++ extension ({reason}). "
        "CPU tensors will run on the slower 'eager' backend; see `python -m se_fused`."
    )
    return {}


def extension():
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError as error:
        return skip(f"torch is not importable at build time: {error}")

    class OptionalBuild(BuildExtension):
        def build_extensions(self):
            try:
                super().build_extensions()
            except Exception as error:
                skip(f"the build failed: {error}")
                self.extensions = []

    module = CppExtension(
        "se_fused._C",
        sorted(glob("csrc/**/*.cpp", recursive=True)),
        depends=sorted(glob("csrc/**/*.h", recursive=True)),
        extra_compile_args=["-O3", "-fopenmp", "-fvisibility=hidden",
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
