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
