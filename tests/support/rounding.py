"""The rule by which results are judged, everywhere: in tests, benchmarks and on a GPU.

A result is right where each element's error against float64 is one that rounding may leave:

    |found - exact| <= LIMIT * eps * scale + eps(dtype) * |exact|

eps: of the dtype of the arithmetic, which is wider than the dtype of a 16-bit result, and then the
second term is the one rounding to it. (Beside that, what is too small for a dtype may be 0.)
``scale`` is the running error bound of the formula (Higham, Accuracy and Stability of Numerical
Algorithms, section 3.3): the sum over all its operations of |their result| or, for a sum, of its
terms' absolute values, each times the effect that a change there has on the element. So it does not
shrink where values cancel, does not depend on what PyTorch makes of the formula on this processor,
and is computed in float64 from the same inputs (``Rounded``).

LIMIT: an operation rounds by at most eps/2; a sum of n terms, each in a run of r, errs by at most
(r + log2(n/r)) * eps/2 times the sum of their absolute values, and by about 0.2 * sqrt(r) * eps
where roundings are independent: 8 is four times that of runs of a hundred. Kernels with longer
runs must be refused. tests/error_rates.py measures how much of the limit is used, and what faults
exceed it.

That no bound hides a loss of accuracy is shown beside it by root mean squares over many draws:
``accuracy`` compares them with those of plain PyTorch.
"""

import torch
from torch import Tensor

LIMIT = 8


class Rounded:
    """A float64 value, and the scale of its rounding errors: in units of eps, to first order."""

    def __init__(self, value: Tensor, scale: Tensor | None = None):
        self.value = value
        self.scale = torch.zeros_like(value) if scale is None else scale

    def __add__(self, other: "Rounded") -> "Rounded":
        value = self.value + other.value
        return Rounded(value, self.scale + other.scale + value.abs())

    def __neg__(self) -> "Rounded":
        return Rounded(-self.value, self.scale)

    def __sub__(self, other: "Rounded") -> "Rounded":
        return self + -other

    def __mul__(self, other) -> "Rounded":
        if not isinstance(other, Rounded):
            other = Rounded(torch.as_tensor(other, dtype=torch.float64, device=self.value.device))
        value = self.value * other.value
        own, others = self.scale * other.value.abs(), other.scale * self.value.abs()
        return Rounded(value, own + others + value.abs())

    def __matmul__(self, other: "Rounded") -> "Rounded":
        a, b = self.value.abs(), other.value.abs()
        scale = self.scale @ b + a @ other.scale + a @ b
        return Rounded(self.value @ other.value, scale)

    def __getitem__(self, index) -> "Rounded":
        return Rounded(self.value[index], self.scale[index])

    def t(self) -> "Rounded":
        return Rounded(self.value.t(), self.scale.t())

    def sum(self, dim) -> "Rounded":
        return Rounded(self.value.sum(dim), (self.scale + self.value.abs()).sum(dim))

    def mean(self, dim) -> "Rounded":
        return Rounded(self.value.mean(dim), (self.scale + self.value.abs()).mean(dim))

    def apply(self, function, eps: float, own: Tensor | float | None = None) -> "Rounded":
        """function of each element; own: the scale of its own rounding, |result| if not given.

        Its largest change within the limit of the argument, so that a step there counts whole.
        """
        value = function(self.value)
        width = LIMIT * eps * self.scale
        changes = [(function(self.value + by) - value).abs() for by in (width, -width)]
        change = torch.maximum(*changes) / (LIMIT * eps)
        return Rounded(value, change + (value.abs() if own is None else own))


def concatenate(parts: list[Rounded], dim: int) -> Rounded:
    return Rounded(*(torch.cat([getattr(p, of) for p in parts], dim) for of in ("value", "scale")))


def slope(function):
    """The derivative of an elementwise function."""

    def derivative(p: Tensor) -> Tensor:
        p = p.detach().requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad(function(p).sum(), p)[0]

    return derivative


def acc_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of the arithmetic on a map of this dtype."""
    return torch.promote_types(dtype, torch.float32)


def used(found: Tensor, exact: Tensor, scale: Tensor, arithmetic: torch.dtype) -> float:
    """The most that an element's error has of what is allowed: above 1 is wrong, NaN too."""
    if not exact.numel():
        return 0.0
    kind, eps = torch.finfo(found.dtype), torch.finfo(arithmetic).eps
    underflow = 16 * torch.finfo(arithmetic).smallest_normal + kind.smallest_normal * kind.eps
    allowed = LIMIT * eps * scale.reshape(exact.shape) + underflow
    wide = found.double()
    if kind.eps > eps:  # rounded from either side of a kink
        allowed = allowed + kind.eps * torch.maximum(exact.abs(), wide.abs())
    shares = (wide - exact).abs() / allowed
    return shares.nan_to_num(float("inf")).max().item()


def assert_right(
    name: str, found: Tensor, exact: Tensor, scale: Tensor, arithmetic: torch.dtype
) -> float:
    """The rule, for one result, whose arithmetic is in this dtype. What is used of the limit."""
    assert found.shape == exact.shape, f"{name}: shape {found.shape}, expected {exact.shape}"
    assert exact.isfinite().all() and scale.isfinite().all(), f"{name}: no finite reference"
    share = used(found, exact, scale, arithmetic)
    assert share <= 1, f"{name}: error {share:.3g} times what rounding may leave"
    return share


def accuracy(draws: list[tuple[Tensor, Tensor, Tensor, Tensor]]) -> float:
    """Root mean square error of found over that of eager, of (found, eager, exact, scale), errors
    in units of their scale."""
    squares = [0.0, 0.0]
    for *both, exact, scale in draws:
        for index, result in enumerate(both if exact.numel() else ()):
            error = (result.double() - exact) / scale.reshape(exact.shape)
            squares[index] += error.square().nan_to_num().sum().item()
    if not squares[1]:
        return float("inf") if squares[0] else 0.0
    return (squares[0] / squares[1]) ** 0.5
