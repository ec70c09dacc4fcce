"""What PyTorch dispatches, what Inductor generates and calls, and the passes over maps of both."""

from contextlib import ExitStack
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from traffic import loop_nests

from se_fused import backends

# What PyTorch dispatches beside views without computing anything.
NO_LAUNCH = ("empty", "empty_like", "empty_strided", "new_empty", "promote_types")
# In training BatchNorm takes sums over its maps first, and needs them once more with those: how
# many of the first arguments, and which argument says that it is training.
READ_AGAIN = {"native_batch_norm": (1, 5), "native_batch_norm_backward": (2, 7)}


class Operators(TorchDispatchMode):
    """``names`` of the operators that compute, in order, and their ``passes`` over maps of a size:
    each argument read once, and once more by those of READ_AGAIN, each result written once.

    Looks into the operators of se_fused as well, by calling their Triton functions itself.
    """

    def __init__(self, shape):
        super().__init__()
        self.elements, self.names, self.passes = torch.Size(shape).numel(), [], 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        name = operator.overloadpacket.__name__
        if operator.namespace == "se_fused":
            with self:
                return getattr(backends.load("triton"), name)(*args)
        result = operator(*args, **(kwargs or {}))
        if not operator.is_view and name not in NO_LAUNCH:
            self.names.append(name)
            self.passes += self._maps(args, kwargs, result)
            if name in READ_AGAIN:
                count, training = READ_AGAIN[name]
                self.passes += self._maps(args[:count]) if args[training] else 0
        return result

    def _maps(self, *tree) -> int:
        return sum(map(self._is_map, tree_leaves(tree)))

    def _is_map(self, leaf) -> bool:
        if not isinstance(leaf, Tensor) or leaf.numel() != self.elements:
            return False
        return all(stride for size, stride in zip(leaf.shape, leaf.stride()) if size > 1)


class Generated:
    """What torch.compile generates and calls inside the ``with`` block, for maps like ``x``.

    ``kernels``: the passes of each generated kernel that was called, in order. The kernels compute
    nothing, so that results are memory as it was allocated. ``operators``: what else was called.
    """

    def __init__(self, x: Tensor):
        self.map = x
        self.clear()

    def clear(self):
        self.kernels, self.operators, self.called = [], Operators(self.map.shape), False

    def __enter__(self):
        from torch._inductor.async_compile import AsyncCompile
        from torch._inductor.graph import GraphLowering
        from torch._inductor.utils import fresh_cache

        load = GraphLowering.compile_to_module

        def kernel(compiler, argument_types, source):
            elements = loop_nests.elements(source)
            return lambda *tensors: self.kernels.append(self._passes(tensors, elements))

        def load_counted(graph):
            module = load(graph)
            call = module.call

            def counted(arguments):
                self.called = True
                with self.operators:
                    return call(arguments)

            module.call = counted
            return module

        self._replaced = ExitStack()
        torch._dynamo.reset()
        self._replaced.callback(torch._dynamo.reset)
        self._replaced.enter_context(fresh_cache())  # and forgets the kernels that do nothing
        self._replaced.enter_context(patch.object(AsyncCompile, "cpp_pybinding", kernel))
        self._replaced.enter_context(patch.object(GraphLowering, "compile_to_module", load_counted))
        return self

    def __exit__(self, *exception):
        self._replaced.close()

    def _passes(self, tensors, elements) -> float:
        accessed = [
            sum(counts.values()) * tensor.itemsize
            for tensor, counts in zip(tensors, elements, strict=True)
            if tensor.numel() == self.map.numel()
        ]
        return sum(accessed) / self.map.nbytes

    @property
    def passes(self) -> float:
        assert self.called, "nothing that was generated here was called"
        return sum(self.kernels) + self.operators.passes
