"""``FusedSE``: the squeeze-and-excitation block as a module."""

import inspect
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.fx
from torch import Tensor, nn

from se_fused import checks, functional, ops
from se_fused.activations import ACTS, GATES, function_name, make_module
from se_fused.maximum import SQUEEZES
from se_fused.pointwise import is_pointwise


class Slots(NamedTuple):
    """Where a block has its layers: an attribute path ("fc.0"), a function, or None for no layer.

    Without ``fc2`` the block has one layer and no act.
    """

    fc1: str = "fc1"
    act: str | Callable | None = "act"
    fc2: str | None = "fc2"
    gate: str | Callable = "gate"
    norm: str | None = "bn"


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

    slots = Slots()  # None: a module is the whole excitation
    add_maxpool = False
    _fused_squeeze = "avg"  # where add_maxpool is False
    add_residual = False  # y = x * g + x
    takes_a_plain_map = True  # [N, C, *spatial], and returns it rescaled, nothing else
    on_gate: Callable[[Tensor], None] | None = None  # called with the gates while they are recorded

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
        checks.choice(squeeze, SQUEEZES, "squeeze")
        if add_maxpool and squeeze not in ("avg", "avg_max"):
            raise ValueError(f"add_maxpool is squeeze='avg_max', got squeeze={squeeze!r} beside it")
        self.add_maxpool = add_maxpool or squeeze == "avg_max"
        if not self.add_maxpool:
            self._fused_squeeze = squeeze
        if excitation is not None:
            _check_excitation(
                excitation, rd_ratio=rd_ratio, rd_channels=rd_channels, rd_divisor=rd_divisor,
                bias=bias, act_layer=act_layer, norm_layer=norm_layer, gate_layer=gate_layer,
                device=device, dtype=dtype,
            )  # fmt: skip
            self.slots, self.excitation = None, excitation
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

    def forward(self, x: Tensor) -> Tensor:
        return traced(self, x) if isinstance(x, torch.fx.Proxy) else self._fused(x)

    def _fused(self, x: Tensor) -> Tensor:
        layers = self._layers()
        names = self._fused_names(*layers)
        if names is not None:
            fc1, _, fc2, _, _ = layers
            return functional.squeeze_excite(
                x, *parameters_of(fc1), *parameters_of(fc2), act=names[0], gate=names[1],
                squeeze=self._squeeze_kind(), on_gate=self.on_gate,
            )  # fmt: skip
        return functional.rescale(x, self._gate(x, *layers))

    def _gate(self, x: Tensor, fc1, act, fc2, gate, norm) -> Tensor:
        """What x is multiplied by, [N, C] with any number of trailing dims of size 1."""
        z = functional.squeeze(x, self._squeeze_kind())
        if self.slots is None:
            weight = next(self.excitation.parameters(), z)
            g = self.excitation(z.to(weight.dtype))
        else:
            weight = fc1.weight
            p = fc1(z.view(z.shape + (1,) * (weight.dim() - 2)).to(weight.dtype))
            if norm is not None:
                p = norm(p)
            g = gate(p if fc2 is None else fc2(act(p)))
        if self.on_gate is not None:
            self.on_gate(g.detach().flatten(1))
        if self.add_residual:
            return 1 + g.to(z.dtype)
        # rescale takes a gate of x's dtype or wider; autocast may have lowered it below x's.
        is_lower = isinstance(g, Tensor) and g.dtype != x.dtype and x.dtype.itemsize > 2
        return g.to(x.dtype) if is_lower else g

    def _squeeze_kind(self) -> str:
        return "avg_max" if self.add_maxpool else self._fused_squeeze

    def _layers(self):
        """fc1, act, fc2, gate and norm; None where there is none."""
        if self.slots is None:
            return (None,) * 5
        modules = self._modules
        fc1, act, fc2, gate, norm = [modules.get(slot) or self._layer(slot) for slot in self.slots]
        return fc1, act, fc2, gate, None if type(norm) is nn.Identity else norm

    def _layer(self, slot: str | Callable | None):
        if not isinstance(slot, str):
            return slot
        layer = self
        for name in slot.split("."):
            layer = getattr(layer, name)
        return layer

    def _fused_names(self, fc1, act, fc2, gate, norm) -> tuple[str, str] | None:
        """The names of act and gate if ``squeeze_excite`` computes this module, else None."""
        if norm is not None or fc2 is None or self.add_residual:
            return None
        act_name, gate_name = function_name(act), function_name(gate)
        if act_name not in ACTS or gate_name not in GATES:
            return None
        if not (is_pointwise(fc1) and is_pointwise(fc2)):
            return None
        if has_hooks(fc1) or has_hooks(act) or has_hooks(fc2) or has_hooks(gate):
            return None
        return act_name, gate_name

    def _is_one_operator(self) -> bool:
        return self._squeeze_kind() == "avg" and self._fused_names(*self._layers()) is not None

    def __prepare_scriptable__(self):
        raise NotImplementedError(
            f"torch.jit.script cannot compile {self._get_name()}: use torch.export or "
            "torch.jit.trace, or script the model before replace_se or after restore_se"
        )

    def extra_repr(self) -> str:
        layers = self._layers()
        _, _, fc2, _, norm = layers
        kind = self._squeeze_kind()
        steps = ["squeeze" if kind == "avg" else f"squeeze by {kind}"]
        if self.slots is None:
            steps += ["excitation"]
        else:
            steps += ["fc1" if fc2 is not None else "fc"]
            steps += ["norm"] if norm is not None else []
            steps += ["act", "fc2"] if fc2 is not None else []
            steps += ["gate"]
        steps += ["rescale + x" if self.add_residual else "rescale"]
        fused = "squeeze and rescale fused"
        if self._fused_names(*layers) is not None:
            fused = "one operator" if self._is_one_operator() else "one function"
        return ", ".join([" → ".join(steps), fused, *self._backends()])

    def _backends(self) -> list[str]:
        """Which backend runs it, where its parameters tell the device."""
        for parameter in self.parameters():
            try:
                return [f"backend={ops.backend_for(parameter.device)}"]
            except (RuntimeError, ValueError) as error:
                return [f"backend=none: {error}"]
        return []


def traced(module: FusedSE, *args) -> torch.fx.Proxy:
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


def parameters_of(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Weight and bias; looked up as attributes, a microsecond each, only where they must be."""
    own = layer._parameters
    return (own["weight"], own["bias"]) if len(own) == 2 else (layer.weight, layer.bias)


def has_hooks(layer) -> bool:
    return isinstance(layer, nn.Module) and bool(
        layer._forward_hooks
        or layer._forward_pre_hooks
        or layer._backward_hooks
        or layer._backward_pre_hooks
    )
