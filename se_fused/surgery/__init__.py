"""Swapping FusedSE into models that exist."""

from se_fused.surgery.replace import replace_se, restore_se
from se_fused.surgery.report import Report

__all__ = ["Report", "replace_se", "restore_se"]
