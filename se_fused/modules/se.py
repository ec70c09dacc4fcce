"""``FusedSE``: the squeeze-and-excitation block as a module."""

import inspect
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.fx
from torch import Tensor, nn

from se_fused import backends, functional, validation
from se_fused.activations import make_module
from se_fused.autograd import SQUEEZES
from se_fused.modules.layers import (
    LayerPaths,
    Specification,
    dims_taken,
    has_global_hooks,
    is_plain,
    layers_of,
    names_of,
    specification,
)
from se_fused.modules.scripting import scripted_as, squeeze_excite
from se_fused.tracing import plain_operators


class Form(NamedTuple):
    """What an SE module computes of its layers; kept by the module as ``__se_fused__``.

    Names of ours on a module have underscores on both sides: others are its library's.
    """

    paths: LayerPaths | None = LayerPaths()  # None: the module ``excitation`` is the whole of it
    swapped_squeeze: str | None = None  # None: the module's own attribute
    add_residual: bool = False  # y = x * g + x
    is_se_alone: bool = True  # of a map [N, C, *spatial], which it returns rescaled, nothing else
    guard: object = None  # of a swapped module: what must be as it was at the swap
    names: tuple[str, str] | None = None  # of its act and gate then
    channels: int | None = None
    dims: int | None = None  # of what its first layer takes

    def squeeze(self, module: nn.Module) -> str:
        return self.swapped_squeeze or module.squeeze

    def intact(self, module: nn.Module) -> bool:
        return self.guard is None or self.guard.difference(module) is None

    def specification(self, module: nn.Module, x: Tensor) -> Specification | None:
        """What ``squeeze_excite`` takes, if it computes this module of x; else None."""
        if self.add_residual or has_global_hooks():
            return None
        layers = layers_of(module, self.paths)
        names = names_of(layers) if self.guard is None else self.names
        if names is None:
            return None
        # A built module raises where its parameters do not fit; a library's has its own forward.
        return specification(layers, names, None if self.guard is None else x)


class FusedSE(nn.Module):
    """Squeeze-and-excitation: ``x * gate(fc2(act(fc1(x.mean(spatial)))))``, fused.

    Drop-in for timm's ``SEModule`` (same arguments, so ``se_layer=FusedSE`` works) and, given
    ``rd_channels``, for torchvision's ``SqueezeExcitation``. Parameters, initialised as theirs:
    ``fc1.weight [R, C, 1, 1]``, ``fc1.bias [R]``, ``fc2.weight [C, R, 1, 1]``, ``fc2.bias [C]``.

    Args:
        channels: C, channels of the feature map.
        rd_ratio: reduction ratio R / C, used where ``rd_channels`` is not given.
        rd_channels: R, the hidden width.
        rd_divisor: R is rounded to a multiple of this, where ``rd_channels`` is not given.
        add_maxpool: timm's name of ``squeeze="avg_max"``.
        bias: whether both layers have a bias.
        act_layer, gate_layer: a name ("relu", "hard_sigmoid", …), a module class or a callable.
        norm_layer: normalisation of the hidden units, called with R.
        squeeze: avg, max, avg_max (half the mean plus half the maximum) or concat (mean and
            maximum: ``fc1`` takes 2C inputs).
        excitation: a module to compute the gate instead of fc1, act, fc2 and gate, which are not
            made then; from the squeeze, [N, C] ([N, 2C] for concat), to [N, C], trailing dims of
            size 1 allowed. Of the other arguments it leaves ``add_maxpool`` and ``squeeze``.

    Shapes: x ``[N, C]`` to ``[N, C, D, H, W]`` to the same shape, dtype and layout. dtypes:
    float64, float32, bfloat16, float16; parameters may stay float32 beside a 16-bit x, as under
    autocast.

    The whole block runs as one operator where its layers are those of the formula, as one function
    where the maximum is in its squeeze. With a norm, other activation modules, an ``excitation``,
    or hooks or parametrizations on a layer, it runs as ``squeeze → the layers → rescale``.

    Source: Hu et al., arXiv 1709.01507; argument names from timm.
    """

    __on_gate__: Callable[[Tensor], None] | None = None  # gets the gates while they are recorded

    def __init__(
        self,
        channels: int,
        rd_ratio: float = 1 / 16,
        rd_channels: int | None = None,
        rd_divisor: int = 8,
        add_maxpool: bool = False,
        bias: bool = True,
        act_layer=nn.ReLU,
        norm_layer=None,
        gate_layer="sigmoid",
        device=None,
        dtype=None,
        *,
        squeeze: str = "avg",
        excitation: nn.Module | None = None,
    ):
        super().__init__()
        if channels < 1:
            raise ValueError(f"channels must be at least 1, got {channels}")
        validation.choice(squeeze, SQUEEZES, "squeeze")
        if add_maxpool and squeeze not in ("avg", "avg_max"):
            raise ValueError(f"add_maxpool is squeeze='avg_max', got squeeze={squeeze!r} beside it")
        squeeze = "avg_max" if add_maxpool else squeeze
        self.squeeze = squeeze
        self.__se_fused__ = Form(None if excitation is not None else LayerPaths())
        if excitation is not None:
            _check_excitation(
                excitation, rd_ratio=rd_ratio, rd_channels=rd_channels, rd_divisor=rd_divisor,
                bias=bias, act_layer=act_layer, norm_layer=norm_layer, gate_layer=gate_layer,
                device=device, dtype=dtype,
            )  # fmt: skip
            self.excitation = excitation
            return
        if rd_channels is None:
            rd_channels = _round_to_multiple(channels * rd_ratio, rd_divisor)
        if rd_channels < 1:
            raise ValueError(f"rd_channels must be at least 1, got {rd_channels}")
        factory = {"device": device, "dtype": dtype}
        inputs = 2 * channels if squeeze == "concat" else channels
        self.fc1 = nn.Conv2d(inputs, rd_channels, 1, bias=bias, **factory)
        self.bn = norm_layer(rd_channels, **factory) if norm_layer else nn.Identity()
        self.act = make_module(act_layer, "act_layer")
        self.fc2 = nn.Conv2d(rd_channels, channels, 1, bias=bias, **factory)
        self.gate = make_module(gate_layer, "gate_layer")

    @scripted_as(squeeze_excite)
    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, torch.fx.Proxy):
            return traced(self, x)
        form = self.__se_fused__
        if isinstance(x, Tensor) and not is_plain(x):  # a DTensor: as PyTorch computes it
            with plain_operators():
                return compute(self, x, form, None)
        return compute(self, x, form, form.specification(self, x))

    def extra_repr(self) -> str:
        return described(self, self.__se_fused__)


def compute(module: FusedSE, x: Tensor, form: Form, found: Specification | None) -> Tensor:
    """Squeeze, excitation and rescale of x by the module's layers; found: form's specification."""
    on_gate = module.__on_gate__
    if found is None:
        gate = _gate(module, x, form, on_gate)
        return functional.rescale(x, gate)
    w1, b1, w2, b2, act, gate = found
    return functional.squeeze_excite(
        x, w1, b1, w2, b2, act=act, gate=gate, squeeze=form.squeeze(module), on_gate=on_gate
    )


def specification_of(se: nn.Module, x: Tensor) -> Specification | None:
    """What ``squeeze_excite`` takes, if it computes a module of x by itself; else None."""
    form = getattr(se, "__se_fused__", None)
    if form is None or form.squeeze(se) != "avg" or not form.is_se_alone or not form.intact(se):
        return None
    return form.specification(se, x)


def _gate(module: FusedSE, x: Tensor, form: Form, on_gate) -> Tensor:
    """What x is multiplied by, [N, C] with any number of trailing dims of size 1."""
    z = functional.squeeze(x, form.squeeze(module))
    if form.paths is None:
        g = module.excitation(z.to(_dtype_of(module.excitation, x)))
    else:
        fc1, act, fc2, gate, norm = layers_of(module, form.paths)
        ones = (1,) * (dims_taken(fc1) - 2)
        p = fc1(z.view(z.shape + ones).to(_dtype_of(fc1, x)))
        if norm is not None:
            p = norm(p)
        g = gate(p if fc2 is None else fc2(act(p)))
    if on_gate is not None:
        on_gate(g.detach().flatten(1))
    if form.add_residual:
        return 1 + g.to(z.dtype)
    # rescale takes a gate of x's dtype or wider; autocast may have lowered it below x's.
    is_lower = isinstance(g, Tensor) and g.dtype != x.dtype and x.dtype.itemsize > 2
    return g.to(x.dtype) if is_lower else g


def _dtype_of(layer: nn.Module, x: Tensor) -> torch.dtype:
    """What a layer takes: its own parameters' dtype where they are plain, else x's."""
    weight = next(layer.parameters(recurse=False), None)
    if weight is None:
        weight = next(layer.parameters(), None)
    return weight.dtype if is_plain(weight) and weight.is_floating_point() else x.dtype


def described(module: FusedSE, form: Form) -> str:
    """The steps of a module, how much of it is fused, and which backend runs it."""
    layers = layers_of(module, form.paths)
    kind = form.squeeze(module)
    steps = ["squeeze" if kind == "avg" else f"squeeze by {kind}"]
    if form.paths is None:
        steps += ["excitation"]
    else:
        steps += ["fc1" if layers.fc2 is not None else "fc"]
        steps += ["norm"] if layers.norm is not None else []
        steps += ["act", "fc2"] if layers.fc2 is not None else []
        steps += ["gate"]
    steps += ["rescale + x" if form.add_residual else "rescale"]
    fused = "squeeze and rescale fused"
    if not form.add_residual and names_of(layers) is not None:
        fused = "one operator" if kind == "avg" else "one function"
    return ", ".join([" → ".join(steps), fused, *_backends(module)])


def _backends(module: nn.Module) -> list[str]:
    """Which backend runs it, where its parameters tell the device."""
    for parameter in module.parameters():
        try:
            return [f"backend={backends.backend_for(parameter.device)}"]
        except (RuntimeError, ValueError) as error:
            return [f"backend=none: {error}"]
    return []


def traced(module: nn.Module, *args) -> torch.fx.Proxy:
    """The module's call as one node of torch.fx's symbolic tracing, as PyTorch's own layers are."""
    tracer = args[0].tracer
    return tracer.create_proxy("call_module", tracer.path_of_module(module), args, {})


def _check_excitation(excitation: nn.Module, **others):
    """The other arguments of the constructor must have their defaults."""
    if not isinstance(excitation, nn.Module):
        raise TypeError(f"excitation must be a torch.nn.Module, got {type(excitation).__name__}")
    defaults = inspect.signature(FusedSE).parameters
    given = [name for name, value in others.items() if value != defaults[name].default]
    if given:
        raise ValueError(
            f"excitation is the whole excitation: {', '.join(given)} cannot be given beside it"
        )


def _round_to_multiple(width: float, divisor: int) -> int:
    return max(divisor, int(width + divisor / 2) // divisor * divisor)
