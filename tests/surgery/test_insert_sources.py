"""Blocks whose methods insert_se compiles again: what of Python they may have.

test_insert_refused.py has what they may not have.
"""

import copy
import inspect
import traceback

import pytest
import torch
from residual_blocks import C, Net, Unit, assert_same, block_with, images
from torch import nn
from torch.utils.checkpoint import checkpoint

from se_fused import insert_se


class WithSuper(Unit):
    """Calls the layer in a method of its own, and Unit's, by super() without arguments."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(C)

    def forward(self, x):
        return self.norm(super().forward(x))


class InheritedForward(Unit):
    def extra_repr(self):
        return super().extra_repr()


class OverriddenForward(Unit):
    """Unit's forward, which calls the layer too, is hidden and never called."""

    def forward(self, x):
        return self.bn(self.conv(x)) + x


def closed_over():
    scale, offset = 2.0, 0.5

    class Closed(Unit):
        def forward(self, x, *, factor=scale):
            def inner(y):
                return self.bn(y) * factor  # in a function inside

            return inner(self.conv(x)) + offset

    return Closed()


class Private(nn.Module):
    def __init__(self):
        super().__init__()
        self.__conv, self.bn = nn.Conv2d(C, C, 1), nn.BatchNorm2d(C)

    def forward(self, x):
        return self.bn(self.__conv(x))


class Decorated(Unit):
    @torch.no_grad()
    def forward(self, x):
        return self.bn(self.conv(x))


class Typed(Unit):
    """Text in more lines, beyond ASCII, and mentions of the layer that do not call it."""

    def init_weights(self):
        if getattr(self.bn, "weight", None) is not None:
            nn.init.ones_(self.bn.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Ä 3×3 convolution."""
        if self.bn is not None and isinstance(self.bn, nn.Module):
            é = self.conv(x)
            x = self.bn(
                é,  # ö
            )
        return x


class Assigned(Unit):
    """Sets the layer in a method."""

    def reset(self):
        self.bn = nn.BatchNorm2d(C)


class InAMethod(Unit):
    def features(self, x):
        return self.bn(self.conv(x))

    def forward(self, x):
        return self.features(x)


def _with_checkpoint(self, x):
    def inner(x):
        return self.bn(self.conv(x))

    return checkpoint(inner, x, use_reentrant=False) + x


TAKEN = {
    "super-in-its-parent": (WithSuper, "norm"),
    "inherited-forward": (InheritedForward, "bn"),
    "overridden-forward": (OverriddenForward, "bn"),
    "free-variables": (closed_over, "bn"),
    "private-names": (Private, "bn"),
    "decorator": (Decorated, "bn"),
    "lines-and-mentions": (Typed, "bn"),
    "assigned-in-a-method": (Assigned, "bn"),
    "another-method": (InAMethod, "bn"),
    "in-a-checkpoint": (lambda: block_with(_with_checkpoint), "bn"),
}


@pytest.mark.parametrize("make, layer", TAKEN.values(), ids=TAKEN)
def test_called(make, layer):
    block = make()
    if hasattr(block, "se"):
        block.se = nn.Identity()
    network = Net(block).double()
    plain, x = copy.deepcopy(network), images()
    (entry,) = insert_se(network, blocks=lambda n, m: C if n == f"block.{layer}" else None).replaced
    se = network.get_submodule(entry.name)
    assert not torch.allclose(network(x), plain(x))
    getattr(plain.block, layer).register_forward_hook(lambda module, args, y: se(y))
    assert_same(network(x), plain(x))


def inserted(block, layer="bn"):
    insert_se(block, blocks=lambda name, module: C if name == layer else None)
    return block


def test_source_and_signature():
    block = inserted(Typed())
    forward = type(block).forward
    source = inspect.getsource(Typed.forward)
    expected = source.replace("x = self.bn(", "x = self.se(self.bn(")
    expected = expected.replace("            )\n", "            ))\n")
    assert inspect.getsource(forward) == expected != source
    assert inspect.signature(forward) == inspect.signature(Typed.forward)
    assert forward.__doc__ == Typed.forward.__doc__
    assert forward.__code__.co_firstlineno == Typed.forward.__code__.co_firstlineno
    assert "init_weights" not in vars(type(block))


def test_lines_in_a_traceback():
    block = inserted(Unit())
    with pytest.raises(RuntimeError) as raised:
        block(torch.randn(2, C + 1, 4, 4))
    frames = traceback.extract_tb(raised.value.__traceback__)
    (frame,) = [frame for frame in frames if "Unit" in frame.filename]
    _, first = inspect.getsourcelines(Unit.forward)
    assert (frame.lineno, frame.line) == (first + 1, "return self.se(self.bn(self.conv(x)))")


def test_result_of_a_block_with_several_returns():
    class Early(Unit):
        def forward(self, x, early: bool = True):
            if early:
                return self.conv(x)
            inner = lambda y: self.bn(y)
            return inner(x)

    block = Early().double()
    plain = copy.deepcopy(block)
    insert_se(block, blocks=lambda name, module: C if name == "" else None)
    x = torch.randn(2, C, 4, 4, dtype=torch.float64)
    for early in (True, False):
        assert_same(block(x, early), block.se(plain(x, early)))
