"""Counts the passes of a block over the feature map, and its launches.

A pass is one read or one write of a whole map [N, C, H, W]. Nothing here is a time.

Plain PyTorch is counted by the operators that it dispatches: one that computes reads each map among
its arguments once and writes each map among its results once; BatchNorm, in training, reads twice
what it takes sums over (tracing.py). Views and allocations move nothing. Operands smaller than the
map, also where they are expanded to its shape, don't count.

Compiled code is counted in the C++ that Inductor generates for the CPU: each loop nest reads and
writes once what it names (loop_nests.py). What it leaves to PyTorch counts as operators. Its
kernels are not built or run; which code Inductor generates for a GPU is not looked into.

Triton kernels are counted by the bytes that their loads and stores ask for, in Triton's interpreter
(tests/support/byte_meter.py): those of tensors as large as the map, over the bytes of the map. The
ReLU's mask of one bit per element, and what lies beside, are counted apart, in passes over the map
too.

Launches are the kernels of Triton or Inductor and PyTorch's operators that compute. Which operators
a device turns into several kernels, or none, is not looked into.
"""

import sys
from pathlib import Path

import torch
from lib.contenders import FunctionalSE
from lib.models import SqueezeExcite
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from traffic.tracing import Generated, Operators

import se_fused
from se_fused import FusedSE

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests" / "support"))

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
DIRECTIONS = ("forward", "backward")
# The block as networks have it, and as one writes it for torch.compile.
COMPILED = {
    "compiled, 1 × 1 convolutions": SqueezeExcite,
    "compiled, linear layers": FunctionalSE,
}


def make_map(shape, layout, dtype=torch.float32) -> Tensor:
    x = torch.randn(shape, dtype=dtype)
    return x.contiguous(memory_format=LAYOUTS[layout]).requires_grad_()


def steps(block, *maps):
    """The forward pass and, once that is done, the backward pass."""
    dy = torch.randn_like(maps[0])
    results = []
    yield "forward", lambda: results.append(block(*maps))
    yield "backward", lambda: torch.autograd.grad(results, [*maps, *block.parameters()], dy)


def by_operators(block, *maps) -> dict:
    found = {}
    for direction, step in steps(block, *maps):
        with Operators(maps[0].shape) as operators:
            step()
        found[direction] = {"passes": operators.passes, "operators": operators.names}
    return found


def by_generated_code(block, *maps) -> dict:
    found = {}
    with Generated(maps[0]) as generated:
        compiled = torch.compile(block, fullgraph=True, dynamic=False)
        for direction, step in steps(compiled, *maps):
            generated.clear()
            step()
            found[direction] = {
                "passes": generated.passes,
                "generated": generated.kernels,
                "operators": generated.operators.names,
            }
    return found


def by_bytes(block, *maps) -> dict:
    """For a process that was started with TRITON_INTERPRET=1."""
    from byte_meter import Meter

    found, size = {}, maps[0].nbytes
    for direction, step in steps(block, *maps):
        with se_fused.backend("triton"), Meter() as meter, Operators(maps[0].shape) as operators:
            step()
        assert not meter.faults, meter.faults

        def moved(kept, meter=meter):
            tensors = [operand.tensor for operand in meter.operands() if kept(operand.tensor)]
            return meter.read(*tensors) + meter.written(*tensors) if tensors else 0

        of_maps = moved(lambda t: t.numel() == maps[0].numel())
        of_mask = moved(lambda t: t.dtype == torch.uint8)
        found[direction] = {
            "passes": of_maps / size + operators.passes,
            "mask": of_mask / size,
            "beside": (moved(lambda t: True) - of_maps - of_mask) / size,
            "kernels": [launch.kernel for launch in meter.launches],
            "operators": operators.names,
        }
    return found


def kept_for_backward(block, *maps) -> float:
    """What the forward pass saves for the backward pass, parameters apart, in maps."""
    storages = {}

    def keep(tensor):
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        y = block(*maps)
    assert y.requires_grad
    return sum(storages.values()) / maps[0].nbytes


def count_eager(shape, hidden, layout) -> dict:
    return by_operators(SqueezeExcite(shape[1], hidden), make_map(shape, layout))


def count_compiled(block, shape, hidden, layout, dtype=torch.float32) -> dict:
    """``block``: a class of COMPILED."""
    return by_generated_code(block(shape[1], hidden).to(dtype), make_map(shape, layout, dtype))


def count_fused(shape, hidden, layout) -> dict:
    """For a process that was started with TRITON_INTERPRET=1."""
    return by_bytes(FusedSE(shape[1], rd_channels=hidden), make_map(shape, layout))
