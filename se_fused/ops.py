"""The operators ``torch.ops.se_fused.*``: schemas, fakes, and their way to a backend.

Each operator is one opaque node to torch.compile; the backend is chosen when it runs. Operators
have no autograd of their own: use ``se_fused.functional``. Letters and formulas in
``se_fused/backends/README.md``. What the extension computes is the overload ``cpp`` of the same
name, with the same schema and fake.
"""

import torch

from se_fused import flops
from se_fused.backends import module_for, reference
from se_fused.memory_format import acc_dtype, mask_size, match_memory_format, to_dense

_library = torch.library.Library("se_fused", "DEF")

# What a backend gets laid out: x dense, other maps as x, and values of planes contiguous.
_MAPS = ("dy", "residual")
_OF_PLANES = ("z", "g", "grad_mean", "maximum", "grad_max")


def _operator(arguments: str, results: str, elsewhere=None, compute=None):
    """Defines the operator of a function's name, whose results the function makes without computing
    them (for fake and meta tensors): shapes, dtypes and layouts.

    Gives what autograd calls: the operator, or for CPU tensors straight the backend's function
    where that is an operator itself. Through the dispatcher once, not twice: 5 of 20 µs.

    elsewhere: what runs in its place for tensors on other devices than the CPU.
    compute: what runs on every backend, instead of its function of this name.
    """
    names = [argument.split()[-1] for argument in arguments.split(", ")]
    x_index = names.index("x") if "x" in names else None
    maps = [names.index(name) for name in _MAPS if name in names]
    of_planes = [names.index(name) for name in _OF_PLANES if name in names]

    def laid_out(args):
        if x_index is None:
            return args
        args = list(args)
        x = args[x_index] = to_dense(args[x_index])
        for index in maps:
            if args[index] is not None:
                args[index] = match_memory_format(args[index], x)
        for index in of_planes:
            if args[index] is not None:
                args[index] = args[index].contiguous()
        return args

    def backend_for(args):
        """Of an empty map nothing is computed: the reference has its results."""
        module = module_for(args[0].device)
        is_empty = x_index is not None and args[x_index].numel() == 0
        return reference if is_empty else module

    def register(fake):
        name = fake.__name__
        for overload in (name, f"{name}.cpp"):
            tags = (torch.Tag.pt2_compliant_tag,)
            _library.define(f"{overload}({arguments}) -> {results}", tags=tags)
            torch.library.register_fake(f"se_fused::{overload}", fake, lib=_library)

        def run(*args):
            device = args[0].device
            function = compute or getattr(backend_for(args), name)
            if torch.is_autocast_enabled(device.type):
                with torch.autocast(device.type, enabled=False):
                    return function(*laid_out(args))
            return function(*laid_out(args))

        _library.impl(name, run, "CompositeExplicitAutograd")
        operator = getattr(torch.ops.se_fused, name).default

        def call(*args):
            if not args[0].is_cpu:
                return operator(*args) if elsewhere is None else elsewhere(*args)
            if not torch.compiler.is_compiling():
                module = backend_for(args)
                if module.OPERATORS:
                    return getattr(module, name)(*laid_out(args))
            return operator(*args)

        return call

    return register


def _map(x, wanted: bool = True):
    return torch.empty_like(to_dense(x)) if wanted else x.new_empty(0)


def _mask(x, wanted: bool):
    return x.new_empty(mask_size(to_dense(x)) if wanted else 0, dtype=torch.uint8)


def _acc(x, *size):
    return x.new_empty(size, dtype=acc_dtype(x.dtype))


def _planes(x, *count):
    return _acc(x, *count, x.shape[0], x.shape[1])


_NORM = "Tensor? center, Tensor? scale, Tensor? shift"
_WEIGHTS = "Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, str act, str gate"


# Four passes over the map


@_operator(f"Tensor x, {_NORM}, str act, str statistic", "Tensor")
def reduce_forward(x, center, scale, shift, act, statistic):
    return _planes(x, 1 if statistic == "mean" else 2)


@_operator(
    f"Tensor x, Tensor? residual, {_NORM}, Tensor g, str act, bool relu", "(Tensor, Tensor)"
)
def apply_forward(x, residual, center, scale, shift, g, act, relu):
    return _map(x), _mask(x, relu)


@_operator(
    f"Tensor dy, Tensor x, Tensor? mask, {_NORM}, Tensor? maximum, Tensor? g, str act",
    "(Tensor, Tensor)",
)
def reduce_backward(dy, x, mask, center, scale, shift, maximum, g, act):
    count = 1 if maximum is None else 2
    if center is not None:
        count = 2 if act == "identity" else 5
    return _planes(x, count), _map(x, g is not None)


@_operator(
    f"Tensor dy, Tensor x, Tensor? mask, {_NORM}, Tensor g, Tensor? grad_mean, Tensor? maximum, "
    "Tensor? grad_max, Tensor? slope, Tensor? offset, str act, bool add",
    "(Tensor, Tensor)",
)
def apply_backward(
    dy, x, mask, center, scale, shift, g, grad_mean, maximum, grad_max, slope, offset, act, add
):
    return _map(x), _map(x, add)


# The block at once


@_operator(f"Tensor x, Tensor? residual, {_WEIGHTS}, bool relu", "(Tensor, Tensor, Tensor, Tensor)")
def squeeze_excite(x, residual, w1, b1, w2, b2, act, gate, relu):
    return _map(x), _mask(x, relu), _planes(x), _planes(x)


@_operator(
    f"Tensor dy, Tensor x, Tensor? mask, Tensor z, Tensor g, {_WEIGHTS}, bool add",
    "(Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def squeeze_excite_backward(dy, x, mask, z, g, w1, b1, w2, b2, act, gate, add):
    dp1, h = (_acc(x, x.shape[0], w1.shape[0]) for _ in range(2))
    return _map(x), _map(x, add), dp1, h, _planes(x)


# Between the passes


@_operator(
    "Tensor moments, SymInt positions", "(Tensor, Tensor)", elsewhere=reference.merge_moments
)
def merge_moments(moments, positions):
    return moments.new_empty(moments.shape[2]), moments.new_empty(moments.shape[2])


@_operator(
    f"Tensor mean, {_NORM}, {_WEIGHTS}", "(Tensor, Tensor, Tensor)", elsewhere=reference.excite
)
def excite(mean, center, scale, shift, w1, b1, w2, b2, act, gate):
    z = mean.new_empty(0) if center is None else torch.empty_like(mean)
    return z, _acc(mean, mean.shape[0], w1.shape[0]), _acc(mean, mean.shape[0], w2.shape[0])


@_operator(
    f"Tensor sums, Tensor mean, {_NORM}, Tensor p1, Tensor g, Tensor w1, Tensor w2, str act, "
    "str gate, SymInt positions",
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    elsewhere=reference.excite_backward,
)
def excite_backward(sums, mean, center, scale, shift, p1, g, w1, w2, act, gate, positions):
    channels = 0 if center is None else g.shape[1]
    like_arguments = map(torch.empty_like, (p1, p1, g, g))
    return *like_arguments, g.new_empty(channels), g.new_empty(channels)


def _product(a, b, bias):
    return a @ b if bias is None else torch.addmm(bias, a, b)


@_operator("Tensor a, Tensor b, Tensor? bias", "Tensor", compute=_product)
def product(a, b, bias):
    """See ``reference.product``."""
    return a.new_empty(a.shape[0], b.shape[1])


flops.register()
