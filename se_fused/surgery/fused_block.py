"""A fused block: the same object, whose forward has fused calls in it while its guard holds."""

import warnings
from collections.abc import Iterable

import torch
import torch.fx
from torch import nn

from se_fused.surgery.class_swap import ClassSwapped, library_of, made_class, with_source_of
from se_fused.surgery.fused_forward import Fusion, build
from se_fused.surgery.graph import OwnProxy
from se_fused.surgery.report import NotFusible, warn_once

_TRACED = "torch.fx traces through it: make its class a leaf, or call fuse on the traced module"


class FusedBlock(ClassSwapped):
    """A library's block with fused calls in its forward."""

    __fusion__: Fusion | None = None  # a slice of a fused Sequential has its class alone

    @classmethod
    def __members__(cls, library: type[nn.Module]) -> dict:
        def run(block, args, kwargs):
            proxies = [a for a in (*args, *kwargs.values()) if isinstance(a, torch.fx.Proxy)]
            if proxies:  # torch.fx sees the library's own graph, with the names of its nodes
                if not isinstance(proxies[0], OwnProxy):
                    warn_once(block, _TRACED)
                return library.forward(block, *args, **kwargs)
            if block.__fusion__ is None:
                return library.forward(block, *args, **kwargs)
            function, found = block.__fusion__.calls.find(block, args, kwargs)
            if function is not None:
                return function(block, *found)
            warn_once(block, found)
            return library.forward(block, *args, **kwargs)

        def restore(block, state):
            library.__setstate__(block, state)
            fusion = block.__fusion__
            if fusion is not None and fusion.calls is None:  # the class may be another here
                _fuse_again(block)

        return {"forward": with_source_of(library.forward, run), "__setstate__": restore}


def _fuse_again(block: FusedBlock):
    fusion = unfuse_block(block)
    try:
        fuse_block(block, fusion.names)
    except NotFusible as reason:
        message = f"{block._get_name()} runs its library's forward after loading: {reason}"
        warnings.warn(message, stacklevel=2)


def fuse_block(
    block: nn.Module,
    names: Iterable[str],
    examples: Iterable[tuple] = (),
    verified: dict | None = None,
) -> Fusion:
    """Fuses what stands around these SE modules of a block, in place; raises NotFusible."""
    earlier = unfuse_block(block) if isinstance(block, FusedBlock) else None
    try:
        fusion = build(block, tuple(names), list(examples), verified)
    except NotFusible:
        if earlier is not None:
            _put(block, earlier)
        raise
    _put(block, fusion)
    return fusion


def _put(block: nn.Module, fusion: Fusion):
    try:
        block.__class__ = made_class(FusedBlock, type(block))
    except TypeError as error:  # objects whose class is fixed
        raise NotFusible(f"its block's class cannot be changed: {error}") from error
    block.__dict__["__fusion__"] = fusion


def unfuse_block(block: FusedBlock) -> Fusion | None:
    block.__class__ = library_of(type(block))
    block.__dict__.pop("__said__", None)
    return block.__dict__.pop("__fusion__", None)
