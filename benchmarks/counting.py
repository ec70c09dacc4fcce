"""Counts the passes of one SE block over the feature map, and its launches.

A pass is one read or one write of a whole map [N, C, H, W]. Nothing here is a time.

Plain PyTorch is counted by the operators that it dispatches: one that computes reads each map among
its arguments once and writes each map among its results once. Views and allocations move nothing.
Operands smaller than the map, also where they are expanded to its shape, don't count.

Compiled code is counted in the C++ that Inductor generates for the CPU: each loop nest reads and
writes once what it names (loop_nests.py). What it leaves to PyTorch counts as operators. Its
kernels are not built or run; which code Inductor generates for a GPU is not looked into.

FusedSE's Triton kernels are counted by the bytes that their loads and stores ask for, in Triton's
interpreter (tests/byte_meter.py): those of tensors as large as the map, over the bytes of the map.

Launches are the kernels of Triton or Inductor and PyTorch's operators that compute. Which operators
a device turns into several kernels, or none, is not looked into.
"""

import sys
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import loop_nests
import torch
from contenders import FunctionalSE
from models import SqueezeExcite
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import se_fused
from se_fused import FusedSE, backends

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
DIRECTIONS = ("forward", "backward")
# What PyTorch dispatches beside views without computing anything.
NO_LAUNCH = ("empty", "empty_like", "empty_strided", "new_empty", "promote_types")
# The block as networks have it, and as one writes it for torch.compile.
COMPILED = {
    "compiled, 1 × 1 convolutions": SqueezeExcite,
    "compiled, linear layers": FunctionalSE,
}


class Operators(TorchDispatchMode):
    """``names`` of the operators that compute, in order, and their ``passes`` over maps of a size.

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
            self.passes += sum(map(self._is_map, tree_leaves((args, kwargs, result))))
        return result

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


def steps(block, x):
    """The forward pass and, once that is done, the backward pass."""
    dy = torch.randn_like(x)
    results = []
    yield "forward", lambda: results.append(block(x))
    yield "backward", lambda: torch.autograd.grad(results, [x, *block.parameters()], dy)


def make_map(shape, layout, dtype=torch.float32) -> Tensor:
    x = torch.randn(shape, dtype=dtype)
    return x.contiguous(memory_format=LAYOUTS[layout]).requires_grad_()


def count_eager(shape, hidden, layout) -> dict:
    found = {}
    for direction, step in steps(SqueezeExcite(shape[1], hidden), make_map(shape, layout)):
        with Operators(shape) as operators:
            step()
        found[direction] = {"passes": operators.passes, "operators": operators.names}
    return found


def count_compiled(block, shape, hidden, layout, dtype=torch.float32) -> dict:
    """``block``: a class of COMPILED."""
    found = {}
    x = make_map(shape, layout, dtype)
    with Generated(x) as generated:
        compiled = torch.compile(block(shape[1], hidden).to(dtype), fullgraph=True, dynamic=False)
        for direction, step in steps(compiled, x):
            generated.clear()
            step()
            found[direction] = {
                "passes": generated.passes,
                "generated": generated.kernels,
                "operators": generated.operators.names,
            }
    return found


def count_fused(shape, hidden, layout) -> dict:
    """For a process that was started with TRITON_INTERPRET=1."""
    from byte_meter import Meter

    found = {}
    block = FusedSE(shape[1], rd_channels=hidden)
    for direction, step in steps(block, make_map(shape, layout)):
        with se_fused.backend("triton"), Meter() as meter, Operators(shape) as operators:
            step()
        assert not meter.faults, meter.faults
        elements = torch.Size(shape).numel()
        maps = [o.tensor for o in meter.operands() if o.tensor.numel() == elements]
        of_maps, of_all = (meter.read(*tensors) + meter.written(*tensors) for tensors in (maps, ()))
        found[direction] = {
            "passes": of_maps / maps[0].nbytes + operators.passes,
            "beside": (of_all - of_maps) / maps[0].nbytes,
            "kernels": [launch.kernel for launch in meter.launches],
            "operators": operators.names,
        }
    return found
