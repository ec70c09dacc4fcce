"""The statistics of BatchNorm, [C]: of a batch, over the processes of a group, and running.

Source: Ioffe and Szegedy, arXiv 1502.03167.
"""

from math import prod
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from se_fused import ops
from se_fused.memory_format import acc_dtype


class Statistics(NamedTuple):
    """What a map is normalized with, [C], in the accumulator's dtype."""

    center: Tensor
    var: Tensor  # biased
    count: Tensor | int  # values per channel, over all processes; 0: none, or running statistics


def statistics(
    x: Tensor, running, training: bool, momentum: float, group
) -> tuple[Tensor | None, Statistics]:
    """The mean of each plane, [N, C], if a pass over x found it, and what x is normalized with. In
    training the running statistics, where there are any, are updated."""
    if not training:
        return None, Statistics(*(t.to(acc_dtype(x.dtype)) for t in running), 0)
    moments = ops.reduce_forward(x, None, None, None, "identity", "moments")
    positions = prod(x.shape[2:])
    count = x.shape[0] * positions
    if count:
        batch = Statistics(*ops.merge_moments(moments, positions), count)
    else:
        batch = Statistics(*moments.new_zeros(2, x.shape[1]), 0)
    if group is not None:
        batch = over_processes(*batch, group)
    if running[0] is not None:
        update_running(*running, batch, momentum)
    return moments[0], batch


def over_processes(mean: Tensor, var: Tensor, count: int, group) -> Statistics:
    """Merged over the processes of a group by Chan's rule."""
    own = torch.cat([mean, var, mean.new_tensor([count])])
    every = own.new_empty(dist.get_world_size(group), own.numel())
    dist.all_gather(list(every.unbind()), own, group=group)
    means, variances = every[:, :-1].unflatten(1, (2, -1)).unbind(1)
    count = every[:, -1].sum()
    weight = every[:, -1:] / count
    mean = means[0] + ((means - means[0]) * weight).sum(0)
    var = ((variances + (means - mean).square()) * weight).sum(0)
    return Statistics(mean, var, count)


def update_running(running_mean: Tensor, running_var: Tensor, batch: Statistics, momentum: float):
    """As nn.BatchNorm does after a batch: the variance unbiased; nothing after an empty one."""
    if isinstance(batch.count, int) and batch.count == 0:
        return
    unbiased = batch.var * (batch.count / (batch.count - 1))
    running_mean.lerp_(batch.center.to(running_mean.dtype), momentum)
    running_var.lerp_(unbiased.to(running_var.dtype), momentum)


def gradient_through_statistics(
    grad_shift: Tensor, grad_scale: Tensor, scale: Tensor, rstd: Tensor, count, group
) -> tuple[Tensor, Tensor]:
    """slope and offset: what dx gets because mean and variance are x's own."""
    if group is not None:
        both = torch.stack([grad_shift, grad_scale])
        dist.all_reduce(both, group=group)
        grad_shift, grad_scale = both
    of_each = scale / -count
    return of_each * rstd.square() * grad_scale, of_each * grad_shift
