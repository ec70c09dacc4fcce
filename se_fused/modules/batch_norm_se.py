"""``FusedBatchNormSE``: BatchNorm, activation, SE, residual and ReLU as one module."""

import torch
import torch.distributed as dist
import torch.fx
from torch import Tensor, nn

from se_fused import functional
from se_fused.activations import NORM_ACTS, POST_ACTS, function_name, make_module
from se_fused.modules.layers import Specification, has_global_hooks, is_beside, is_changed, is_plain
from se_fused.modules.scripting import batch_norm_squeeze_excite, scripted_as
from se_fused.modules.se import FusedSE, specification_of, traced

# The normalisations known, with the dims of the maps that they take.
BATCH_NORMS = {
    nn.BatchNorm1d: (2, 3),
    nn.BatchNorm2d: (4,),
    nn.BatchNorm3d: (5,),
    nn.SyncBatchNorm: (2, 3, 4, 5),
}


class FusedBatchNormSE(nn.Module):
    """The end of a residual block, fused::

        y = post_act(se(act(bn(x))) + residual)

    with ``bn = nn.BatchNorm2d(num_features, …)`` and ``se = FusedSE(num_features, …)``, which are
    its children ``bn`` and ``se``. SE and the addition ride on passes over the map that BatchNorm
    makes anyway: a training step moves the map 10 times, instead of 29 times unfused (9 instead of
    26 with an activation before SE and nothing after).

    Args:
        num_features, eps, momentum, affine, track_running_stats: as ``nn.BatchNorm2d`` takes them.
        act: between BatchNorm and SE: None, "relu", "silu" or "hardswish" run fused; anything else
            that FusedSE takes as an act_layer works, unfused.
        add: whether ``forward`` takes a residual.
        post_act: at the end: None or "relu" run fused, others unfused.
        rd_ratio, rd_channels, rd_divisor, add_maxpool, bias, act_layer, norm_layer, gate_layer: as
            ``FusedSE`` takes them; what does not run there as one operator runs unfused here.
        process_group: take the statistics over the processes of this group, as
            ``nn.SyncBatchNorm`` does (``torch.distributed.group.WORLD`` for all).

    Shapes: x and residual ``[N, C, H, W]`` to the same shape, x's layout. dtypes as ``FusedSE``;
    parameters and running statistics may stay float32 beside a 16-bit x.

    Kept for the backward pass: x, one bit per element with a ReLU, and tensors of [N, C].

    Source: Hu et al., arXiv 1709.01507, figures 2 and 3.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        act=None,
        add: bool = False,
        post_act=None,
        rd_ratio: float = 1 / 16,
        rd_channels: int | None = None,
        rd_divisor: int = 8,
        add_maxpool: bool = False,
        bias: bool = True,
        act_layer=nn.ReLU,
        norm_layer=None,
        gate_layer="sigmoid",
        process_group=None,
        device=None,
        dtype=None,
    ):
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        arguments = num_features, eps, momentum, affine, track_running_stats
        if process_group is None:
            self.bn = nn.BatchNorm2d(*arguments, **factory)
        else:
            self.bn = nn.SyncBatchNorm(*arguments, process_group, **factory)
        self.act = make_module("identity" if act is None else act, "act")
        self.se = FusedSE(
            num_features, rd_ratio, rd_channels, rd_divisor, add_maxpool, bias, act_layer,
            norm_layer, gate_layer, **factory,
        )  # fmt: skip
        self.post_act = make_module("identity" if post_act is None else post_act, "post_act")
        self.add = add

    @scripted_as(batch_norm_squeeze_excite)
    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if (residual is not None) != self.add:
            raise TypeError(
                "residual must be given, as add is True"
                if self.add
                else "residual cannot be given, as add is False"
            )
        if isinstance(x, torch.fx.Proxy):
            return traced(self, x) if residual is None else traced(self, x, residual)
        modules = self.bn, self.act, self.se
        found = block_specification(*modules, x, residual, self.post_act)
        if found is not None:
            return fused(*modules, x, residual, self.post_act, found)
        y = self.bn(x)
        y = self.se(y if self.act is None else self.act(y))
        if residual is not None:
            y = y + residual
        return y if self.post_act is None else self.post_act(y)

    def extra_repr(self) -> str:
        return f"add={self.add}"


def fused(bn, act, se, x, residual, post_act, found: Specification) -> Tensor:
    """``post_act(se(act(bn(x))) + residual)`` as one function; found: by block_specification."""
    w1, b1, w2, b2, inner_act, gate = found
    is_tracking = bn.training and bn.track_running_stats
    has_running = bn.running_mean is not None and (is_tracking or not bn.training)
    return functional.batch_norm_squeeze_excite(
        x,
        bn.running_mean if has_running else None,
        bn.running_var if has_running else None,
        bn.weight,
        bn.bias,
        w1,
        b1,
        w2,
        b2,
        residual=residual,
        training=bn.training or bn.running_mean is None,
        momentum=_count_batch(bn, is_tracking),
        eps=bn.eps,
        norm_act=_name(act),
        act=inner_act,
        gate=gate,
        post_act=_name(post_act),
        process_group=_process_group(bn),
        on_gate=se.__on_gate__,
    )


def block_specification(
    bn, act, se, x, residual, post_act, dims: tuple[int, ...] | None = None
) -> Specification | None:
    """Weights and names of the SE between, if the modules are fused at this call.

    dims: of the maps that bn takes, where its class is none of PyTorch's.
    """
    if not is_plain(x) or has_global_hooks():
        return None
    if x.dim() not in (dims or BATCH_NORMS.get(type(bn), ())):
        return None
    if _name(act) not in NORM_ACTS or _name(post_act) not in POST_ACTS:
        return None
    if is_changed(bn) or is_changed(act) or is_changed(se) or is_changed(post_act):
        return None
    for t in (bn.weight, bn.bias, bn.running_mean, bn.running_var):
        if t is not None and not is_beside(t, x):
            return None
    if residual is not None and not is_like(residual, x):
        return None
    return specification_of(se, x)


def is_like(residual, x: Tensor) -> bool:
    return (
        is_plain(residual)
        and (torch.jit.is_tracing() or residual.shape == x.shape)
        and residual.dtype == x.dtype
        and residual.device == x.device
    )


def _name(act) -> str | None:
    return "identity" if act is None else function_name(act)


def _count_batch(bn, is_tracking: bool) -> float:
    """The momentum of this batch, counted where batches are; as nn.BatchNorm does."""
    if is_tracking and bn.num_batches_tracked is not None:
        bn.num_batches_tracked.add_(1)
        if bn.momentum is None:
            return 1.0 / float(bn.num_batches_tracked)
    return 0.0 if bn.momentum is None else bn.momentum


def _process_group(bn):
    if not issubclass(type(bn), nn.SyncBatchNorm) or not bn.training:
        return None
    if not (dist.is_available() and dist.is_initialized()):
        return None
    return bn.process_group or dist.group.WORLD
