"""Fused squeeze-and-excitation for PyTorch."""

from se_fused import earlier as _earlier  # noqa: F401
from se_fused.backends import backend
from se_fused.functional import (
    batch_norm_squeeze_excite,
    rescale,
    squeeze,
    squeeze_excite,
    squeeze_excite_add_act,
)
from se_fused.gates import record_gates
from se_fused.modules import FusedBatchNormSE, FusedSE
from se_fused.surgery import fuse, insert_se, remove_se, replace_se, restore_se, unfuse
from se_fused.version import __version__

__all__ = [
    "FusedBatchNormSE",
    "FusedSE",
    "__version__",
    "backend",
    "batch_norm_squeeze_excite",
    "fuse",
    "insert_se",
    "record_gates",
    "remove_se",
    "replace_se",
    "rescale",
    "restore_se",
    "squeeze",
    "squeeze_excite",
    "squeeze_excite_add_act",
    "unfuse",
]
