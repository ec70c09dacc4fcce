"""Which gradients a backward pass computes, where only some are wanted."""

import torch
from reference import Inputs
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

BLOCK = ("x", "w1", "b1", "w2", "b2")


class Computed(TorchDispatchMode):
    """The operators called inside, views apart: their ``names`` and the ``shapes`` of results, of
    one sum [1, N, C] that of the sum."""

    def __init__(self):
        super().__init__()
        self.names, self.shapes = [], []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        if not operator.is_view:
            self.names.append(operator.overloadpacket.__name__)
            found = [t for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
            self.shapes += [t.shape[t.dim() == 3 and len(t) == 1 :] for t in found]
        return result


def leaves(inputs: Inputs, wanted) -> dict[str, torch.Tensor | None]:
    return {
        name: None if t is None else t.detach().requires_grad_(name in wanted)
        for name, t in zip(BLOCK, inputs.tensors)
    }


def gradients(tensors: dict) -> dict[str, torch.Tensor]:
    """What was computed, by its name in ``reference.results``."""
    return {f"d{name}": t.grad for name, t in tensors.items() if t is not None and t.requires_grad}


def backward(y, inputs: Inputs, tensors: dict, wanted) -> Computed:
    """Runs it. Of all that is computed, what has a tensor's shape is that tensor's gradient."""
    with Computed() as computed:
        y.backward(inputs.dy)
    for name, tensor in tensors.items():
        assert (tensor.grad is not None) == (name in wanted), name
        assert computed.shapes.count(tensor.shape) == (name in wanted), (name, computed.names)
    return computed
