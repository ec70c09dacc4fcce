"""What a block becomes: the same object, whose forward has fused calls in it.

As with a swapped SE module only the class of the object changes, to one that inherits from the
class it had.
"""

import types
import warnings
from collections.abc import Iterable
from functools import cache, wraps

import torch
from torch import nn

from se_fused.surgery.fusion import Fusion, build
from se_fused.surgery.report import Left


class FusedBlock(nn.Module):
    """A library's block with fused calls in its forward; comes before the library's class."""

    library: type[nn.Module]
    _fusion: Fusion | None = None

    def __reduce_ex__(self, protocol):
        return _rebuild, (self.library,), vars(self)

    def __setstate__(self, state: dict):
        super().__setstate__(state)
        if self._fusion is not None and self._fusion.function is None:
            try:
                self._fusion = build(self, self._fusion.names)
            except Left as reason:
                self._fusion = None
                message = f"{self._get_name()} runs its library's forward: {reason}"
                warnings.warn(message, stacklevel=2)

    def __prepare_scriptable__(self):
        raise NotImplementedError(
            f"torch.jit.script cannot compile {self._get_name()}: use torch.export or "
            "torch.jit.trace, or script the model before fuse or after unfuse"
        )


@cache
def _fused_class(library: type[nn.Module]) -> type:
    @wraps(library.forward)
    def forward(self, *args, **kwargs):
        fusion = self._fusion
        # torch.fx sees the library's own graph, with the names of its nodes.
        symbolic = any([isinstance(a, torch.fx.Proxy) for a in (*args, *kwargs.values())])
        if fusion is None or symbolic or not fusion.holds(self):
            return library.forward(self, *args, **kwargs)
        return fusion.function(self, *args, **kwargs)

    members = {
        "forward": forward,
        "library": library,
        "__module__": FusedBlock.__module__,
        "__doc__": FusedBlock.__doc__,
    }
    return types.new_class(
        f"Fused{library.__name__}", (FusedBlock, library), exec_body=lambda b: b.update(members)
    )


def _rebuild(library: type[nn.Module]) -> nn.Module:
    """An empty block of the class, for pickle and deepcopy."""
    return nn.Module.__new__(_fused_class(library))


def fuse_block(block: nn.Module, names: Iterable[str]) -> Fusion:
    """Fuses what stands around these SE modules of a block, in place; raises Left."""
    fusion = build(block, tuple(names))
    if not isinstance(block, FusedBlock):
        block.__class__ = _fused_class(type(block))
    block._fusion = fusion
    return fusion


def unfuse_block(block: FusedBlock) -> Fusion | None:
    fusion = vars(block).pop("_fusion", None)
    block.__class__ = block.library
    return fusion
