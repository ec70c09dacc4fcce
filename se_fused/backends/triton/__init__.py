"""Triton: two launches forward, two backward; on CPU tensors through Triton's interpreter.

    reduce      statistics and sums, and the excitation by a sample's last program to finish
    (between)   the excitation in PyTorch, unless plan.excites_in_reduce
    apply       y and dx, in the reverse order

No program waits for another. Sums have a fixed order: results are the same from run to run.
Launches are on x's device and its current stream.
"""

import torch
from torch import Tensor

from se_fused.backends import reference
from se_fused.backends.reference import nothing
from se_fused.backends.triton import apply, moments, reduce
from se_fused.backends.triton.feature_map import INTERPRETED, FeatureMap
from se_fused.backends.triton.tuning import tuned
from se_fused.memory_format import mask_size

_MIN_CAPABILITY = (7, 5)

OPERATORS = False

merge_moments = reference.merge_moments
excite = reference.excite
excite_backward = reference.excite_backward

_reduce_forward_kernel = tuned(reduce.reduce_forward_kernel)
_moments_kernel = tuned(moments.moments_kernel)
_reduce_backward_kernel = tuned(reduce.reduce_backward_kernel)
_apply_forward_kernel = tuned(apply.apply_forward_kernel)
_apply_backward_kernel = tuned(apply.apply_backward_kernel)


def unavailable(device: torch.device) -> str | None:
    if device.type not in ("cuda", "cpu"):
        return f"no kernels for {device.type} tensors"
    if INTERPRETED:
        return None
    if device.type == "cpu":
        return "CPU tensors need TRITON_INTERPRET=1"
    if not torch.cuda.is_available():
        return "torch.cuda.is_available() is False"
    capability = torch.cuda.get_device_capability(device)
    if torch.version.hip is None and capability < _MIN_CAPABILITY:
        return f"compute capability {capability[0]}.{capability[1]}, 7.5 or higher is needed"
    return None


def reduce_forward(x, center, scale, shift, act: str, statistic: str) -> Tensor:
    if statistic == "moments":
        return _reduce_moments(x)
    feature_map = FeatureMap(x, statistic if center is None else "norm")
    return _reduce_forward(feature_map, x, (center, scale, shift), act, statistic)[0]


def _reduce_forward(
    feature_map: FeatureMap, x, norm, norm_act, statistic, weights=(None,) * 4, act=None, gate=None
) -> tuple[Tensor, Tensor | None]:
    """Statistics, and the gates if there are weights, of which the excitation is in the launch."""
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


def _reduce_moments(x) -> Tensor:
    feature_map = FeatureMap(x, "norm")
    out = feature_map.planes(2)
    partials, counter = feature_map.partials(None, 3)
    with torch.cuda.device_of(x):
        _moments_kernel[feature_map.reduce_grid](
            x, partials, counter, out, CHUNK=feature_map.excitation(None)["CHUNK"],
            **feature_map.reduction, **feature_map.tile,
        )  # fmt: skip
    return out


def apply_forward(
    x, residual, center, scale, shift, g, act: str, relu: bool
) -> tuple[Tensor, Tensor]:
    has_parts = center is not None or residual is not None or relu
    feature_map = FeatureMap(x, "norm" if has_parts else "mean")
    y = torch.empty_like(x)
    mask = x.new_empty(mask_size(x), dtype=torch.uint8) if relu else None
    with torch.cuda.device_of(x):
        _apply_forward_kernel[feature_map.apply_grid](
            x, residual, center, scale, shift, g, y, mask,
            feature_map.channels, feature_map.spatial, NORM_ACT=act, **feature_map.tile,
        )  # fmt: skip
    return y, mask if relu else nothing(x, torch.uint8)


def reduce_backward(
    dy, x, mask, center, scale, shift, maximum, g, act: str
) -> tuple[Tensor, Tensor]:
    count, parts = 1, "mean" if mask is None else "norm"
    if center is not None:
        count, parts = (2 if act == "identity" else 5), "norm"
    elif maximum is not None:
        count, parts = 2, "max" if mask is None else "norm"
    feature_map = FeatureMap(x, parts)
    sums, dx = feature_map.planes(count), None if g is None else torch.empty_like(x)
    norm = center, scale, shift
    _reduce_backward(feature_map, dy, x, mask, norm, maximum, dx, sums, act, g=g)
    return sums, nothing(x) if dx is None else dx


def _reduce_backward(
    feature_map: FeatureMap, dy, x, mask, norm, maximum, dx, sums, norm_act, z=None, g=None,
    weights=(None,) * 3, results=(None,) * 4, act=None, gate=None,
):  # fmt: skip
    """Sums, or with weights the results of the excitation's gradient, which is in the launch."""
    count = 1 if sums is None else len(sums)
    partials, counter = feature_map.partials(sums, count, sums is None)
    with torch.cuda.device_of(x):
        _reduce_backward_kernel[feature_map.reduce_grid](
            dy, x, mask, *norm, maximum, dx, partials, counter, sums, z, g, *weights, *results,
            NORM_ACT=norm_act, COUNT=count, ACT=act, GATE=gate,
            **feature_map.excitation(weights[0]), **feature_map.reduction, **feature_map.tile,
        )  # fmt: skip


def apply_backward(
    dy, x, mask, center, scale, shift, g, grad_mean, maximum, grad_max, slope, offset,
    act: str, add: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    parts = "mean" if maximum is None else "max"
    if center is not None or mask is not None or add:
        parts = "norm"
    feature_map = FeatureMap(x, parts)
    dx, dr = torch.empty_like(x), torch.empty_like(x) if add else None
    reads_x = act != "identity" or slope is not None or maximum is not None
    with torch.cuda.device_of(x):
        _apply_backward_kernel[feature_map.apply_grid](
            dy, x if reads_x else None, mask, center, scale, shift, g, grad_mean, maximum,
            grad_max, slope, offset, dx, dr, feature_map.channels, feature_map.spatial,
            NORM_ACT=act, **feature_map.tile,
        )  # fmt: skip
    return dx, dr if add else nothing(x)


def squeeze_excite(
    x, residual, w1, b1, w2, b2, act: str, gate: str, relu: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    weights = w1, b1, w2, b2 = _matrix(w1), _vector(b1), _matrix(w2), _vector(b2)
    feature_map, norm = FeatureMap(x), (None, None, None)
    if feature_map.excites_in_reduce(w1):
        (z,), g = _reduce_forward(feature_map, x, norm, "identity", "mean", weights, act, gate)
    else:
        (z,), _ = _reduce_forward(feature_map, x, norm, "identity", "mean")
        g = reference.gates(reference.first_layer(z, w1, b1), w2, b2, act, gate)
    return *apply_forward(x, residual, *norm, g, "identity", relu), z, g


def squeeze_excite_backward(
    dy, x, mask, z, g, w1, b1, w2, b2, act: str, gate: str, add: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    w1, b1, w2 = _matrix(w1), _vector(b1), _matrix(w2)
    feature_map, norm = FeatureMap(x, "mean" if mask is None else "norm"), (None, None, None)
    if feature_map.excites_in_reduce(w1):
        dp1, h = (z.new_empty(z.shape[0], w1.shape[0]) for _ in range(2))
        (dp2,), (grad_mean,) = feature_map.planes(1), feature_map.planes(1)
        _reduce_backward(
            feature_map, dy, x, mask, norm, None, None, None, "identity", z, g, (w1, b1, w2),
            (dp1, h, dp2, grad_mean), act, gate,
        )  # fmt: skip
    else:
        sums = feature_map.planes(1)
        _reduce_backward(feature_map, dy, x, mask, norm, None, None, sums, "identity")
        p1 = reference.first_layer(z, w1, b1, reference.product)
        dp1, h, dp2 = reference.excitation_gradient(sums[0], p1, g, w2, act, gate)
        grad_mean = reference.squeeze_gradient(dp1, w1) / feature_map.spatial
    dx, dr = apply_backward(
        dy, x, mask, *norm, g, grad_mean, None, None, None, None, "identity", add
    )
    return dx, dr, dp1, h, dp2


def _matrix(weight: Tensor) -> Tensor:
    return weight.flatten(1).contiguous()


def _vector(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.contiguous()
