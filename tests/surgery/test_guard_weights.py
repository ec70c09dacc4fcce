"""Weights that are something only while their layer is called, or that are computed when read."""

import pytest
import torch
from pairs import assert_fused, assert_library_runs, changed, pair, said_in, step, x_of
from se_modules import C, Cadene, Copied
from torch import nn
from torch.nn.utils import parametrizations, parametrize, weight_norm

from se_fused import replace_se


def partitioned(layer):
    """As ZeRO's third stage: the whole weight is there during the layer's own call."""
    whole = layer.weight.detach().clone()
    layer.weight.requires_grad_(False).data = torch.empty(0, dtype=whole.dtype)

    def gather(module, args):
        module.weight.data = whole

    def release(module, args, y):
        module.weight.data = torch.empty(0, dtype=whole.dtype)

    layer.register_forward_pre_hook(gather)
    layer.register_forward_hook(release)


@pytest.mark.parametrize("path", ["fc1", "fc2"])
def test_weight_that_hooks_gather(path):
    both = changed(Cadene(), lambda se: partitioned(se.get_submodule(path)))
    x, results = x_of(), []
    with torch.no_grad():  # a backward pass gathers again, by other hooks
        said = said_in(lambda: results.extend(each.se(x) for each in both))
    assert torch.equal(*results) and said == [f"{path} has hooks"]
    assert both[1].se.get_submodule(path).weight.numel() == 0


def test_weight_that_the_forward_of_the_whole_gathers():
    """Hooks on the module itself run around the fused forward, too."""
    library, replaced = changed(Cadene(), lambda se: None)
    x = x_of()
    expected = library.se(x)
    whole = replaced.se.fc1.weight.detach().clone()
    replaced.se.fc1.weight.data = torch.empty(0, dtype=whole.dtype)
    replaced.se.register_forward_pre_hook(
        lambda module, args: setattr(module.fc1.weight, "data", whole)
    )
    torch.testing.assert_close(replaced.se(x), expected)


class Packed(nn.Module):
    """A layer whose weight is a method, packed in bytes, as quantized layers have it."""

    def __init__(self, layer):
        super().__init__()
        self.register_buffer("packed", (layer.weight.detach() * 50).round().to(torch.int8))

    def weight(self):
        return self.packed.double() / 50

    def forward(self, x):
        return nn.functional.linear(x, self.weight())


def test_weight_that_is_a_method():
    def pack(se):
        se.fc[0] = Packed(se.fc[0])

    both = changed(Copied(), pack)
    assert_library_runs(both, x_of(), "fc.0 is a test_guard_weights.Packed now")


def test_weight_of_bytes():
    """A layer of the same class, whose weight another class of it would scale."""

    def of_bytes(se):
        se.fc[0].weight = nn.Parameter(torch.ones(6, C, dtype=torch.int8), requires_grad=False)

    both = changed(Copied(), of_bytes)
    messages = []
    for each in both:
        with pytest.raises(RuntimeError) as error:
            each.se(x_of())
        messages.append(str(error.value))
    assert messages[0] == messages[1]


class Counted(nn.Module):
    """A parametrization that counts how often it is computed."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def forward(self, weight):
        self.count += 1
        return weight * 2


@pytest.mark.parametrize("name", ["fc1", "fc2"])
def test_parametrization_is_computed_as_often_as_the_library_s(name):
    both = changed(
        Cadene(),
        lambda se: parametrize.register_parametrization(
            se.get_submodule(name), "weight", Counted()
        ),
    )
    assert_library_runs(both, x_of(), f"{name} is a torch.nn.utils.parametrize.Parametrized")
    counts = [each.se.get_submodule(name).parametrizations.weight[0].count for each in both]
    assert counts[0] == counts[1] > 0


def test_power_iterations():
    """spectral_norm makes one step at each reading in training: its buffers tell."""

    def normed(se):
        torch.manual_seed(4)
        parametrizations.spectral_norm(se.fc[0])
        parametrizations.spectral_norm(se.fc[2])

    both = changed(Copied().train(), normed)
    assert_library_runs(both, x_of(), "fc.0 is a torch.nn.utils.parametrize.ParametrizedLinear")
    names = [name for name, _ in both[0].se.named_buffers()]
    assert len(names) == 4
    for name in names:
        assert torch.equal(both[0].se.get_buffer(name), both[1].se.get_buffer(name))
    for each in both:
        each.eval()
    assert torch.equal(both[1].se(x_of().mul_(0) + 1), both[0].se(x_of().mul_(0) + 1))
    assert replace_se(both[1]).left[0].reason == "it is parametrized"


def test_weight_norm_of_hooks():
    both = changed(Copied(), lambda se: weight_norm(se.fc[0]))
    assert_library_runs(both, x_of(), "fc.0 has hooks")


def test_weights_given_for_one_call():
    """torch.func.functional_call puts others in their place for a call."""
    library, replaced = pair(Cadene())
    others = {name: torch.randn_like(p) for name, p in library.se.named_parameters()}
    x = x_of()
    found, expected = (
        torch.func.functional_call(each.se, others, (x,)) for each in (replaced, library)
    )
    torch.testing.assert_close(found, expected)
    assert_fused((library, replaced), x)


def test_weights_replaced_by_others():
    """Other parameters, of another hidden width, are what it computes with."""

    def other(se):
        torch.manual_seed(8)
        se.fc1.weight = nn.Parameter(torch.randn(9, C, 1, 1, dtype=torch.float64))
        se.fc1.bias = None
        se.fc2.weight = nn.Parameter(torch.randn(C, 9, 1, 1, dtype=torch.float64))

    both = changed(Cadene(), other)
    assert_fused(both, x_of())
    assert len(step(both[1].se, x_of())) == 5
