"""The launches: output tensors, grids and arguments, on x's device and its current stream.

Maps are not empty here; weights are contiguous, [R, C] and [C, R].
"""

from functools import lru_cache
from math import prod

import torch
import triton
from torch import Tensor

from se_fused import plan
from se_fused.backends.triton import apply, reduce
from se_fused.backends.triton.tuning import tuned
from se_fused.memory_format import acc_dtype

# Fixed when the kernels were defined, by TRITON_INTERPRET.
INTERPRETED = not isinstance(apply.rescale_kernel, triton.runtime.JITFunction)
# The interpreter has no device; few enough multiprocessors to split only the larger planes.
_INTERPRETER = plan.Device(multiprocessors=16, l2_bytes=4 << 20, shared_bytes=48 << 10)
_INT64_FROM = 1 << 31  # elements


def squeeze(x: Tensor) -> Tensor:
    feature_map = FeatureMap(x)
    z = feature_map.per_channel()
    _squeeze(feature_map, x, z)
    return z


def excites_in_reduce(x: Tensor, w1: Tensor) -> bool:
    feature_map = FeatureMap(x)
    return plan.excites_in_reduce(
        feature_map.samples,
        feature_map.channels,
        w1.shape[0],
        w1.dtype.itemsize,
        feature_map.plan.splits,
        feature_map.acc.itemsize,
        device_of(x),
    )


def squeeze_excite(x, w1, b1, w2, b2, act: str, gate: str) -> tuple[Tensor, Tensor]:
    """z and g."""
    feature_map = FeatureMap(x)
    z, g = feature_map.per_channel(), feature_map.per_channel()
    _squeeze(feature_map, x, z, g, w1, b1, w2, b2, act, gate)
    return z, g


def gate_gradient(dy: Tensor, x: Tensor) -> Tensor:
    feature_map = FeatureMap(x)
    dg = feature_map.per_channel()
    _gate_gradient(feature_map, dy, x, dg)
    return dg


def rescale_backward(dy: Tensor, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    feature_map = FeatureMap(x)
    dx, dg = torch.empty_like(x), feature_map.per_channel()
    _gate_gradient(feature_map, dy, x, dg, g, dx)
    return dx, dg


def excitation_gradient(
    dy, x, z, g, w1, b1, w2, act: str, gate: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dp1, h, dp2 and share = dz / M."""
    feature_map = FeatureMap(x)
    dp1, h = (z.new_empty(z.shape[0], w1.shape[0]) for _ in range(2))
    dp2, share = feature_map.per_channel(), feature_map.per_channel()
    _gate_gradient(
        feature_map, dy, x, None, g, None, z, w1, b1, w2, dp1, h, dp2, share, act, gate
    )
    return dp1, h, dp2, share


def rescale(x: Tensor, g: Tensor, share: Tensor | None = None) -> Tensor:
    """x · g, or x · g + share."""
    feature_map = FeatureMap(x)
    y = torch.empty_like(x)
    with torch.cuda.device_of(x):
        _rescale_kernel[feature_map.apply_grid](
            x, g, share, y, feature_map.channels, feature_map.spatial, **feature_map.tile
        )
    return y


def _squeeze(feature_map, x, z, g=None, w1=None, b1=None, w2=None, b2=None, act=None, gate=None):
    slots, counter = feature_map.slots(z, excites=w1 is not None)
    with torch.cuda.device_of(x):
        _squeeze_kernel[feature_map.reduce_grid](
            x, slots, counter, z, g, w1, b1, w2, b2,
            ACT=act, GATE=gate, **feature_map.reduction(w1), **feature_map.tile,
        )  # fmt: skip


def _gate_gradient(
    feature_map, dy, x, dg=None, g=None, dx=None,
    z=None, w1=None, b1=None, w2=None, dp1=None, h=None, dp2=None, share=None,
    act=None, gate=None,
):  # fmt: skip
    slots, counter = feature_map.slots(dg, excites=w1 is not None)
    with torch.cuda.device_of(x):
        _gate_gradient_kernel[feature_map.reduce_grid](
            dy, x, slots, counter, dg, g, dx, z, w1, b1, w2, dp1, h, dp2, share,
            ACT=act, GATE=gate, **feature_map.reduction(w1), **feature_map.tile,
        )  # fmt: skip


_rescale_kernel = tuned(apply.rescale_kernel)
_squeeze_kernel = tuned(reduce.squeeze_kernel)
_gate_gradient_kernel = tuned(reduce.gate_gradient_kernel)


class FeatureMap:
    """What the kernels need to know of x: sizes, layout and plan."""

    tile_bytes = plan.TILE_BYTES

    def __init__(self, x: Tensor):
        self.samples, self.channels = x.shape[:2]
        self.spatial = prod(x.shape[2:])
        self.new_empty = x.new_empty
        self.acc = acc_dtype(x.dtype)
        channels_last = not x.is_contiguous()
        self.plan = plan.plan(
            self.samples,
            self.channels,
            self.spatial,
            channels_last,
            x.dtype.itemsize,
            device_of(x),
            self.tile_bytes,
        )
        self.tile = {
            "LAYOUT": self.plan.layout,
            "BLOCK_C": self.plan.block_c,
            "BLOCK_M": self.plan.block_m,
            "PLANE": self.spatial if self.plan.layout == "flat" else 0,
            "ALIGN": self.plan.align,
            "INT64": x.numel() >= _INT64_FROM,
            "enable_fp_fusion": True,
            "num_warps": plan.WARPS,
        }

    @property
    def reduce_grid(self) -> tuple[int]:
        return (self.samples * self.plan.channel_blocks * self.plan.splits,)

    @property
    def apply_grid(self) -> tuple[int]:
        return (self.samples * self.plan.channel_blocks * self.plan.spatial_tiles,)

    def per_channel(self) -> Tensor:
        return self.new_empty((self.samples, self.channels), dtype=self.acc)

    def slots(self, result: Tensor | None, excites: bool) -> tuple[Tensor, Tensor | None]:
        """The reduce programs' slots and the zeroed counters of finished programs, one a sample;
        the result itself and no counter where there is nothing to add or excite."""
        if self.plan.splits == 1 and not excites:
            return result, None
        slots = self.new_empty((self.samples, self.plan.splits, self.channels), dtype=self.acc)
        return slots, torch.zeros(self.samples, dtype=torch.int32, device=slots.device)

    def reduction(self, w1: Tensor | None) -> dict:
        """The sizes that a reduce kernel takes, with the weights' where it excites."""
        hidden = 1 if w1 is None else w1.shape[0]
        block_r, chunk = plan.excitation_tile(self.channels, hidden, self.acc.itemsize)
        return {
            "channels": self.channels,
            "spatial": self.spatial,
            "hidden": hidden,
            "splits": self.plan.splits,
            "tiles_per_split": self.plan.tiles_per_split,
            "BLOCK_R": block_r,
            "CHUNK": chunk,
        }


def device_of(x: Tensor) -> plan.Device:
    return _INTERPRETER if x.device.type == "cpu" else _cuda_device(x.device)


@lru_cache
def _cuda_device(device: torch.device) -> plan.Device:
    found = torch.cuda.get_device_properties(device)
    shared = getattr(found, "shared_memory_per_block_optin", found.shared_memory_per_block)
    return plan.Device(found.multi_processor_count, found.L2_cache_size, shared)
