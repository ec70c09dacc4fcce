"""The statistics of BatchNorm, [C]: over the processes of a group, and running."""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class Statistics(NamedTuple):
    """What a map is normalized with, [C], in the accumulator's dtype."""

    mean: Tensor
    var: Tensor  # biased
    count: Tensor | int  # values per channel, over all processes; 0: none, or running statistics


def over_processes(mean: Tensor, var: Tensor, count: int, group) -> Statistics:
    """Merged over the processes of a group by Chan's rule."""
    own = torch.cat([mean, var, mean.new_tensor([count])])
    every = own.new_empty(dist.get_world_size(group), own.numel())
    dist.all_gather(list(every.unbind()), own, group=group)
    means, variances = every[:, :-1].unflatten(1, (2, -1)).unbind(1)
    count = every[:, -1].sum()
    share = every[:, -1:] / count
    mean = means[0] + ((means - means[0]) * share).sum(0)
    var = ((variances + (means - mean).square()) * share).sum(0)
    return Statistics(mean, var, count)


def update_running(running_mean: Tensor, running_var: Tensor, batch: Statistics, momentum: float):
    """As nn.BatchNorm does after a batch: the variance unbiased; nothing after an empty one."""
    if isinstance(batch.count, int) and batch.count == 0:
        return
    unbiased = batch.var * (batch.count / (batch.count - 1))
    running_mean.lerp_(batch.mean.to(running_mean.dtype), momentum)
    running_var.lerp_(unbiased.to(running_var.dtype), momentum)
