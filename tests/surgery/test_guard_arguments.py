"""Calls of a replaced module otherwise than with a map alone."""

import pytest
import torch
from pairs import assert_fused, pair, said_in, step, x_of
from se_examples import EXAMPLES
from se_modules import C, Cadene, Copied, times
from torch import nn

from se_fused import FusedSE, replace_se

# How the forwards of libraries name the map.
NAMES = {
    "torchvision": "input", "timm-se": "x", "monai-2d": "x", "hf-regnet": "hidden_state",
    "hf-efficientnet": "hidden_states",
}  # fmt: skip


MAP = torch.linspace(-3, 3, 2 * C * 20, dtype=torch.float64).view(2, C, 4, 5)


@pytest.mark.parametrize("example, name", NAMES.items(), ids=NAMES)
def test_keyword(example, name):
    library, replaced = pair(EXAMPLES[example].make())
    x = x_of()
    assert not said_in(lambda: replaced.se(**{name: x}))
    torch.testing.assert_close(replaced.se(**{name: x}), library.se(**{name: x}))
    with pytest.raises(TypeError, match="unexpected keyword argument 'other'"):
        replaced.se(other=x)


@pytest.mark.parametrize("args", [(), (1, 2)], ids=["none", "two"])
def test_wrong_number_of_arguments(args):
    messages = []
    for each in pair(Cadene()):
        with pytest.raises(TypeError) as error:
            each.se(*args)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


class WithOptions(Copied):
    """A map to squeeze beside the one to rescale, and a strength."""

    def forward(self, x, context=None, *, strength=1.0):
        z = self.avg_pool(x if context is None else context).flatten(1)
        return times(x, self.fc(z) * strength)


OTHERS = {
    "a-map": ((MAP,), {}),
    "a-map-by-name": ((), {"context": MAP}),
    "a-strength": ((), {"strength": 0.5}),
    "both": ((MAP,), {"strength": 2.0}),
    "none": ((None,), {}),
}


@pytest.mark.parametrize("args, kwargs", OTHERS.values(), ids=OTHERS)
def test_second_arguments(args, kwargs):
    both, x = pair(WithOptions()), x_of()
    assert_fused(both, x)
    results = []
    said = said_in(lambda: results.extend(step(each.se, x, *args, **kwargs) for each in both))
    assert not said, "this is the library's call, not a change"
    assert all(map(torch.equal, *results))
    assert_fused(both, x)


class OfAny(Copied):
    def forward(self, *inputs, **others):
        return times(inputs[0], self.fc(self.avg_pool(inputs[0]).flatten(1)))


def test_any_number_of_arguments():
    both = pair(OfAny())
    assert_fused(both, x_of())
    x = x_of()
    assert torch.equal(both[1].se(x, x), both[0].se(x, x))
    assert torch.equal(both[1].se(x, note="a"), both[0].se(x, note="a"))


class Needed(Copied):
    """Two maps: none is squeezed alone."""

    def forward(self, x, skip):
        return times(x, self.fc(self.avg_pool(x).flatten(1))) + skip


def test_two_needed_arguments_are_no_se():
    report = replace_se(nn.Sequential(Needed()))
    assert not report.replaced and not report.left


def test_what_is_no_tensor():
    messages = []
    for each in pair(Cadene()):
        with pytest.raises(AttributeError) as error:
            each.se([x_of()])
        messages.append(str(error.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize("shape", [(C, 4, 5), (2, C + 1, 4, 5)], ids=["no-batch", "channels"])
def test_another_shape(shape):
    """The library's result, or its error."""
    x = torch.randn(shape, dtype=torch.float64)
    found = []
    for each in pair(Cadene()):
        try:
            found.append(each.se(x))
        except RuntimeError as error:
            found.append(str(error))
    assert type(found[0]) is type(found[1])
    assert found[0] == found[1] if isinstance(found[0], str) else torch.equal(*found)


@pytest.mark.parametrize("shape", [(0, C, 4, 5), (2, C, 1, 1), (1, C, 4, 5)],
                         ids=["no-samples", "one-position", "one-sample"])
def test_small_maps(shape):
    library, replaced = pair(Cadene())
    x = torch.randn(shape, dtype=torch.float64)
    for ours, theirs in zip(step(replaced.se, x), step(library.se, x), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_map_of_integers():
    messages = []
    for each in pair(Cadene()):
        with pytest.raises(RuntimeError) as error:
            each.se(torch.ones(2, C, 4, 5, dtype=torch.int32))
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def test_fused_module_that_was_built_takes_one_map():
    with pytest.raises(TypeError):
        FusedSE(8)(torch.randn(2, 8, 3, 3), None)
