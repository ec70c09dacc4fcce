"""FLOPs of the operators with matrix products, for ``torch.utils.flop_counter.FlopCounterMode``.

Counted as for 1×1 convolutions, forward and backward: 2·N·C·R for each product. The gradients of
the weights, and the excitation of a squeeze with the maximum, are PyTorch's own matmuls, which the
mode knows. Where x needs no gradient, a backward pass has one product more than a plain network's.
"""

import importlib.machinery
import sys
from math import prod

import torch

_COUNTER = "torch.utils.flop_counter"


def register():
    """Registers the formulas now, or else as soon as somebody imports the counter.

    An import of the counter is an import of Triton, which takes longer than that of se_fused.
    """
    if _COUNTER in sys.modules:
        _register(sys.modules[_COUNTER])
    else:
        sys.meta_path.insert(0, _CounterFinder)


class _CounterFinder:
    """Finds the counter where Python does; once it is executed, it has the formulas."""

    @staticmethod
    def find_spec(name: str, path=None, target=None):
        spec = importlib.machinery.PathFinder.find_spec(name, path) if name == _COUNTER else None
        if spec is not None:
            execute = spec.loader.exec_module

            def exec_module(module):
                execute(module)
                _register(module)

            spec.loader.exec_module = exec_module
        return spec


def _register(counter):
    for name, formula in _FORMULAS.items():
        operator = getattr(torch.ops.se_fused, name)
        if operator not in counter.flop_registry:
            counter.register_flop_formula(operator)(formula)


# Arguments are shapes, as the operators take them. Forward has two products, z w1ᵀ and h w2ᵀ;
# backward has two, dp2 w2 and dp1 w1.


def _squeeze_excite(x, residual, w1, b1, w2, *_, **__) -> int:
    return _products(x, w1, w2)


def _squeeze_excite_backward(dy, x, mask, z, g, w1, b1, w2, *_, **__) -> int:
    return _products(x, w1, w2)


def _excite(mean, center, scale, shift, w1, b1, w2, *_, **__) -> int:
    return _products(mean, w1, w2)


def _excite_backward(sums, mean, center, scale, shift, p1, g, w1, w2, *_, **__) -> int:
    return _products(g, w1, w2)


def _product(a, b, *_, **__) -> int:
    return 2 * prod(a) * b[1]


def _products(x, w1, w2) -> int:
    return 2 * x[0] * (prod(w1) + prod(w2))


_FORMULAS = {
    "squeeze_excite": _squeeze_excite,
    "squeeze_excite_backward": _squeeze_excite_backward,
    "excite": _excite,
    "excite_backward": _excite_backward,
    "product": _product,
}
