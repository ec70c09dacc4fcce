"""The call in the forward of a fused block: BatchNorm, activation, SE, residual and ReLU."""

import sys

from torch import Tensor, nn

from se_fused.modules.batch_norm_se import BATCH_NORMS, block_specification, fused, is_like
from se_fused.modules.layers import is_changed, is_plain
from se_fused.modules.se import FusedSE
from se_fused.surgery.registry import NORMS_WITH_ACT, NormWithAct
from se_fused.surgery.report import warn_once


def fused_end(bn, act, se, x, residual=None, post_act=None) -> Tensor:
    """``post_act(se(act(bn(x))) + residual)`` of modules that a model has: fused where they allow
    it at this call, else one after another.

    Where bn has its activation inside, act is that one.
    """
    found = block_specification(bn, act, se, x, residual, post_act, _dims_of(bn))
    if found is not None:
        return fused(bn, act, se, x, residual, post_act, found)
    _warn_why_not(se, x, residual)
    x = bn(x)
    has_own_act = type(bn) not in BATCH_NORMS and act is getattr(bn, "act", None)
    if act is not None and not has_own_act:
        x = act(x)
    y = se(x)
    if residual is not None:
        y = y + residual
    return y if post_act is None else post_act(y)


def _warn_why_not(se: FusedSE, x, residual):
    """A replaced module that runs its library's forward says so itself."""
    form = se.__se_fused__
    if is_changed(se):
        reason = "it has hooks or a forward of its own"
    elif not is_plain(x):
        reason = f"its map is a {type(x).__name__}"
    elif residual is not None and not is_like(residual, x):
        reason = "what is added to its map is of another shape or dtype, or no plain tensor"
    elif form.guard is None or form.squeeze(se) != "avg" or not form.is_se_alone:
        reason = "it is not one operator, or its tensors are no plain ones of the map's dtype"
    else:
        return
    warn_once(se, reason, "is not fused with the layers around it")


def norm_with_act(cls: type) -> NormWithAct | None:
    return NORMS_WITH_ACT.get((cls.__module__, cls.__qualname__))


def _dims_of(bn) -> tuple[int, ...] | None:
    """Of the maps that a norm takes whose class is none of PyTorch's."""
    known = norm_with_act(type(bn))
    if known is None or type(getattr(bn, "drop", None)) is not nn.Identity:
        return None
    return BATCH_NORMS[known.extends]


def synchronised_or_not(cls: type) -> tuple[type, ...]:
    """The classes that a norm may have before and after a conversion to SyncBatchNorm or back."""
    if cls is nn.SyncBatchNorm:
        return tuple(BATCH_NORMS)
    if cls in BATCH_NORMS:
        return cls, nn.SyncBatchNorm
    known = norm_with_act(cls)
    return (cls,) if known is None else (cls, getattr(sys.modules[cls.__module__], known.converted))
