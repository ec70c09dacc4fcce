"""The shapes, memory layouts and dtypes of the tests, and the inputs made of them."""

import torch
from reference import Inputs
from torch import Tensor

DTYPES = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
REDUCED = {"bf16": torch.bfloat16, "fp16": torch.float16}

# (shape of x, hidden width)
SHAPES = {
    "1x1": ((3, 20, 1, 1), 5),
    "7x7": ((3, 33, 7, 7), 8),
    "14x14": ((2, 17, 14, 14), 3),
    "5x157": ((2, 3, 5, 157), 1),
    "no-spatial-dims": ((5, 20), 7),
    "1d": ((2, 17, 49), 20),
    "3d": ((2, 20, 3, 5, 4), 6),
    "one-channel": ((3, 1, 7, 7), 2),
    "one-sample": ((1, 16, 8, 8), 16),
    "many-samples": ((19, 8, 3, 3), 4),
}
EMPTY = {
    "no-samples": ((0, 20, 7, 7), 5),
    "no-samples-no-spatial-dims": ((0, 20), 5),
}
# Around the sizes at which kernels change their ways: a sample beyond the caches, samples taken
# in groups with a remainder, wide layers.
LARGE = {
    "sample-beyond-cache": ((2, 64, 60, 57), 4),
    "wide-7x7": ((13, 264, 7, 7), 65),
    "odd-56x56": ((2, 19, 56, 56), 5),
}


def _sliced_channels(t: Tensor) -> Tensor:
    larger = t.new_full((t.shape[0], t.shape[1] + 5, *t.shape[2:]), float("nan"))
    return larger[:, 2:-3].copy_(t)


def _strided(t: Tensor) -> Tensor:
    larger = t.new_full((*t.shape[:-1], 2 * t.shape[-1] + 1), float("nan"))
    return larger[..., 1::2].copy_(t)


def _channels_last(t: Tensor) -> Tensor:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return t.contiguous(memory_format=formats[t.dim()])


def _sliced_channels_last(t: Tensor) -> Tensor:
    larger = t.new_full((t.shape[0], t.shape[1] + 5, *t.shape[2:]), float("nan"))
    return _channels_last(larger)[:, 2:-3].copy_(t)


def _transposed(first: int, second: int):
    return lambda t: t.transpose(first, second).contiguous().transpose(first, second)


# Each gives the values of a contiguous tensor in another layout.
LAYOUTS = {
    "contiguous": lambda t: t,
    "channels-last": _channels_last,
    "sliced-channels": _sliced_channels,
    "sliced-channels-last": _sliced_channels_last,
    "strided": _strided,
    "transposed-spatial": _transposed(-1, -2),
    "transposed-samples": _transposed(0, 1),
}
DENSE = ("contiguous", "channels-last")

# (layout, shape of x): layouts that exist only with spatial dims get a shape that has them.
LAYOUT_CASES = {f"{name}-2d": (name, (3, 20, 5, 7)) for name in LAYOUTS} | {
    "channels-last-3d": ("channels-last", (2, 17, 3, 2, 5)),
    "sliced-channels-last-3d": ("sliced-channels-last", (2, 17, 3, 2, 5)),
    "strided-1d": ("strided", (2, 17, 9)),
    "sliced-channels-no-spatial-dims": ("sliced-channels", (4, 20)),
}


def make_inputs(
    shape,
    hidden: int,
    device: str,
    dtype: torch.dtype = torch.float32,
    *,
    act: str = "relu",
    gate: str = "sigmoid",
    biases: bool = True,
    weight_dtype: torch.dtype | None = None,
    layout: str = "contiguous",
    spread: float = 1.0,
    squeeze: str = "avg",
) -> Inputs:
    """Random inputs. Channel means and pre-activations vary by about ``spread``."""
    channels = shape[1]

    def draw(*size, scale=1.0, offset=0.0):
        return (torch.randn(size, dtype=torch.float64) * scale + offset).to(weight_dtype or dtype)

    offsets = torch.randn(shape[:2] + (1,) * (len(shape) - 2), dtype=torch.float64)
    x = (torch.randn(shape, dtype=torch.float64) + offsets).to(dtype)
    dy = torch.randn(shape, dtype=torch.float64).to(dtype)
    inputs = 2 * channels if squeeze == "concat" else channels
    parameters = (
        draw(hidden, inputs, scale=spread * inputs**-0.5),
        draw(hidden, scale=0.5) if biases else None,
        draw(channels, hidden, scale=spread * hidden**-0.5),
        draw(channels, scale=0.5) if biases else None,
    )
    x, dy = (LAYOUTS[layout](t.to(device)) for t in (x, dy))
    parameters = (None if t is None else t.to(device) for t in parameters)
    return Inputs(x, *parameters, act, gate, dy, squeeze)
