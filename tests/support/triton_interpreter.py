"""Whether Triton's interpreter runs the kernels, with the versions that are installed."""

import torch
from packaging.version import Version

from se_fused import backends

# Before Triton 3.7 a kernel argument that bounds a loop is int() of an array [1], which NumPy
# refuses from 2.4 on.
MENDED_IN, REFUSED_FROM = Version("3.7"), Version("2.4.dev0")


def clash(triton: str, numpy: str) -> str | None:
    """Why the interpreter of this Triton cannot run the kernels with this NumPy; None if it can."""
    if Version(triton) < MENDED_IN and Version(numpy) >= REFUSED_FROM:
        return f"the interpreter of Triton {triton} needs numpy<2.4, not {numpy}"
    return None


def why_not() -> str | None:
    """Why no kernel can be interpreted here; None if they can."""
    if missing := backends.why_not("triton", torch.device("cpu")):
        return missing
    import numpy
    import triton

    return clash(triton.__version__, numpy.__version__)
