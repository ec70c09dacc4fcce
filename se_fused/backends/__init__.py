"""The contract that every backend module keeps, and the loader of backend modules.

A backend is a module of this package that defines

    OPERATORS: bool                       whether the functions are operators with fakes themselves
    unavailable(device) -> str | None     why it cannot run there; None if it can
    squeeze(x) -> z
    rescale(x, g) -> y
    gate_gradient(dy, x) -> dg
    rescale_backward(dy, x, g) -> dx, dg
    squeeze_excite(x, w1, b1, w2, b2, act, gate) -> y, z, g
    squeeze_excite_backward(dy, x, z, g, w1, b1, w2, b2, act, gate) -> dx, dp1, h, dp2

    squeeze_max(x) -> mean, m
    gate_gradient_max(dy, x, m) -> dg, ties
    rescale_backward_max(dy, x, g, share, m, peak) -> dx

    moments(x) -> mean, m2
    norm_squeeze(x, center, scale, shift, act) -> z
    norm_rescale(x, residual, center, scale, shift, g, act, relu) -> y, mask
    norm_sums(dy, x, mask, center, scale, shift, act) -> sums
    norm_rescale_backward(dy, x, mask, center, scale, shift, g, share, slope, offset, act, add)
        -> dx, dr
    merge_moments(planes, m2, positions) -> center, var
    norm_excite(planes, center, scale, shift, w1, b1, w2, b2, act, gate) -> z, p1, g
    norm_excite_backward(sums, planes, center, scale, shift, p1, g, w1, w2, act, gate, positions)
        -> dp1, h, dp2, share, of_shift, of_scale

with N samples, C channels, M spatial positions, hidden width R, and acc = float64 for a float64 x,
float32 otherwise:

    x, y, dy, dx   [N, C, *spatial]    contiguous or channels_last, all four alike
    z, g, dg, dp2  [N, C]              acc, contiguous
    h, dp1         [N, R]              acc, contiguous
    w1, w2         [R, C], [C, R]      x's dtype or acc; trailing dims of size 1 are allowed
    b1, b2         [R], [C] or None    x's dtype or acc

    z = mean over spatial of x          p1 = z w1ᵀ + b1        h = act(p1)
    p2 = h w2ᵀ + b2                     g = gate(p2)           y = x · g
    dg = Σ over spatial of dy · x       dp2 = dg · gate'(p2)   dp1 = (dp2 w2) · act'(p1)
    dx = dy · g + (dp1 w1) / M          (rescale_backward: dx = dy · g)

The next three are the passes of a block whose squeeze has the maximum in it, for maps that have a
position; its excitation, of the mean and m, is plain PyTorch in ``maximum.py``:

    mean, m, ties, share, peak   [N, C]   acc, contiguous

    mean = Σ x / M          m = max over spatial of x, NaN where x has one
    ties = Σ [x = m]        dx = dy · g + share + [x = m] · peak

with share = dmean / M and peak = dm / ties: a maximum that several positions share passes its
gradient to them in equal parts, as ``torch.amax`` does.

The last eight are a block with BatchNorm before the squeeze, a residual and a ReLU after the
rescale; first its passes over the map:

    residual, dr           like x              residual may be None: nothing is added
    center, scale, shift   [C]                 acc, contiguous; all three None: u = x
    slope, offset          [C]                 acc, contiguous; None with center, and in eval mode
    mean, m2, share        [N, C]              acc, contiguous
    mask                   [rows, ⌈cols/8⌉]    uint8; None where there is no ReLU
    sums                   [2 or 5, N, C]      acc, contiguous
    act                    identity, relu, silu or hardswish

    mean = Σ x / M                      m2 = Σ (x − mean)²
    u = (x − center) · scale + shift    v = act(u)             z = Σ v / M
    p = v · g + residual                y = max(p, 0) if relu, else p
    q = dy where the mask is set, else 0; dy without a mask
    sums = [Σ q, Σ q·(x − center)] for identity, else, with v' = act'(u),
           [Σ q·v', Σ q·v'·(x − center), Σ q·v, Σ v', Σ v'·(x − center)]
    dx = (q · g + share) · scale · v' + (x − center) · slope + offset
    dr = q, written only if add; else, and the mask where relu is false, a tensor of no elements

And what lies between them, called for CPU tensors alone (elsewhere ``between.py`` runs, which
torch.compile may fuse):

    planes, p1             [N, C], [N, R]      acc, contiguous
    var, of_shift, of_scale  [C]               acc, contiguous

    center, var = mean and variance (biased) over samples and positions, from every plane's mean
                  (planes) and m2; at least one sample and position
    z = (planes − center) · scale + shift; p1, g as above. Without center: planes is z, which is
        returned as a tensor of no elements
    dg = Σ q·v, from the sums           share = dz / M
    of_shift = Σ du, of_scale = Σ du·(x − center) over samples and positions, du the gradient of u
        (no elements without center). planes is read where act is identity and there is a center

The mask has one bit for p > 0 (or NaN), rows in memory order: a row is a plane [M] of a contiguous
map, a position [C] of a channels_last one; bit j % 8 of byte j // 8, rows padded with zeros.

Arithmetic is in acc and outputs are new tensors. Arguments are trusted: callers have checked them.
Backends never import one another.
"""

from importlib import import_module

NAMES = ("triton", "cpp", "eager")

# Order of automatic choice.
PREFERRED = {"cuda": ("triton", "cpp", "eager"), "cpu": ("cpp", "eager")}


def load(name: str):
    """The backend module, imported on first use."""
    return import_module(f"{__name__}.{name}")


def preferred(device_type: str) -> tuple[str, ...]:
    return PREFERRED.get(device_type, ("eager",))
