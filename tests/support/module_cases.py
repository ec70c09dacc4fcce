"""FusedSE in the tests of modules: maps, a small module, a training step, the operators called."""

import torch
from reference import block

from se_fused import FusedSE


def feature_map(place, channels=24, dtype=torch.float64, size=(5, 7)):
    return torch.randn(3, channels, *size).to(place.device, dtype)


def run(module, x, dy):
    """The result, and the gradients of x and of every parameter by name."""
    x = x.detach().requires_grad_()
    y = module(x)
    module.zero_grad()
    y.backward(dy)
    found = {"y": y.detach(), "dx": x.grad}
    return found | {name: p.grad for name, p in module.named_parameters()}


def assert_same(found: dict, expected: dict, rtol=1e-10):
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(
            found[name], expected[name], rtol=rtol, atol=rtol / 100, msg=name
        )


# What runs the block: one operator, the four passes where the maximum is in the squeeze, or parts.
WHOLE = ["squeeze_excite", "squeeze_excite_backward"]
PASSES = ["reduce_forward", "apply_forward", "reduce_backward", "apply_backward"]
PARTS = PASSES[:3]


class Count(torch.utils._python_dispatch.TorchDispatchMode):
    """How often each operator of ours is called."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "se_fused":
            self.__dict__.setdefault("called", []).append(func._opname)
        return func(*args, **(kwargs or {}))


def small(place, **arguments):
    return FusedSE(8, rd_channels=3, dtype=torch.float64, device=place.device, **arguments)


def expected_of(module, x, act="relu", gate="sigmoid"):
    fc1, fc2 = module.fc1, module.fc2
    return block(x, fc1.weight, fc1.bias, fc2.weight, fc2.bias, act, gate)
