"""The launches: output tensors, grids and arguments, on x's device and its current stream.

Maps are not empty here; weights are contiguous, [R, C] and [C, R]; norm is center, scale and
shift, each None without a norm.
"""

from functools import lru_cache
from math import prod

import torch
import triton
from torch import Tensor

from se_fused.backends.reference import nothing
from se_fused.backends.triton import apply, moments, plan, reduce
from se_fused.backends.triton.tuning import tuned
from se_fused.memory_format import acc_dtype, mask_size

# Fixed when the kernels were defined, by TRITON_INTERPRET.
INTERPRETED = not isinstance(apply.apply_forward_kernel, triton.runtime.JITFunction)
# The interpreter has no device; few enough multiprocessors to split only the larger planes.
_INTERPRETER = plan.Device(multiprocessors=16, l2_bytes=4 << 20, shared_bytes=48 << 10)
_INT64_FROM = 1 << 31  # elements
NO_NORM = None, None, None
NO_WEIGHTS = None, None, None, None

_reduce_forward_kernel = tuned(reduce.reduce_forward_kernel)
_moments_kernel = tuned(moments.moments_kernel)
_reduce_backward_kernel = tuned(reduce.reduce_backward_kernel)
_apply_forward_kernel = tuned(apply.apply_forward_kernel)
_apply_backward_kernel = tuned(apply.apply_backward_kernel)


def reduce_forward(
    x: Tensor, norm, norm_act: str, statistic: str, weights=NO_WEIGHTS, act=None, gate=None
) -> tuple[Tensor, Tensor | None]:
    """Statistics, and the gates if there are weights, of which the excitation is in the launch."""
    feature_map = FeatureMap(x, statistic if norm[0] is None else "norm")
    out = feature_map.planes(1 if statistic == "mean" else 2)
    g = None if weights[0] is None else feature_map.planes(1)[0]
    partials, counter = feature_map.partials(out, len(out), g is not None)
    with torch.cuda.device_of(x):
        _reduce_forward_kernel[feature_map.reduce_grid](
            x, *norm, partials, counter, out, g, *weights,
            NORM_ACT=norm_act, STATISTIC=statistic, ACT=act, GATE=gate,
            **feature_map.excitation(weights[0]), **feature_map.reduction, **feature_map.tile,
        )  # fmt: skip
    return out, g


def reduce_moments(x: Tensor) -> Tensor:
    feature_map = FeatureMap(x, "norm")
    out = feature_map.planes(2)
    partials, counter = feature_map.partials(None, 3)
    with torch.cuda.device_of(x):
        _moments_kernel[feature_map.reduce_grid](
            x, partials, counter, out, CHUNK=feature_map.excitation(None)["CHUNK"],
            **feature_map.reduction, **feature_map.tile,
        )  # fmt: skip
    return out


def reduce_backward(
    dy: Tensor, x: Tensor, mask, norm, maximum, g, act: str
) -> tuple[Tensor, Tensor | None]:
    """Sums, and dx if there is a g."""
    count, parts = 1, "mean" if mask is None else "norm"
    if norm[0] is not None:
        count, parts = (2 if act == "identity" else 5), "norm"
    elif maximum is not None:
        count, parts = 2, "max" if mask is None else "norm"
    feature_map = FeatureMap(x, parts)
    sums, dx = feature_map.planes(count), None if g is None else torch.empty_like(x)
    _reduce_backward(feature_map, dy, x, mask, norm, maximum, dx, sums, act, g=g)
    return sums, dx


def excitation_gradient(
    dy, x, mask, z, g, w1, b1, w2, act: str, gate: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dp1, h, dp2 and grad_mean, with the excitation in the launch."""
    feature_map = FeatureMap(x, "mean" if mask is None else "norm")
    dp1, h = (z.new_empty(z.shape[0], w1.shape[0]) for _ in range(2))
    (dp2,), (grad_mean,) = feature_map.planes(1), feature_map.planes(1)
    weights, results = (w1, b1, w2), (dp1, h, dp2, grad_mean)
    _reduce_backward(
        feature_map, dy, x, mask, NO_NORM, None, None, None, "identity", z, g, weights, results,
        act, gate,
    )  # fmt: skip
    return results


def _reduce_backward(
    feature_map, dy, x, mask, norm, maximum, dx, sums, norm_act, z=None, g=None,
    weights=(None,) * 3, results=(None,) * 4, act=None, gate=None,
):  # fmt: skip
    count = 1 if sums is None else len(sums)
    partials, counter = feature_map.partials(sums, count, sums is None)
    with torch.cuda.device_of(x):
        _reduce_backward_kernel[feature_map.reduce_grid](
            dy, x, mask, *norm, maximum, dx, partials, counter, sums, z, g, *weights, *results,
            NORM_ACT=norm_act, COUNT=count, ACT=act, GATE=gate,
            **feature_map.excitation(weights[0]), **feature_map.reduction, **feature_map.tile,
        )  # fmt: skip


def apply_forward(
    x: Tensor, residual: Tensor | None, norm, g: Tensor, act: str, relu: bool
) -> tuple[Tensor, Tensor]:
    has_parts = norm[0] is not None or residual is not None or relu
    feature_map = FeatureMap(x, "norm" if has_parts else "mean")
    y = torch.empty_like(x)
    mask = x.new_empty(mask_size(x), dtype=torch.uint8) if relu else None
    with torch.cuda.device_of(x):
        _apply_forward_kernel[feature_map.apply_grid](
            x, residual, *norm, g, y, mask, feature_map.channels, feature_map.spatial,
            NORM_ACT=act, **feature_map.tile,
        )  # fmt: skip
    return y, mask if relu else nothing(x, torch.uint8)


def apply_backward(
    dy: Tensor, x: Tensor, mask, norm, g: Tensor, grad_mean, maximum, grad_max, slope, offset,
    act: str, add: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    parts = "mean" if maximum is None else "max"
    if norm[0] is not None or mask is not None or add:
        parts = "norm"
    feature_map = FeatureMap(x, parts)
    dx, dr = torch.empty_like(x), torch.empty_like(x) if add else None
    reads_x = act != "identity" or slope is not None or maximum is not None
    with torch.cuda.device_of(x):
        _apply_backward_kernel[feature_map.apply_grid](
            dy, x if reads_x else None, mask, *norm, g, grad_mean, maximum, grad_max, slope,
            offset, dx, dr, feature_map.channels, feature_map.spatial,
            NORM_ACT=act, **feature_map.tile,
        )  # fmt: skip
    return dx, dr if add else nothing(x)


def excites_in_reduce(x: Tensor, w1: Tensor, parts: str = "mean") -> bool:
    feature_map = FeatureMap(x, parts)
    return plan.excites_in_reduce(
        feature_map.samples,
        feature_map.channels,
        w1.shape[0],
        w1.dtype.itemsize,
        feature_map.plan.splits,
        feature_map.acc.itemsize,
        device_of(x),
    )


class FeatureMap:
    """What the kernels need to know of x: sizes, layout and plan.

    parts: mean, max or norm. With the maximum a reduce program holds two tiles. With a norm, a
    mask or a residual up to seven values a channel must leave room for a tile in registers, and a
    map has rows of bits: its planes of one position are planes.
    """

    def __init__(self, x: Tensor, parts: str = "mean"):
        self.samples, self.channels = x.shape[:2]
        self.spatial = prod(x.shape[2:])
        self.new_empty = x.new_empty
        self.acc = acc_dtype(x.dtype)
        tile_bytes = plan.TILE_BYTES
        if parts != "mean":  # values in float64 take two registers each
            tile_bytes //= 4 if parts == "norm" and x.dtype == torch.float64 else 2
        self.plan = plan.plan(
            self.samples, self.channels, self.spatial, not x.is_contiguous(), x.dtype.itemsize,
            device_of(x), tile_bytes,
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
