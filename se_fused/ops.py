"""The operators ``torch.ops.se_fused.*``: schemas, fakes, and the choice of a backend.

Each operator is one opaque node to torch.compile; the backend is chosen inside its body. Operators
have no autograd of their own: use ``se_fused.functional``.
"""

import os
from contextlib import contextmanager

import torch

from se_fused import backends, fakes, flops
from se_fused.layout import dense, like

_library = torch.library.Library("se_fused", "DEF")
_forced: str | None = os.environ.get("SE_FUSED_BACKEND") or None
# Backends that can run, by forced name (None: chosen by device) and device: asked once.
_ready: dict[tuple[str | None, torch.device], object] = {}


# Backend choice


@contextmanager
def backend(name: str | None):
    """Run what is called inside on one named backend: ``with se_fused.backend("triton"): ...``

    A named backend never falls back: if it cannot run, the call raises with the reason. ``None``
    restores the automatic choice. Process-wide, so that it reaches autograd's threads; it covers
    the calls made inside the block, a backward pass only if it is called inside too. Enter it
    outside functions given to torch.compile. Initial value: the environment variable
    SE_FUSED_BACKEND.
    """
    global _forced
    _check_name(name)
    previous, _forced = _forced, name
    try:
        yield
    finally:
        _forced = previous


def forced_backend() -> str | None:
    """The name given by ``backend(...)`` or SE_FUSED_BACKEND, None for the automatic choice."""
    return _forced


def backend_for(device: torch.device) -> str:
    """The name of the backend that a tensor on this device gets; raises if there is none."""
    return _module_for(device).__name__.rpartition(".")[2]


def why_not(name: str, device: torch.device) -> str | None:
    """Why a backend cannot run on a device; None if it can."""
    try:
        module = backends.load(name)
    except ImportError as error:
        return f"import failed: {error}"
    return module.unavailable(device)


def _module_for(device: torch.device):
    module = _ready.get((_forced, device))
    if module is None:
        module = _ready[_forced, device] = _find_module(_forced, device)
    return module


def _find_module(name: str | None, device: torch.device):
    if name is None:
        names = backends.preferred(device.type)
        return backends.load(next(name for name in names if why_not(name, device) is None))
    _check_name(name)
    reason = why_not(name, device)
    if reason:
        raise RuntimeError(f"backend {name!r} cannot run on {device.type}: {reason}")
    return backends.load(name)


def _check_name(name: str | None):
    if name is not None and name not in backends.NAMES:
        raise ValueError(f"backend must be one of {', '.join(backends.NAMES)}, got {name!r}")


# Operators


def _operator(schema: str):
    """Registers a function as the body of an operator; it gets the backend module first.

    Returns what functional.py calls: the operator, or for CPU tensors straight the body where the
    backend's own functions are operators. Through the dispatcher once, not twice: 5 of 20 µs.
    """

    def register(body):
        name = schema.partition("(")[0]
        _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))

        def run(*args):
            device = args[0].device
            if torch.is_autocast_enabled(device.type):
                with torch.autocast(device.type, enabled=False):
                    return body(_module_for(device), *args)
            return body(_module_for(device), *args)

        _library.impl(name, run, "CompositeExplicitAutograd")
        overload = getattr(torch.ops.se_fused, name).default

        def call(*args):
            if args[0].is_cpu and not torch.compiler.is_compiling():
                module = _module_for(args[0].device)
                if module.OPERATORS:
                    return body(module, *args)
            return overload(*args)

        return call

    return register


_WEIGHTS = "Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, str act, str gate"


@_operator("squeeze(Tensor x) -> Tensor")
def squeeze(module, x):
    return module.squeeze(dense(x))


@_operator("rescale(Tensor x, Tensor g) -> Tensor")
def rescale(module, x, g):
    return module.rescale(dense(x), g.contiguous())


@_operator("gate_gradient(Tensor dy, Tensor x) -> Tensor")
def gate_gradient(module, dy, x):
    x = dense(x)
    return module.gate_gradient(like(dy, x), x)


@_operator("rescale_backward(Tensor dy, Tensor x, Tensor g) -> (Tensor, Tensor)")
def rescale_backward(module, dy, x, g):
    x = dense(x)
    return module.rescale_backward(like(dy, x), x, g.contiguous())


@_operator(f"squeeze_excite(Tensor x, {_WEIGHTS}) -> (Tensor, Tensor, Tensor)")
def squeeze_excite(module, x, w1, b1, w2, b2, act, gate):
    return module.squeeze_excite(dense(x), w1, b1, w2, b2, act, gate)


@_operator(
    f"squeeze_excite_backward(Tensor dy, Tensor x, Tensor z, Tensor g, {_WEIGHTS})"
    " -> (Tensor, Tensor, Tensor, Tensor)"
)
def squeeze_excite_backward(module, dy, x, z, g, w1, b1, w2, b2, act, gate):
    x = dense(x)
    return module.squeeze_excite_backward(
        like(dy, x), x, z.contiguous(), g.contiguous(), w1, b1, w2, b2, act, gate
    )


@_operator("squeeze_max(Tensor x) -> (Tensor, Tensor)")
def squeeze_max(module, x):
    return module.squeeze_max(dense(x))


@_operator("gate_gradient_max(Tensor dy, Tensor x, Tensor m) -> (Tensor, Tensor)")
def gate_gradient_max(module, dy, x, m):
    x = dense(x)
    return module.gate_gradient_max(like(dy, x), x, m.contiguous())


@_operator(
    "rescale_backward_max(Tensor dy, Tensor x, Tensor g, Tensor share, Tensor m, Tensor peak)"
    " -> Tensor"
)
def rescale_backward_max(module, dy, x, *values):
    x = dense(x)
    return module.rescale_backward_max(like(dy, x), x, *(t.contiguous() for t in values))


_NORM = "Tensor? center, Tensor? scale, Tensor? shift"


@_operator("moments(Tensor x) -> (Tensor, Tensor)")
def moments(module, x):
    return module.moments(dense(x))


@_operator(f"norm_squeeze(Tensor x, {_NORM}, str act) -> Tensor")
def norm_squeeze(module, x, center, scale, shift, act):
    return module.norm_squeeze(dense(x), center, scale, shift, act)


@_operator(
    f"norm_rescale(Tensor x, Tensor? residual, {_NORM}, Tensor g, str act, bool relu)"
    " -> (Tensor, Tensor)"
)
def norm_rescale(module, x, residual, center, scale, shift, g, act, relu):
    x = dense(x)
    residual = None if residual is None else like(residual, x)
    return module.norm_rescale(x, residual, center, scale, shift, g.contiguous(), act, relu)


@_operator(f"norm_sums(Tensor dy, Tensor x, Tensor? mask, {_NORM}, str act) -> Tensor")
def norm_sums(module, dy, x, mask, center, scale, shift, act):
    x = dense(x)
    return module.norm_sums(like(dy, x), x, mask, center, scale, shift, act)


@_operator(
    f"norm_rescale_backward(Tensor dy, Tensor x, Tensor? mask, {_NORM}, Tensor g, Tensor share,"
    " Tensor? slope, Tensor? offset, str act, bool add) -> (Tensor, Tensor)"
)
def norm_rescale_backward(
    module, dy, x, mask, center, scale, shift, g, share, slope, offset, act, add
):
    x = dense(x)
    return module.norm_rescale_backward(
        like(dy, x), x, mask, center, scale, shift, g.contiguous(), share.contiguous(),
        slope, offset, act, add,
    )  # fmt: skip


@_operator("merge_moments(Tensor planes, Tensor m2, SymInt positions) -> (Tensor, Tensor)")
def merge_moments(module, planes, m2, positions):
    return module.merge_moments(planes, m2, positions)


@_operator(f"norm_excite(Tensor planes, {_NORM}, {_WEIGHTS}) -> (Tensor, Tensor, Tensor)")
def norm_excite(module, planes, center, scale, shift, w1, b1, w2, b2, act, gate):
    return module.norm_excite(planes, center, scale, shift, w1, b1, w2, b2, act, gate)


@_operator(
    f"norm_excite_backward(Tensor sums, Tensor planes, {_NORM}, Tensor p1, Tensor g, Tensor w1,"
    " Tensor w2, str act, str gate, SymInt positions)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
def norm_excite_backward(
    module, sums, planes, center, scale, shift, p1, g, w1, w2, act, gate, positions
):
    return module.norm_excite_backward(
        sums, planes, center, scale, shift, p1, g, w1, w2, act, gate, positions
    )


@_operator("product(Tensor a, Tensor b, Tensor? bias) -> Tensor")
def product(module, a, b, bias):
    """Of every backend: see ``excitation.product``."""
    return a @ b if bias is None else torch.addmm(bias, a, b)


@torch.library.register_fake("se_fused::product", lib=_library)
def _(a, b, bias):
    return a.new_empty(a.shape[0], b.shape[1])


fakes.register("se_fused", _library)
flops.register()
