"""What the kernels need to know of a map: sizes, layout and plan, as arguments and grids."""

from functools import lru_cache
from math import prod

import torch
import triton
from torch import Tensor

from se_fused.backends.triton import apply, plan
from se_fused.memory_format import acc_dtype

# Fixed when the kernels were defined, by TRITON_INTERPRET.
INTERPRETED = not isinstance(apply.apply_forward_kernel, triton.runtime.JITFunction)
# The interpreter has no device; few enough multiprocessors to split only the larger planes.
_INTERPRETER = plan.Device(multiprocessors=16, l2_bytes=4 << 20, shared_bytes=48 << 10)
_INT64_FROM = 1 << 31  # elements


class FeatureMap:
    """Of x, which is not empty, and what is read beside it.

    parts: mean, max or norm. With the maximum a reduce program holds two tiles. With a norm, a
    mask or a residual up to seven values a channel must leave room for a tile in registers, and a
    map has rows of bits: its planes of one position are planes.
    """

    def __init__(self, x: Tensor, parts: str = "mean"):
        self.samples, self.channels = x.shape[:2]
        self.spatial = prod(x.shape[2:])
        self.new_empty = x.new_empty
        self.acc = acc_dtype(x.dtype)
        self.device = device_of(x)
        tile_bytes = plan.TILE_BYTES
        if parts != "mean":  # values in float64 take two registers each
            tile_bytes //= 4 if parts == "norm" and x.dtype == torch.float64 else 2
        self.plan = plan.plan(
            self.samples, self.channels, self.spatial, not x.is_contiguous(), x.dtype.itemsize,
            self.device, tile_bytes,
        )  # fmt: skip
        layout = "flat" if parts == "norm" and self.spatial == 1 else self.plan.layout
        self.tile = {
            "LAYOUT": layout,
            "BLOCK_C": self.plan.block_c,
            "BLOCK_M": self.plan.block_m,
            "PLANE": self.spatial if layout == "flat" else 0,
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

    def planes(self, count: int) -> Tensor:
        """[count, N, C]"""
        return self.new_empty((count, self.samples, self.channels), dtype=self.acc)

    def partials(
        self, out: Tensor | None, count: int, excites: bool = False
    ) -> tuple[Tensor | None, Tensor | None]:
        """The reduce programs' partial results and the zeroed counters of finished programs, one a
        sample; out itself and no counter where there is nothing to join or excite."""
        if self.plan.splits == 1 and not excites:
            return out, None
        size = count, self.samples, self.plan.splits, self.channels
        found = self.new_empty(size, dtype=self.acc)
        return found, torch.zeros(self.samples, dtype=torch.int32, device=found.device)

    def excites_in_reduce(self, w1: Tensor) -> bool:
        return plan.excites_in_reduce(
            self.samples, self.channels, w1.shape[0], w1.dtype.itemsize, self.plan.splits,
            self.acc.itemsize, self.device,
        )  # fmt: skip

    @property
    def reduction(self) -> dict:
        return {
            "samples": self.samples,
            "channels": self.channels,
            "spatial": self.spatial,
            "splits": self.plan.splits,
            "tiles_per_split": self.plan.tiles_per_split,
        }

    def excitation(self, w1: Tensor | None) -> dict:
        hidden = 1 if w1 is None else w1.shape[0]
        block_r, chunk = plan.excitation_tile(self.channels, hidden, self.acc.itemsize)
        return {"hidden": hidden, "BLOCK_R": block_r, "CHUNK": chunk}


def device_of(x: Tensor) -> plan.Device:
    return _INTERPRETER if x.device.type == "cpu" else _cuda_device(x.device)


@lru_cache
def _cuda_device(device: torch.device) -> plan.Device:
    found = torch.cuda.get_device_properties(device)
    shared = getattr(found, "shared_memory_per_block_optin", found.shared_memory_per_block)
    return plan.Device(found.multi_processor_count, found.L2_cache_size, shared)
