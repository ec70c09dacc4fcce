"""The operators ``torch.ops.se_fused.*``: schemas, fakes, and the choice of a backend.

Each operator is one opaque node to torch.compile; the backend is chosen inside its body. Operators
have no autograd of their own: use ``se_fused.functional``. Letters and formulas in
``se_fused/backends/README.md``. What the extension computes is the overload ``cpp`` of the same
name, with the same schema and fake.
"""

import torch

from se_fused import flops
from se_fused.backends import module_for, reference
from se_fused.memory_format import acc_dtype, match_memory_format, to_dense

_library = torch.library.Library("se_fused", "DEF")

def _operator(arguments: str, results: str, fake, elsewhere=None):
    """Registers a function as the body of the operator of its name; it gets the backend first.

    Returns what autograd calls: the operator, or for CPU tensors straight the body where the
    backend's own functions are operators. Through the dispatcher once, not twice: 5 of 20 µs.
    ``elsewhere`` runs instead for tensors on other devices than the CPU.
    """

    def register(body):
        name = body.__name__
        for overload in (name, f"{name}.cpp"):
            tags = (torch.Tag.pt2_compliant_tag,)
            _library.define(f"{overload}({arguments}) -> {results}", tags=tags)
            torch.library.register_fake(f"se_fused::{overload}", fake, lib=_library)

        def run(*args):
            device = args[0].device
            if torch.is_autocast_enabled(device.type):
                with torch.autocast(device.type, enabled=False):
                    return body(module_for(device), *args)
            return body(module_for(device), *args)

        _library.impl(name, run, "CompositeExplicitAutograd")
        operator = getattr(torch.ops.se_fused, name).default

        def call(*args):
            if not args[0].is_cpu:
                return operator(*args) if elsewhere is None else elsewhere(*args)
            if not torch.compiler.is_compiling():
                module = module_for(args[0].device)
                if module.OPERATORS:
                    return body(module, *args)
            return operator(*args)

        return call

    return register


# Fakes: shapes, dtypes and layouts of the results, for torch.compile, fake and meta tensors.


def _map(x):
    return torch.empty_like(to_dense(x))


def _map_if(wanted: bool, x):
    return _map(x) if wanted else x.new_empty(0)


def _mask_if(wanted: bool, x):
    return x.new_empty(reference.mask_size(to_dense(x)) if wanted else 0, dtype=torch.uint8)


def _acc(x, *size):
    return x.new_empty(size, dtype=acc_dtype(x.dtype))


def _per_channel(x, *count):
    return _acc(x, *count, x.shape[0], x.shape[1])


def _contiguous(*tensors):
    return [None if t is None else t.contiguous() for t in tensors]


_NORM = "Tensor? center, Tensor? scale, Tensor? shift"
_WEIGHTS = "Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, str act, str gate"


# Four passes over the map


def _reduce_forward(x, center, scale, shift, act, statistic):
    return _per_channel(x, 1 if statistic == "mean" else 2)


@_operator(f"Tensor x, {_NORM}, str act, str statistic", "Tensor", _reduce_forward)
def reduce_forward(module, x, *parts):
    return module.reduce_forward(to_dense(x), *parts)


def _apply_forward(x, residual, center, scale, shift, g, act, relu):
    return _map(x), _mask_if(relu, x)


@_operator(
    f"Tensor x, Tensor? residual, {_NORM}, Tensor g, str act, bool relu",
    "(Tensor, Tensor)", _apply_forward,
)  # fmt: skip
def apply_forward(module, x, residual, center, scale, shift, g, act, relu):
    x = to_dense(x)
    residual = None if residual is None else match_memory_format(residual, x)
    return module.apply_forward(x, residual, center, scale, shift, g.contiguous(), act, relu)


def _reduce_backward(dy, x, mask, center, scale, shift, maximum, g, act):
    count = 1 if maximum is None else 2
    if center is not None:
        count = 2 if act == "identity" else 5
    return _per_channel(x, count), _map_if(g is not None, x)


@_operator(
    f"Tensor dy, Tensor x, Tensor? mask, {_NORM}, Tensor? maximum, Tensor? g, str act",
    "(Tensor, Tensor)", _reduce_backward,
)  # fmt: skip
def reduce_backward(module, dy, x, mask, center, scale, shift, maximum, g, act):
    x = to_dense(x)
    dy = match_memory_format(dy, x)
    return module.reduce_backward(
        dy, x, mask, center, scale, shift, *_contiguous(maximum, g), act
    )


def _apply_backward(
    dy, x, mask, center, scale, shift, g, grad_mean, maximum, grad_max, slope, offset, act, add
):
    return _map(x), _map_if(add, x)


@_operator(
    f"Tensor dy, Tensor x, Tensor? mask, {_NORM}, Tensor g, Tensor? grad_mean, Tensor? maximum,"
    " Tensor? grad_max, Tensor? slope, Tensor? offset, str act, bool add",
    "(Tensor, Tensor)", _apply_backward,
)  # fmt: skip
def apply_backward(
    module, dy, x, mask, center, scale, shift, g, grad_mean, maximum, grad_max, slope, offset,
    act, add,
):  # fmt: skip
    x = to_dense(x)
    return module.apply_backward(
        match_memory_format(dy, x), x, mask, center, scale, shift,
        *_contiguous(g, grad_mean, maximum, grad_max), slope, offset, act, add,
    )  # fmt: skip


# The block at once


def _squeeze_excite(x, residual, w1, b1, w2, b2, act, gate, relu):
    return _map(x), _mask_if(relu, x), _per_channel(x), _per_channel(x)


@_operator(
    f"Tensor x, Tensor? residual, {_WEIGHTS}, bool relu",
    "(Tensor, Tensor, Tensor, Tensor)", _squeeze_excite,
)  # fmt: skip
def squeeze_excite(module, x, residual, w1, b1, w2, b2, act, gate, relu):
    x = to_dense(x)
    residual = None if residual is None else match_memory_format(residual, x)
    return module.squeeze_excite(x, residual, w1, b1, w2, b2, act, gate, relu)


def _squeeze_excite_backward(dy, x, mask, z, g, w1, b1, w2, b2, act, gate, add):
    dp1, h = (_acc(x, x.shape[0], w1.shape[0]) for _ in range(2))
    return _map(x), _map_if(add, x), dp1, h, _per_channel(x)


@_operator(
    f"Tensor dy, Tensor x, Tensor? mask, Tensor z, Tensor g, {_WEIGHTS}, bool add",
    "(Tensor, Tensor, Tensor, Tensor, Tensor)", _squeeze_excite_backward,
)  # fmt: skip
def squeeze_excite_backward(module, dy, x, mask, z, g, w1, b1, w2, b2, act, gate, add):
    x = to_dense(x)
    return module.squeeze_excite_backward(
        match_memory_format(dy, x), x, mask, z.contiguous(), g.contiguous(), w1, b1, w2, b2,
        act, gate, add,
    )  # fmt: skip


# Between the passes


def _merge_moments(moments, positions):
    return tuple(moments.new_empty(moments.shape[2]) for _ in range(2))


@_operator(
    "Tensor moments, SymInt positions", "(Tensor, Tensor)", _merge_moments,
    elsewhere=reference.merge_moments,
)  # fmt: skip
def merge_moments(module, moments, positions):
    return module.merge_moments(moments, positions)


def _excite(mean, center, scale, shift, w1, b1, w2, b2, act, gate):
    z = mean.new_empty(0) if center is None else _per_channel(mean)
    return z, _acc(mean, mean.shape[0], w1.shape[0]), _acc(mean, mean.shape[0], w2.shape[0])


@_operator(
    f"Tensor mean, {_NORM}, {_WEIGHTS}", "(Tensor, Tensor, Tensor)", _excite,
    elsewhere=reference.excite,
)  # fmt: skip
def excite(module, *arguments):
    return module.excite(*arguments)


def _excite_backward(
    sums, mean, center, scale, shift, p1, g, w1, w2, act, gate, positions
):
    channels = 0 if center is None else g.shape[1]
    likes = p1, p1, g, g
    return *map(torch.empty_like, likes), g.new_empty(channels), g.new_empty(channels)


@_operator(
    f"Tensor sums, Tensor mean, {_NORM}, Tensor p1, Tensor g, Tensor w1, Tensor w2, str act,"
    " str gate, SymInt positions",
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)", _excite_backward,
    elsewhere=reference.excite_backward,
)  # fmt: skip
def excite_backward(module, *arguments):
    return module.excite_backward(*arguments)


def _product(a, b, bias):
    return a.new_empty(a.shape[0], b.shape[1])


@_operator("Tensor a, Tensor b, Tensor? bias", "Tensor", _product)
def product(module, a, b, bias):
    """Of every backend: see ``reference.product``."""
    return a @ b if bias is None else torch.addmm(bias, a, b)


flops.register()
