"""The operators of the block: their arguments, their results by name, and their fakes."""

from contextlib import nullcontext

import pytest
import torch
from reference import Inputs, results
from torch._subclasses.fake_tensor import FakeTensorMode


def _excitation(inputs: Inputs):
    """z and g as the forward operator saves them."""
    acc = torch.promote_types(inputs.x.dtype, torch.float32)
    found = results(inputs, acc)
    return found["z"], found["g"]


def _squeeze_excite_backward(inputs):
    z, g = _excitation(inputs)
    return (inputs.dy, inputs.x, z, g, *inputs.block[1:])


def _maximum(inputs):
    return results(inputs, torch.promote_types(inputs.x.dtype, torch.float32))


def _rescale_backward_max(inputs):
    found = _maximum(inputs)
    return inputs.dy, inputs.x, found["g"], found["mean"], found["m"], found["g"]


# Arguments from inputs, and the names of the results in reference.results.
OPERATORS = {
    "squeeze": (lambda i: (i.x,), ("z",)),
    "rescale": (lambda i: (i.x, _excitation(i)[1]), ("y",)),
    "gate_gradient": (lambda i: (i.dy, i.x), ("dg",)),
    "rescale_backward": (lambda i: (i.dy, i.x, _excitation(i)[1]), ("dy_times_g", "dg")),
    "squeeze_max": (lambda i: (i.x,), ("mean", "m")),
    "gate_gradient_max": (lambda i: (i.dy, i.x, _maximum(i)["m"]), ("dg", "ties")),
    "rescale_backward_max": (_rescale_backward_max, ("dx_max",)),
    "squeeze_excite": (lambda i: i.block, ("y", "z", "g")),
    "squeeze_excite_backward": (_squeeze_excite_backward, ("dx", "dp1", "h", "dp2")),
}


def call(operator: str, arguments, namespace=torch.ops.se_fused) -> dict[str, torch.Tensor]:
    found = getattr(namespace, operator)(*arguments)
    return dict(zip(OPERATORS[operator][1], found if isinstance(found, tuple) else (found,)))


def within_nan(t: torch.Tensor, offset: int):
    """The same dense tensor as a view into the middle of a buffer of NaN; and that buffer."""
    buffer = t.new_full((t.numel() + 2 * offset + 64,), float("nan"))
    return buffer.as_strided(t.size(), t.stride(), offset).copy_(t), buffer


SIGNATURES = {
    "contiguous": dict(shape=(2, 5, 3, 4)),
    "channels-last-bf16": dict(shape=(2, 5, 3, 4), layout="channels-last", dtype=torch.bfloat16),
    "sliced-fp64": dict(shape=(2, 5, 3, 4), layout="sliced-channels", dtype=torch.float64),
    "sliced-channels-last-fp16": dict(
        shape=(2, 5, 3, 4), layout="sliced-channels-last", dtype=torch.float16
    ),
    "channels-last-3d": dict(shape=(2, 5, 3, 2, 4), layout="channels-last"),
    "no-spatial-dims": dict(shape=(4, 5)),
    "no-samples": dict(shape=(0, 5, 3, 4)),
}


def check_fakes(call, operator, arguments, device, namespace, place):
    """Shapes, dtypes and layouts of fake results are those of the real ones."""
    if device == "fake-cpu" and place.backend == "triton" and not place.interpreted:
        pytest.skip("on a GPU, Triton takes no CPU tensors, fake ones neither; the rest runs")
    kind = device.removeprefix("fake-")
    with FakeTensorMode() if device != kind else nullcontext():
        fake = [
            torch.empty_strided(a.size(), a.stride(), dtype=a.dtype, device=kind)
            if isinstance(a, torch.Tensor)
            else a
            for a in arguments
        ]
        found = call(operator, fake, namespace)
    for name, result in call(operator, arguments).items():
        assert found[name].device.type == kind
        expected = (result.shape, result.dtype, result.stride())
        assert (found[name].shape, found[name].dtype, found[name].stride()) == expected, name
