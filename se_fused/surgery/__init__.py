"""Putting FusedSE into models that exist, and fusing it with what stands around it."""

from se_fused.surgery.fuse import fuse, unfuse
from se_fused.surgery.insert import insert_se
from se_fused.surgery.remove import remove_se
from se_fused.surgery.replace import replace_se, restore_se
from se_fused.surgery.report import Report

__all__ = ["Report", "fuse", "insert_se", "remove_se", "replace_se", "restore_se", "unfuse"]
