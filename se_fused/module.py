"""``FusedSE``: the squeeze-and-excitation block as a module."""

from typing import NamedTuple

from torch import Tensor, nn

from se_fused import functional, ops
from se_fused.activations import ACTS, GATES, function_name, make_module


class Slots(NamedTuple):
    """The attribute that holds each layer of the block; None where a family has no such layer."""

    fc1: str = "fc1"
    act: str = "act"
    fc2: str = "fc2"
    gate: str = "gate"
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
        add_maxpool: squeeze by half the mean plus half the maximum.
        bias: whether both layers have a bias.
        act_layer, gate_layer: a name ("relu", "hard_sigmoid", …), a module class or a callable.
        norm_layer: normalisation of the hidden units, called with R.

    Shapes: x ``[N, C]`` to ``[N, C, D, H, W]`` to the same shape, dtype and layout. dtypes:
    float64, float32, bfloat16, float16; parameters may stay float32 beside a 16-bit x, as under
    autocast.

    The whole block runs as one operator where its layers are those of the formula. With a norm,
    ``add_maxpool``, other activation modules, or hooks or parametrizations on a layer, it runs as
    ``squeeze → the layers → rescale``.

    Source: Hu et al., arXiv 1709.01507; argument names from timm.
    """

    slots = Slots()
    add_maxpool = False

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
    ):
        super().__init__()
        if channels < 1:
            raise ValueError(f"channels must be at least 1, got {channels}")
        if rd_channels is None:
            rd_channels = _round_to_multiple(channels * rd_ratio, rd_divisor)
        if rd_channels < 1:
            raise ValueError(f"rd_channels must be at least 1, got {rd_channels}")
        factory = {"device": device, "dtype": dtype}
        self.add_maxpool = add_maxpool
        self.fc1 = nn.Conv2d(channels, rd_channels, 1, bias=bias, **factory)
        self.bn = norm_layer(rd_channels, **factory) if norm_layer else nn.Identity()
        self.act = make_module(act_layer, "act_layer")
        self.fc2 = nn.Conv2d(rd_channels, channels, 1, bias=bias, **factory)
        self.gate = make_module(gate_layer, "gate_layer")

    @classmethod
    def from_layers(cls, source: nn.Module) -> "FusedSE":
        """A block that runs the very layers of ``source``, under the names they have there."""
        fused = cls.__new__(cls)
        nn.Module.__init__(fused)
        for name, layer in source.named_children():
            fused.add_module(name, layer)
        fused.training = source.training
        fused.add_maxpool = getattr(source, "add_maxpool", False)
        return fused

    def forward(self, x: Tensor) -> Tensor:
        fc1, act, fc2, gate, norm = self._layers()
        names = self._fused_names(fc1, act, fc2, gate, norm)
        if names is not None:
            return functional.squeeze_excite(
                x, *_parameters(fc1), *_parameters(fc2), act=names[0], gate=names[1]
            )
        z = functional.squeeze(x)
        if self.add_maxpool:
            z = 0.5 * z + 0.5 * x.flatten(2).amax(2).to(z.dtype)
        hidden = fc1(z.to(fc1.weight.dtype)[:, :, None, None])
        g = gate(fc2(act(hidden if norm is None else norm(hidden))))
        return functional.rescale(x, _gate_for(g, x))

    def _layers(self):
        """fc1, act, fc2, gate and norm (None where there is none)."""
        modules, slots = self._modules, self.slots
        norm = modules.get(slots.norm)
        return (
            modules[slots.fc1],
            modules[slots.act],
            modules[slots.fc2],
            modules[slots.gate],
            None if type(norm) is nn.Identity else norm,
        )

    def _fused_names(self, fc1, act, fc2, gate, norm) -> tuple[str, str] | None:
        """The names of act and gate if the whole-block operator computes this module, else None."""
        if norm is not None or self.add_maxpool:
            return None
        act_name, gate_name = function_name(act), function_name(gate)
        if act_name not in ACTS or gate_name not in GATES:
            return None
        if not (_is_plain(fc1) and _is_plain(fc2)):
            return None
        if _has_hooks(fc1) or _has_hooks(act) or _has_hooks(fc2) or _has_hooks(gate):
            return None
        return act_name, gate_name

    def extra_repr(self) -> str:
        layers = self._layers()
        fc1, _, fc2, _, norm = layers
        bottleneck = " → norm" if norm is not None else ""
        order = f"squeeze → fc1{bottleneck} → act → fc2 → gate → rescale"
        fused = "one operator" if self._fused_names(*layers) else "squeeze and rescale fused"
        try:
            backend = ops.backend_for(fc1.weight.device)
        except (RuntimeError, ValueError) as error:
            backend = f"none: {error}"
        return f"{order}, {fused}, backend={backend}"


def _round_to_multiple(width: float, divisor: int) -> int:
    return max(divisor, int(width + divisor / 2) // divisor * divisor)


def _parameters(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Weight and bias; looked up as attributes, a microsecond each, only where they must be."""
    own = layer._parameters
    return (own["weight"], own["bias"]) if len(own) == 2 else (layer.weight, layer.bias)


def _is_plain(layer: nn.Module) -> bool:
    return type(layer) is nn.Conv2d and layer.kernel_size == (1, 1) and layer.groups == 1


def _has_hooks(layer: nn.Module) -> bool:
    return (
        layer._forward_hooks
        or layer._forward_pre_hooks
        or layer._backward_hooks
        or layer._backward_pre_hooks
    )


def _gate_for(gate: Tensor, x: Tensor) -> Tensor:
    """The gate in a dtype that rescale takes (autocast may have lowered it below x's)."""
    return gate if gate.dtype == x.dtype or x.dtype.itemsize == 2 else gate.to(x.dtype)
