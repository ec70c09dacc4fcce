"""Fused squeeze-and-excitation for PyTorch."""

from se_fused.functional import rescale, squeeze, squeeze_excite
from se_fused.module import FusedSE
from se_fused.ops import backend
from se_fused.surgery import replace_se, restore_se
from se_fused.version import __version__

__all__ = [
    "FusedSE",
    "__version__",
    "backend",
    "replace_se",
    "rescale",
    "restore_se",
    "squeeze",
    "squeeze_excite",
]
