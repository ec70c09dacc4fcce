"""What torch.jit.script compiles in the place of a fused forward: the same in plain PyTorch.

These functions are not called in Python. ``self`` is the module whose forward they describe.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def scripted_as(plain: Callable) -> Callable:
    """Decorates a forward that torch.jit.script is to compile from the source of ``plain``, whose
    global names must be names of the forward's file too."""

    def decorate(forward: Callable) -> Callable:
        forward.__wrapped__ = plain
        return forward

    return decorate


def squeeze_excite(self, x: Tensor) -> Tensor:
    """``FusedSE.forward``"""
    planes = x.unsqueeze(-1).flatten(2)
    if self.squeeze == "avg_max":
        z = 0.5 * planes.mean(2) + 0.5 * planes.amax(2)
    elif self.squeeze == "max":
        z = planes.amax(2)
    elif self.squeeze == "concat":
        z = torch.cat([planes.mean(2), planes.amax(2)], 1)
    else:
        z = planes.mean(2)
    if hasattr(self, "excitation"):
        g = self.excitation(z)
    else:
        z = z[:, :, None, None].to(self.fc1.weight.dtype)
        g = self.gate(self.fc2(self.act(self.bn(self.fc1(z)))))
    g = g.flatten(1).to(x.dtype)
    for _ in range(x.dim() - 2):
        g = g.unsqueeze(-1)
    return x * g


def batch_norm_squeeze_excite(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
    """``FusedBatchNormSE.forward``"""
    if (residual is not None) != self.add:
        raise TypeError("residual must be given if add is True, and only then")
    y = self.se(self.act(self.bn(x)))
    if residual is not None:
        y = y + residual
    return self.post_act(y)
