"""The launches of a squeeze with the maximum in it; see launch.py."""

import torch
from torch import Tensor

from se_fused import plan
from se_fused.backends.triton import max_apply, max_reduce
from se_fused.backends.triton.launch import FeatureMap
from se_fused.backends.triton.tuning import tuned

_squeeze_max_kernel = tuned(max_reduce.squeeze_max_kernel)
_gate_gradient_max_kernel = tuned(max_reduce.gate_gradient_max_kernel)
_rescale_backward_max_kernel = tuned(max_apply.rescale_backward_max_kernel)


def squeeze_max(x: Tensor) -> tuple[Tensor, Tensor]:
    feature_map = _MaxMap(x)
    mean, m = feature_map.per_channel(), feature_map.per_channel()
    with torch.cuda.device_of(x):
        _squeeze_max_kernel[feature_map.reduce_grid](
            x, *feature_map.slot_pair(), mean, m, **feature_map.reduce_sizes, **feature_map.tile
        )
    return mean, m


def gate_gradient_max(dy: Tensor, x: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
    feature_map = _MaxMap(x)
    dg, ties = feature_map.per_channel(), feature_map.per_channel()
    with torch.cuda.device_of(x):
        _gate_gradient_max_kernel[feature_map.reduce_grid](
            dy, x, m, *feature_map.slot_pair(), dg, ties,
            **feature_map.reduce_sizes, **feature_map.tile,
        )  # fmt: skip
    return dg, ties


def rescale_backward_max(
    dy: Tensor, x: Tensor, g: Tensor, share: Tensor, m: Tensor, peak: Tensor
) -> Tensor:
    feature_map = _MaxMap(x)
    dx = torch.empty_like(x)
    with torch.cuda.device_of(x):
        _rescale_backward_max_kernel[feature_map.apply_grid](
            dy, x, g, share, m, peak, dx, feature_map.channels, feature_map.spatial,
            **feature_map.tile,
        )  # fmt: skip
    return dx


class _MaxMap(FeatureMap):
    """A feature map of whose tiles a reduce program holds two."""

    tile_bytes = plan.TILE_BYTES // 2

    def slot_pair(self) -> tuple[Tensor | None, Tensor | None]:
        """The programs' slots for two results a channel, and the zeroed counters of finished
        programs; none where one program has all of a plane."""
        if self.plan.splits == 1:
            return None, None
        slots = self.new_empty((2, self.samples, self.plan.splits, self.channels), dtype=self.acc)
        return slots, torch.zeros(self.samples, dtype=torch.int32, device=slots.device)

    @property
    def reduce_sizes(self) -> dict:
        _, chunk = plan.excitation_tile(self.channels, 1, self.acc.itemsize)
        return {
            "samples": self.samples,
            "channels": self.channels,
            "spatial": self.spatial,
            "splits": self.plan.splits,
            "tiles_per_split": self.plan.tiles_per_split,
            "CHUNK": chunk,
        }
