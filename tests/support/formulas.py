"""The block and its gradients written out, over float64 values with the scales of their errors.

Letters as in the package's design: x [N, C, M], z squeezed, p1 and p2 before the act and the gate,
h hidden, g gates; dv is the gradient of v. With BatchNorm u is x normalized and v = act(u), else v
is x. The values are tested against autograd; what tests want from here are the scales.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from rounding import Rounded, concatenate, slope
from torch import Tensor

ACTS = {
    "identity": lambda p: p,
    "relu": F.relu,
    "silu": F.silu,
    # F.hardswish has a float32 1/6 on a GPU.
    "hardswish": lambda p: p * F.relu6(p + 3) / 6,
    "leaky_relu": F.leaky_relu,
    "gelu": F.gelu,
}
GATES = {
    "identity": lambda p: p,
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    # F.hardsigmoid has a float32 1/6 in its float64 gradient, and no second derivative.
    "hardsigmoid": lambda p: F.relu6(p + 3) / 6,
    "tanh": torch.tanh,
}
GATE_SLOPES = {  # from the gate
    "identity": torch.ones_like,
    "relu": lambda g: (g > 0).double(),
    "sigmoid": lambda g: g * (1 - g),
    "hardsigmoid": lambda g: ((g > 0) & (g < 1)).double() / 6,
    "tanh": lambda g: 1 - g * g,
}


class Norm(NamedTuple):
    """BatchNorm's arguments."""

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    training: bool
    momentum: float
    eps: float


def act(name: str, p: Rounded, eps: float) -> Rounded:
    # gelu's 1 + erf(p) cancels: its error is one of p.
    return p.apply(ACTS[name], eps, p.value.abs() if name == "gelu" else None)


# Slopes are computed as differences of numbers up to about 1.
def act_slope(name: str, p: Rounded, eps: float) -> Rounded:
    # On a kink itself, where 16-bit maps often are, the slope of either side is right.
    return Rounded(p.value, p.scale + p.value.abs()).apply(slope(ACTS[name]), eps, 1.0)


def gate_slope(name: str, g: Rounded, eps: float) -> Rounded:
    return g.apply(GATE_SLOPES[name], eps, 1.0)


def exact(t: Tensor | None) -> Rounded | None:
    return None if t is None else Rounded(t.double())


def flat(t: Tensor) -> Rounded:
    """A map as [N, C, M]."""
    return exact(t.flatten(2) if t.dim() > 2 else t[..., None])


def linear(inputs: Rounded, weight: Rounded, bias: Rounded | None) -> Rounded:
    found = inputs @ weight.t()
    return found if bias is None else found + bias


def normalized(x: Rounded, norm: Norm, eps: float):
    """u, x centered, 1/σ, the weight over σ, means of planes as x and as u, and the running
    statistics afterwards."""
    running = exact(norm.running_mean), exact(norm.running_var)
    center, var = running
    if norm.training:
        center = x.mean(2).mean(0)
        apart = x - center[:, None]
        var = (apart * apart).mean(2).mean(0)
        if running[0] is not None:
            count = x.value[:, 0].numel()
            unbiased = var * (count / max(count - 1, 1))
            running = (
                old * (1 - norm.momentum) + new * norm.momentum
                for old, new in zip(running, (center, unbiased))
            )
    apart = x - center[:, None]
    rstd = var.apply(lambda t: (t.clamp(min=0) + norm.eps).rsqrt(), eps)
    scale = rstd if norm.weight is None else rstd * exact(norm.weight)
    bias = exact(torch.zeros_like(rstd.value) if norm.bias is None else norm.bias)
    u = apart * scale[:, None] + bias[:, None]
    planes = x.mean(2) - center
    running = dict(zip(("running_mean", "running_var"), running))
    return u, apart, rstd, scale, planes, planes * scale + bias, running


def excite(z, w1, b1, w2, b2, act_name: str, gate: str, eps: float) -> dict[str, Rounded]:
    p1 = linear(z, w1, b1)
    h = act(act_name, p1, eps)
    p2 = linear(h, w2, b2)
    return {"p1": p1, "h": h, "p2": p2, "g": p2.apply(GATES[gate], eps)}


def excitation_gradient(dg, p1, g, w1, w2, act_name: str, gate: str, eps: float):
    dp2 = dg * gate_slope(gate, g, eps)
    dp1 = (dp2 @ w2) * act_slope(act_name, p1, eps)
    return {"dg": dg, "dp2": dp2, "dp1": dp1, "dz": dp1 @ w1}


def squeezed(v: Rounded, kind: str):
    """The statistic, the maximum and where it is."""
    mean = v.mean(2)
    if not v.value.shape[2]:
        return mean, mean, v
    m = Rounded(v.value.amax(2), v.scale.amax(2))
    peaks = exact(v.value == m.value[..., None])
    half = {"avg": mean, "max": m, "avg_max": (mean + m) * 0.5}
    z = half[kind] if kind in half else concatenate([mean, m], 1)
    return z, m, peaks


def squeeze_gradient(dz: Rounded, kind: str):
    """Of the mean and of the maximum, each None without it."""
    channels = dz.value.shape[1] // 2
    return {
        "avg": (dz, None),
        "max": (None, dz),
        "avg_max": (dz * 0.5, dz * 0.5),
        "concat": (dz[:, :channels], dz[:, channels:]),
    }[kind]


def block(
    x, w1, b1, w2, b2, act_name: str, gate: str, dy, squeeze="avg", *, eps: float,
    norm: Norm | None = None, norm_act="identity", residual=None, relu=False,
) -> dict[str, Rounded]:  # fmt: skip
    """Every value and gradient, maps as [N, C, M]."""
    x, dy = flat(x), flat(dy)
    w1, w2 = (exact(w.flatten(1)) for w in (w1, w2))
    found, u = {}, x
    if norm is not None:
        u, apart, rstd, scale, planes, z_of_planes, running = normalized(x, norm, eps)
        found |= running
    v = act(norm_act, u, eps)
    z, m, peaks = squeezed(v, squeeze)
    from_planes = norm is not None and norm_act == "identity"
    if from_planes:  # no pass over u: rounding of the plane's mean counts, however far it is from 0
        z = z_of_planes
    found |= {"z": z, **excite(z, w1, exact(b1), w2, exact(b2), act_name, gate, eps)}
    g = found["g"][..., None]
    y = v * g
    q = dy
    if residual is not None:
        y = y + flat(residual)
    if relu:
        q = q * exact(y.value > 0)
        y = Rounded(y.value.relu(), y.scale)
    found["y"] = y
    found |= excitation_gradient(
        (q * v).sum(2), found["p1"], found["g"], w1, w2, act_name, gate, eps
    )
    positions = max(v.value.shape[2], 1)
    dmean, dm = squeeze_gradient(found["dz"], squeeze)
    dv = q * g
    found["dy_times_g"] = dv
    if dmean is not None:
        dv = dv + (dmean * (1 / positions))[..., None]
    if dm is not None:
        ties = peaks.value.sum(2).clamp(min=1)
        dv = dv + peaks * (dm * (1 / ties))[..., None]
    du = dv * act_slope(norm_act, u, eps)
    dx = du
    if norm is not None:
        dx = du * scale[:, None]
        of_shift = du.sum(2).sum(0)
        of_scale = (du * apart).sum(2).sum(0)
        if from_planes:
            of_scale = (q * g * apart).sum(2).sum(0) + (found["dz"] * planes).sum(0)
        found |= {"dweight": of_scale * rstd, "dbias": of_shift}
        if norm.training:
            count = max(x.value[:, 0].numel(), 1)
            by = of_scale * (1 / count) * rstd * rstd * scale
            dx = dx - apart * by[:, None] - (of_shift * (1 / count) * scale)[:, None]
    found |= {"dx": dx, "dresidual": q}
    found |= {"dw1": found["dp1"].t() @ z, "db1": found["dp1"].sum(0)}
    found |= {"dw2": found["dp2"].t() @ found["h"], "db2": found["dp2"].sum(0)}
    if norm is None:
        mean = v.mean(2)
        found |= {"mean": mean, "m": m, "ties": peaks.sum(2) if peaks is not v else mean}
        found["dx_max"] = q * g + mean[..., None] + peaks * g
    return found
