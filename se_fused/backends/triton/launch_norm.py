"""The launches of a block with BatchNorm, residual and ReLU; see launch.py."""

import torch
from torch import Tensor

from se_fused import plan
from se_fused.backends.reference import mask_size
from se_fused.backends.triton import norm_apply, norm_reduce
from se_fused.backends.triton.launch import FeatureMap
from se_fused.backends.triton.tuning import tuned

_moments_kernel = tuned(norm_reduce.moments_kernel)
_norm_squeeze_kernel = tuned(norm_reduce.norm_squeeze_kernel)
_norm_sums_kernel = tuned(norm_reduce.norm_sums_kernel)
_norm_rescale_kernel = tuned(norm_apply.norm_rescale_kernel)
_norm_rescale_backward_kernel = tuned(norm_apply.norm_rescale_backward_kernel)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    feature_map = _NormMap(x)
    mean, m2 = feature_map.per_channel(), feature_map.per_channel()
    slots, counter = feature_map.slots(None, 3)
    with torch.cuda.device_of(x):
        _moments_kernel[feature_map.reduce_grid](
            x, slots, counter, mean, m2,
            samples=feature_map.samples, **feature_map.reduction, **feature_map.tile,
        )  # fmt: skip
    return mean, m2


def norm_squeeze(x: Tensor, center, scale, shift, act: str) -> Tensor:
    feature_map = _NormMap(x)
    z = feature_map.per_channel()
    slots, counter = feature_map.slots(z)
    with torch.cuda.device_of(x):
        _norm_squeeze_kernel[feature_map.reduce_grid](
            x, center, scale, shift, slots, counter, z,
            ACT=act, **feature_map.reduction, **feature_map.tile,
        )  # fmt: skip
    return z


def norm_rescale(
    x: Tensor, residual: Tensor | None, center, scale, shift, g: Tensor, act: str, relu: bool
) -> tuple[Tensor, Tensor | None]:
    """y, and the mask if there is a ReLU."""
    feature_map = _NormMap(x)
    y = torch.empty_like(x)
    mask = x.new_empty(mask_size(x), dtype=torch.uint8) if relu else None
    with torch.cuda.device_of(x):
        _norm_rescale_kernel[feature_map.apply_grid](
            x, residual, center, scale, shift, g, y, mask,
            feature_map.channels, feature_map.spatial, ACT=act, **feature_map.tile,
        )  # fmt: skip
    return y, mask


def norm_sums(dy: Tensor, x: Tensor, mask: Tensor | None, center, scale, shift, act) -> Tensor:
    feature_map = _NormMap(x)
    count = 2 if act == "identity" else 5
    sums = x.new_empty((count, *x.shape[:2]), dtype=feature_map.acc)
    slots, counter = feature_map.slots(sums, count)
    with torch.cuda.device_of(x):
        _norm_sums_kernel[feature_map.reduce_grid](
            dy, x, mask, center, scale, shift, slots, counter, sums,
            samples=feature_map.samples, ACT=act, **feature_map.reduction, **feature_map.tile,
        )  # fmt: skip
    return sums


def norm_rescale_backward(
    dy: Tensor, x: Tensor, mask: Tensor | None, center, scale, shift, g: Tensor, share: Tensor,
    slope: Tensor | None, offset: Tensor | None, act: str, add: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """dx, and dr if the residual needs one."""
    feature_map = _NormMap(x)
    dx = torch.empty_like(x)
    dr = torch.empty_like(x) if add else None
    reads_x = act != "identity" or slope is not None
    with torch.cuda.device_of(x):
        _norm_rescale_backward_kernel[feature_map.apply_grid](
            dy, x if reads_x else None, mask, center, scale, shift, g, share, slope, offset,
            dx, dr, feature_map.channels, feature_map.spatial, ACT=act, **feature_map.tile,
        )  # fmt: skip
    return dx, dr


class _NormMap(FeatureMap):
    """A feature map with up to seven values a channel, which must leave room for a tile in
    registers; and with rows of bits: planes of one position are planes."""

    def __init__(self, x: Tensor):
        # Values in float64 take two registers each.
        self.tile_bytes = plan.TILE_BYTES // (4 if x.dtype == torch.float64 else 2)
        super().__init__(x)
        if self.spatial == 1:
            self.tile |= {"LAYOUT": "flat", "PLANE": 1}

    def slots(self, result: Tensor | None, *count: int) -> tuple[Tensor | None, Tensor | None]:
        """The programs' slots for so many values a channel, and the zeroed counters of finished
        programs; the result itself and no counter where one program has all of a plane."""
        if self.plan.splits == 1:
            return result, None
        size = (*count, self.samples, self.plan.splits, self.channels)
        slots = self.new_empty(size, dtype=self.acc)
        return slots, slots.new_zeros(self.samples, dtype=torch.int32)

    @property
    def reduction(self) -> dict:
        _, chunk = plan.excitation_tile(self.channels, 1, self.acc.itemsize)
        return {
            "channels": self.channels,
            "spatial": self.spatial,
            "splits": self.plan.splits,
            "tiles_per_split": self.plan.tiles_per_split,
            "CHUNK": chunk,
        }
