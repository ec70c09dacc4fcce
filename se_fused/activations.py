"""The activations and gates that the fused kernels know, with their derivatives.

A name's position in ``ACTS`` or ``GATES`` is its code in csrc/activations.h, which spells the same
functions in C++; backends/triton/activations.py does in Triton. A test compares all three.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTS = ("identity", "relu", "silu", "hardswish", "leaky_relu", "gelu")
GATES = ("identity", "relu", "sigmoid", "hardsigmoid", "tanh")

LEAKY_SLOPE = 0.01  # the default of torch.nn.LeakyReLU


def hardswish(p: Tensor) -> Tensor:
    # PyTorch's CUDA kernel has a float32 1/6 in float64, too.
    return p * F.relu6(p + 3) / 6 if p.is_cuda and p.dtype == torch.float64 else F.hardswish(p)


FUNCTIONS = {
    "identity": lambda p: p,
    "relu": torch.relu,
    "silu": F.silu,
    "hardswish": hardswish,
    "leaky_relu": F.leaky_relu,
    "gelu": F.gelu,
    "sigmoid": torch.sigmoid,
    # torch's own has no second derivative, and a float32 1/6 in its float64 gradient.
    "hardsigmoid": lambda p: F.relu6(p + 3) / 6,
    "tanh": torch.tanh,
}


# Before the squeeze of a block with BatchNorm, and after its rescale.
NORM_ACTS = ACTS[:4]
POST_ACTS = ("identity", "relu")


def act_derivative(act: str, p: Tensor) -> Tensor:
    """act'(p), from the value before the activation."""
    if act == "identity":
        return torch.ones_like(p)
    if act == "relu":
        return (p > 0).to(p.dtype)
    if act == "silu":
        s = torch.sigmoid(p)
        return s * (1 + p * (1 - s))
    if act == "hardswish":
        return torch.where(p < -3, 0.0, torch.where(p > 3, 1.0, p / 3 + 0.5))
    if act == "leaky_relu":
        return torch.where(p > 0, torch.ones_like(p), LEAKY_SLOPE)
    if act == "gelu":
        cdf = 0.5 * (1 + torch.erf(p * 0.5**0.5))
        return cdf + p * torch.exp(-0.5 * p * p) * (2 * torch.pi) ** -0.5
    raise ValueError(f"act must be one of {', '.join(ACTS)}, got {act!r}")


def gate_derivative(gate: str, g: Tensor) -> Tensor:
    """gate'(p2), from the gate's output g = gate(p2): p2 itself need not be kept."""
    if gate == "identity":
        return torch.ones_like(g)
    if gate == "relu":
        return (g > 0).to(g.dtype)
    if gate == "sigmoid":
        return g * (1 - g)
    if gate == "hardsigmoid":
        return ((g > 0) & (g < 1)).to(g.dtype) / 6
    if gate == "tanh":
        return 1 - g * g
    raise ValueError(f"gate must be one of {', '.join(GATES)}, got {gate!r}")


# Modules that compute exactly one of the functions above, whatever their `inplace` flag.
_MODULES = {
    nn.Identity: "identity",
    nn.ReLU: "relu",
    nn.SiLU: "silu",
    nn.Hardswish: "hardswish",
    nn.LeakyReLU: "leaky_relu",
    nn.GELU: "gelu",
    nn.Sigmoid: "sigmoid",
    nn.Hardsigmoid: "hardsigmoid",
    nn.Tanh: "tanh",
}
_FUNCTIONS = {
    torch.relu: "relu",
    torch.sigmoid: "sigmoid",
    torch.tanh: "tanh",
    torch.positive: "identity",
    F.gelu: "gelu",
}
# The same for what others define, by (module, name); more are registered here at import.
NAMES_BY_PATH = {
    ("torch.nn.functional", name): name
    for name in ("relu", "silu", "hardswish", "leaky_relu", "sigmoid", "hardsigmoid", "tanh")
}
# By the name of a class: it computes the function with these values of its attributes only.
ARGUMENTS = {
    "LeakyReLU": {"negative_slope": LEAKY_SLOPE},
    "GELU": {"approximate": "none"},
}
# Other spellings in use.
_ALIASES = {"swish": "silu", "hard_swish": "hardswish", "hard_sigmoid": "hardsigmoid"}
_BY_NAME = {name: cls for cls, name in _MODULES.items()}


def function_name(layer) -> str | None:
    """The name of what an activation (a module or a function) computes, None if it is not ours."""
    cls = type(layer)
    name = _MODULES.get(cls)
    if name is None:
        kind = cls if isinstance(layer, nn.Module) else layer
        # By __name__, since not every torch.compile can look a function's __qualname__ up.
        path = kind.__module__, getattr(kind, "__name__", None)
        name = _FUNCTIONS.get(kind) or NAMES_BY_PATH.get(path)
    for argument, value in ARGUMENTS.get(cls.__name__, {}).items():
        if getattr(layer, argument, value) != value:
            return None
    return name


def make_module(layer, argument: str) -> nn.Module:
    """An activation module from a name, a module class or any callable that returns a module."""
    if isinstance(layer, str):
        name = _ALIASES.get(layer, layer)
        if name not in _BY_NAME:
            known = ", ".join(sorted({*_BY_NAME, *_ALIASES}))
            raise ValueError(f"{argument} must be a module class or one of {known}, got {layer!r}")
        return _BY_NAME[name]()
    if not callable(layer) or isinstance(layer, nn.Module):
        raise TypeError(
            f"{argument} must be a name, a module class or a callable that returns a module, "
            f"got {layer!r}"
        )
    return layer()
