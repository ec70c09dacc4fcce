"""What the functions accept; each check raises one error that names the argument."""

from math import prod

import torch
from torch import Tensor

from se_fused.memory_format import acc_dtype

_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def feature_map(x: Tensor, name: str):
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    if x.dtype not in _DTYPES:
        raise TypeError(
            f"{name} must be float64, float32, bfloat16 or float16, got {_short(x.dtype)}"
        )
    if not 2 <= x.dim() <= 5:
        raise ValueError(
            f"{name} must have 2 to 5 dims, [N, C] and up to three spatial ones, "
            f"got shape {tuple(x.shape)}"
        )


def weights(x, w1, b1, w2, b2, squeeze: str = "avg"):
    channels = x.shape[1]
    if not isinstance(w1, Tensor):
        raise TypeError(f"w1 must be a tensor, got {type(w1).__name__}")
    hidden = w1.shape[0] if w1.dim() else 0
    if hidden == 0:
        raise ValueError(f"w1 must have a hidden unit, [R, C] with R >= 1, got {tuple(w1.shape)}")
    dtype, device = x.dtype, x.device
    inputs = 2 * channels if squeeze == "concat" else channels
    beside(w1, "w1", x, (hidden, inputs), dtype, device)
    beside(w2, "w2", x, (channels, hidden), dtype, device)
    if b1 is not None:
        beside(b1, "b1", x, (hidden,), dtype, device)
    if b2 is not None:
        beside(b2, "b2", x, (channels,), dtype, device)


def beside(t: Tensor, name: str, x: Tensor, shape: tuple, dtype, device):
    """t is [*shape, 1, 1, …], on x's device, of x's dtype or float32 beside a 16-bit x."""
    if not isinstance(t, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(t).__name__}")
    given = t.shape
    if given != shape and given != shape + (1,) * (len(given) - len(shape)):
        raise ValueError(
            f"{name} must have shape {shape}, trailing dims of size 1 allowed, "
            f"for x of shape {tuple(x.shape)}; got {tuple(given)}"
        )
    if t.dtype != dtype and t.dtype != acc_dtype(dtype):
        raise TypeError(
            f"{name} must be {_short(dtype)} like x"
            f"{' or float32' if dtype.itemsize == 2 else ''}, got {_short(t.dtype)}"
        )
    if t.device != device:
        raise ValueError(f"{name} must be on {device} like x, got {t.device}")


def normalization(x, running_mean, running_var, weight, bias, training: bool):
    if (running_mean is None) != (running_var is None):
        raise ValueError("running_mean and running_var must be given together")
    if running_mean is None and not training:
        raise ValueError("running_mean and running_var must be given where training is False")
    named = zip(
        ("running_mean", "running_var", "weight", "bias"), (running_mean, running_var, weight, bias)
    )
    for name, t in named:
        if t is not None:
            beside(t, name, x, (x.shape[1],), x.dtype, x.device)


def positions(x):
    """As torch.amax: there is no maximum of nothing."""
    if prod(x.shape[2:]) == 0:
        raise ValueError(
            f"x must have a position to take the maximum of, got shape {tuple(x.shape)}"
        )


def batch(x):
    """As F.batch_norm: there is no variance of one value."""
    if prod((x.shape[0], *x.shape[2:])) == 1:  # torch.Size.numel would fix sizes in an export
        raise ValueError(
            "x must have more than one value per channel in training, "
            f"got shape {tuple(x.shape)}"
        )


def alike(t: Tensor, name: str, x: Tensor):
    """t has x's shape, dtype and device."""
    if not isinstance(t, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(t).__name__}")
    if t.shape != x.shape:
        raise ValueError(f"{name} must have x's shape {tuple(x.shape)}, got {tuple(t.shape)}")
    if t.dtype != x.dtype:
        raise TypeError(f"{name} must be {_short(x.dtype)} like x, got {_short(t.dtype)}")
    if t.device != x.device:
        raise ValueError(f"{name} must be on {x.device} like x, got {t.device}")


def choice(value: str, accepted: tuple, name: str):
    if value not in accepted:
        raise ValueError(f"{name} must be one of {', '.join(accepted)}, got {value!r}")


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
