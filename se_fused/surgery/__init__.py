"""Swapping FusedSE into models that exist."""

from se_fused.surgery.replace import replace_se

__all__ = ["replace_se"]
