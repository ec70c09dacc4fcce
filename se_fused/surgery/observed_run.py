"""A run of a module: inputs and outputs of its layers, and the activation and gate in between."""

from math import prod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from se_fused.activations import ACTS, FUNCTIONS, GATES, function_name
from se_fused.modules.layers import LayerPaths
from se_fused.surgery.candidates import Candidate
from se_fused.surgery.comparison import first_line, tensors_in
from se_fused.surgery.random_copies import example
from se_fused.surgery.report import NotFusible

# The path of a function without a module: pickle imports it by its name.
_FUNCTIONS = {
    "identity": torch.positive,
    "relu": torch.relu,
    "silu": F.silu,
    "hardswish": F.hardswish,
    "leaky_relu": F.leaky_relu,
    "gelu": F.gelu,
    "sigmoid": torch.sigmoid,
    "hardsigmoid": F.hardsigmoid,
    "tanh": torch.tanh,
}
# Of the samples: values on both sides of every bend and bound of a function.
_SCALES = 1, 10, 100, 3, 30, 1, 0.1, 3, 10, 1, 30, 300, 1, 0.01, 3, 1000
_FEW, _MOST = 3, 2**18  # samples of a large map; numbers of one that has a sample of each scale


class ObservedRun(NamedTuple):
    x: Tensor
    y: object
    error: str | None
    first: list[tuple[Tensor, Tensor]]  # what fc1 got and gave, call by call
    second: list[tuple[Tensor, Tensor]]

    @classmethod
    def of(cls, module: nn.Module, candidate: Candidate, size: tuple, numbers):
        count = len(_SCALES) if len(_SCALES) * candidate.outputs * prod(size) <= _MOST else _FEW
        x = example((count, candidate.outputs, *size), numbers)
        x *= torch.tensor(_SCALES[:count]).view(-1, 1, *[1] * len(size))
        y, error, calls = None, None, ([], [])
        hooks = [
            module.get_submodule(path).register_forward_hook(
                lambda _, args, p, found=found: found.append((args[0].clone(), p.clone()))
            )
            for path, found in zip((candidate.fc1, candidate.fc2), calls) if path is not None
        ]  # fmt: skip
        try:
            y = module.eval()(x.clone())
        except Exception as raised:  # whatever a library's forward raises
            error = first_line(raised)
        finally:
            for hook in hooks:
                hook.remove()
        return cls(x, y, error, *calls)

    @property
    def size(self) -> str:
        return size_text(self.x.shape[2:])

    @property
    def squeezes_mean(self) -> bool:
        if not self.first:
            return False
        z = self.x.flatten(2).mean(-1)
        return self.first[-1][0].numel() == z.numel() and _same(self.first[-1][0], z)

    @property
    def rescales(self) -> bool:
        """Whether there is a map among the results that is not the same at all positions."""
        maps = [y.flatten(2) for y in tensors_in(self.y) if y.shape == self.x.shape]
        return any(bool((y != y[:, :, :1]).any()) for y in maps)

    def paths(self, candidate: Candidate) -> LayerPaths | None:
        """Where SE has its layers; None for what gives no map. Raises NotFusible."""
        if self.error is not None:
            raise NotFusible(f"it takes no map of {self.size}: {self.error}")
        if len(self.first) > 1 or len(self.second) > 1:
            raise NotFusible("it squeezes a map, but calls a layer more than once")
        p, act = self.first[0][1], None
        if candidate.fc2 is not None:
            if not self.second:
                raise NotFusible(f"it squeezes a map, but does not call its layer {candidate.fc2}")
            h, p = self.second[0]
            act = next((f for f in ACTS if _same(h, FUNCTIONS[f](self.first[0][1]))), None)
        is_tensor = isinstance(self.y, Tensor)
        if is_tensor and self.y.numel() == p.numel():
            if any(_same(self.y, FUNCTIONS[f](p)) for f in GATES if f != "identity"):
                raise NotFusible("it returns the gate; its caller multiplies")
        if not self.rescales:
            return None
        if not is_tensor:
            raise NotFusible(f"it returns a {type(self.y).__name__}, not a tensor")
        ones = [1] * (self.x.dim() - 2)
        gates = {f: FUNCTIONS[f](p).reshape(*self.x.shape[:2], *ones) for f in GATES}
        gate = next((f for f, g in gates.items() if _same(self.y, self.x * g)), None)
        if gate is None or (act is None and candidate.fc2 is not None):
            unknown = "it squeezes a map, but computes no activation and gate that se_fused knows"
            raise NotFusible(unknown)
        paths = {function_name(layer): path for path, layer in candidate.acts}
        act, gate = (f and paths.get(f, _FUNCTIONS[f]) for f in (act, gate))
        return LayerPaths(candidate.fc1, act, candidate.fc2, gate, None)


class _Reached(Exception):
    """Ends a run."""


def squeezes(hollow: nn.Module, candidate: Candidate, size: tuple) -> bool | str:
    """Whether the first layer that a module calls is fc1, with as many numbers as there are planes;
    an error that comes before. No layer is run."""
    x = torch.ones((_FEW, candidate.outputs, *size), dtype=torch.float64)
    numbers = []

    def reached(layer, args):
        numbers.append(args[0].numel() if layer is first else 0)
        raise _Reached

    first = hollow.get_submodule(candidate.fc1)
    hooks = [
        hollow.get_submodule(path).register_forward_pre_hook(reached)
        for path in (candidate.fc1, candidate.fc2) if path is not None
    ]  # fmt: skip
    try:
        hollow.eval()(x)
    except _Reached:
        return numbers == [_FEW * candidate.channels]
    except Exception as error:  # whatever a library's forward raises
        return first_line(error)
    finally:
        for hook in hooks:
            hook.remove()
    return False


def size_text(size: tuple[int, ...]) -> str:
    return "×".join(map(str, size))


def _same(found: Tensor, expected: Tensor) -> bool:
    if found.numel() != expected.numel():
        return False
    return torch.allclose(found.reshape_as(expected), expected, rtol=1e-6, atol=1e-9)
