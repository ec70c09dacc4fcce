"""The modules: squeeze-and-excitation, and the end of a block with it."""

from se_fused.modules.batch_norm_se import FusedBatchNormSE
from se_fused.modules.se import FusedSE

__all__ = ["FusedBatchNormSE", "FusedSE"]
