"""FlopCounterMode counts in fused SE what it counts in plain PyTorch, forward and backward."""

import pytest
import torch
from interpreters import python
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import se_fused
from se_fused import FusedBatchNormSE, FusedSE, backends

SQUEEZES = {
    "avg": lambda x: x.mean((2, 3), keepdim=True),
    "max": lambda x: x.amax((2, 3), keepdim=True),
    "avg_max": lambda x: x.mean((2, 3), keepdim=True) + x.amax((2, 3), keepdim=True),
    "concat": lambda x: torch.cat([x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)], 1),
}
# N, C, H, W and R
SHAPES = {"odd-width": (3, 20, 5, 7, 5), "one-sample": (1, 8, 1, 1, 1), "wide": (2, 65, 4, 4, 130)}
# Which gradients are wanted.
WANTED = {
    "everything": lambda name: True,
    "x-alone": lambda name: name == "x",
    "no-first-layer": lambda name: not name.startswith("fc1"),
    "no-second-layer": lambda name: not name.startswith("fc2"),
    "x-and-biases": lambda name: name == "x" or name.endswith("bias"),
}
each_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
each_wanted = pytest.mark.parametrize("wanted", WANTED.values(), ids=WANTED)


class Plain(nn.Module):
    """FusedSE as users write it, with FusedSE's layers."""

    def __init__(self, se, kind):
        super().__init__()
        self.se, self.kind = se, kind

    def forward(self, x):
        se = self.se
        return x * se.gate(se.fc2(se.act(se.fc1(SQUEEZES[self.kind](x)))))


class PlainEnd(nn.Module):
    """FusedBatchNormSE as users write it, with its layers."""

    def __init__(self, block):
        super().__init__()
        self.block, self.se = block, Plain(block.se, "avg")

    def forward(self, x, residual):
        return (self.se(self.block.act(self.block.bn(x))) + residual).relu()


def counts(module, *inputs, backward=True):
    """FLOPs of the forward and of the backward pass."""
    with FlopCounterMode(display=False) as forward:
        y = module(*inputs)
    if not backward:
        return forward.get_total_flops()
    dy = torch.ones_like(y)
    with FlopCounterMode(display=False) as backward:
        y.backward(dy)
    return forward.get_total_flops(), backward.get_total_flops()


def feature_map(place, shape):
    return torch.randn(shape[:4], device=place.device)


@each_wanted
@each_shape
@pytest.mark.parametrize("kind", SQUEEZES)
def test_se(place, kind, shape, wanted):
    n, c, _, _, r = shape
    se = FusedSE(c, rd_channels=r, squeeze=kind, device=place.device)
    for name, parameter in se.named_parameters():
        parameter.requires_grad_(wanted(name))
    x = feature_map(place, shape).requires_grad_(wanted("x"))
    expected = counts(Plain(se, kind), x)
    width = 3 if kind == "concat" else 2
    assert expected[0] == 2 * n * r * width * c
    assert counts(se, x) == expected


@each_shape
def test_se_without_gradients(place, shape):
    se = FusedSE(shape[1], rd_channels=shape[4], bias=False, device=place.device)
    x = feature_map(place, shape)
    with torch.no_grad():
        expected = counts(Plain(se, "avg"), x, backward=False)
        assert counts(se, x, backward=False) == expected > 0


@pytest.mark.parametrize("kind", SQUEEZES)
def test_linear_layers(place, kind):
    """Weights of [R, C], as of nn.Linear."""
    x = torch.randn(3, 10, 4, 5, device=place.device).requires_grad_()
    width = 20 if kind == "concat" else 10
    w1 = torch.randn(7, width, device=place.device).requires_grad_()
    w2 = torch.randn(10, 7, device=place.device).requires_grad_()

    def plain(x):
        z = SQUEEZES[kind](x).flatten(1)
        g = nn.functional.linear(nn.functional.linear(z, w1).relu(), w2).sigmoid()
        return x * g[:, :, None, None]

    fused = lambda x: se_fused.squeeze_excite(x, w1, None, w2, None, squeeze=kind)
    assert counts(fused, x) == counts(plain, x)


@each_wanted
@each_shape
@pytest.mark.parametrize("act", [None, "silu"])
def test_end_of_a_block(place, act, shape, wanted):
    block = FusedBatchNormSE(
        shape[1], act=act, rd_channels=shape[4], add=True, post_act="relu", device=place.device
    ).eval()
    for name, parameter in block.named_parameters():
        parameter.requires_grad_(wanted(name.removeprefix("se.")))
    x, residual = (feature_map(place, shape).requires_grad_() for _ in range(2))
    assert counts(block, x, residual) == counts(PlainEnd(block), x, residual)
    if shape[0] > 1:
        block.train()
        assert counts(block, x, residual) == counts(PlainEnd(block), x, residual)


def test_frozen_x_has_one_product_more(place):
    """SE computes the hidden layer again, the end of a block a gradient that nobody wants."""
    se = FusedSE(20, rd_channels=5, device=place.device)
    block = FusedBatchNormSE(20, rd_channels=5, affine=False, add=True, post_act="relu",
                             device=place.device)
    x = feature_map(place, (3, 20, 5, 7))
    product = 2 * 3 * 20 * 5
    for fused, plain, inputs in ((se, Plain(se, "avg"), (x,)), (block, PlainEnd(block), (x, x))):
        forward, backward = counts(plain, *inputs)
        assert (forward, backward) == (2 * product, 3 * product)
        assert counts(fused, *inputs) == (forward, backward + product)


def test_operators_of_the_backend_are_counted_by_name():
    if backends.why_not("cpp", torch.device("cpu")):
        pytest.skip("the extension is not built; test_se on the eager backend covers the rest")
    module, x = FusedSE(20, rd_channels=5), torch.randn(3, 20, 5, 7).requires_grad_()
    for backend in ("cpp", "eager"):
        with se_fused.backend(backend), FlopCounterMode(display=False) as mode:
            module(x).sum().backward()
        found = mode.get_flop_counts()["FusedSE"]
        names = torch.ops.se_fused.squeeze_excite, torch.ops.se_fused.squeeze_excite_backward
        assert [found[name] for name in names] == [1200, 1200]


def test_product():
    a, b, bias = torch.randn(3, 5), torch.randn(5, 7), torch.randn(7)
    for arguments in ((a, b, None), (a, b, bias)):
        expected = counts(lambda a, b, _: a @ b, *arguments, backward=False)
        assert counts(torch.ops.se_fused.product, *arguments, backward=False) == expected == 210


def test_compiled_backward(native_place, fresh_compiler):
    """Compiled functions do not run in the mode, but their backward passes do."""
    se = FusedSE(20, rd_channels=5, device=native_place.device)
    x = feature_map(native_place, (3, 20, 5, 7)).requires_grad_()
    y = torch.compile(se, backend="aot_eager", fullgraph=True)(x)
    with FlopCounterMode(display=False) as mode:
        y.backward(torch.ones_like(y))
    found = mode.get_flop_counts()["Global"]
    assert found[torch.ops.se_fused.product] == 1200
    assert sum(found.values()) == counts(Plain(se, "avg"), x)[1]


LAZY = """
import sys, torch
{before}
import se_fused
assert ("torch.utils.flop_counter" in sys.modules) == bool({before!r})
assert ("triton" in sys.modules) == bool({before!r})
from torch.utils.flop_counter import FlopCounterMode
with FlopCounterMode(display=False) as mode:
    se_fused.FusedSE(20, rd_channels=5)(torch.ones(3, 20, 2, 2)).sum().backward()
print(mode.get_total_flops())
"""
HIDE = "import sys; sys.modules['se_fused._C'] = None\n"


@pytest.mark.parametrize("hide", ["", HIDE], ids=["extension", "no-extension"])
@pytest.mark.parametrize("before", ["", "import torch.utils.flop_counter"], ids=["later", "first"])
def test_counter_imported_later_or_first(before, hide):
    """The first call of all is inside a mode that has its formulas already."""
    done = python(hide + LAZY.format(before=before))
    assert done.stdout.split() == [str(2 * 3 * 20 * 5 * (2 + 4))], done.stderr
