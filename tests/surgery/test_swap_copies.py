"""Copies of replaced modules and loads of saved ones, changed or not; replace_se asked again."""

import copy
import pickle

import pytest
import torch
from copies import COPIES
from pairs import assert_fused, assert_library_runs, pair, said_in, x_of
from se_modules import Copied, times
from torch import nn

from se_fused import FusedSE, replace_se, restore_se


class Own(Copied):
    """A copy with a temperature."""

    def __init__(self):
        super().__init__()
        self.temperature = 1.0

    def forward(self, x):
        p = self.fc[2](self.fc[1](self.fc[0](self.avg_pool(x).flatten(1))))
        return times(x, self.fc[3](p / self.temperature))


copies = pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)


@copies
def test_copy(duplicate):
    library, replaced = pair(Own())
    twin = duplicate(replaced)
    assert_fused((library, twin), x_of())
    for each in (library, twin):
        each.se.temperature = 2.0
    assert_library_runs((library, twin), x_of(), "temperature is 2.0 now, and was 1.0")
    assert replaced.se.temperature == 1.0
    library.se.temperature = 1.0
    assert_fused((library, replaced), x_of())


def heated(se):
    se.temperature = 0.5


def hooked(se):
    se.fc.register_forward_hook(halved)


def halved(module, args, y):
    return y / 2


def with_another_gate(se):
    se.fc[3] = nn.Softmax(1)


DIFFERENCES = {"attribute": heated, "hook": hooked, "layer": with_another_gate}


@copies
@pytest.mark.parametrize("change", DIFFERENCES.values(), ids=DIFFERENCES)
def test_copy_of_a_changed_one(duplicate, change):
    """It computes as the library's, whether that can be fused (another temperature) or not."""
    library, replaced = pair(Own())
    for each in (library, replaced):
        change(each.se)
    twin = duplicate(replaced)
    assert isinstance(twin.se, FusedSE)
    x = x_of()
    torch.testing.assert_close(twin.se(x), library.se(x), rtol=1e-12, atol=1e-12)
    assert restore_se(twin).replaced and type(twin.se) is Own
    assert torch.equal(twin.se(x), library.se(x))


def squared(self, x):
    return times(x, self.fc(self.avg_pool(x).flatten(1)).square())


def with_silu(self, x):
    p = self.fc[2](nn.functional.silu(self.fc[0](self.avg_pool(x).flatten(1))))
    return times(x, self.fc[3](p))


@pytest.mark.parametrize("forward", [squared, with_silu], ids=["squared", "another-act"])
def test_class_that_is_another_where_it_is_loaded(forward, monkeypatch):
    _, replaced = pair(Own())
    saved = pickle.dumps(replaced)
    monkeypatch.setattr(Own, "forward", forward)
    # The made class of this process has the forward of before: another process makes it anew.
    from se_fused.surgery import class_swap

    class_swap._made_class.cache_clear()
    from se_fused.surgery.attribute_reads import reads_of

    reads_of.cache_clear()
    try:
        twin = pickle.loads(saved)
        library = copy.deepcopy(twin)
        restore_se(library)
        assert_library_runs((library, twin), x_of(), "after loading: it computes something else")
        assert torch.equal(library.se(x_of() * 0 + 1), forward(library.se, x_of() * 0 + 1))
        [left] = replace_se(twin).left
        assert left.reason.startswith("it computes something else")
    finally:
        class_swap._made_class.cache_clear()
        reads_of.cache_clear()


def test_asked_again_after_a_change_that_can_be_fused():
    both = pair(Own())
    library, replaced = both
    for each in both:
        each.se.fc[1] = nn.SiLU()
    assert_library_runs(both, x_of(), "fc.1 is a torch.nn.modules.activation.SiLU now")
    assert [entry.name for entry in replace_se(replaced).replaced] == ["se"]
    assert_fused(both, x_of())
    assert not replace_se(replaced).replaced


def test_asked_again_after_a_change_that_cannot():
    both = pair(Own())
    for each in both:
        each.se.temperature = 0.5
    report = replace_se(both[1])
    assert [(e.name, e.reason) for e in report.left] == [
        ("se", "it computes something else than SE of its layers")
    ]
    assert type(both[1].se) is Own and not said_in(lambda: both[1].se(x_of()))


@pytest.mark.parametrize("change", DIFFERENCES.values(), ids=DIFFERENCES)
def test_restored_after_a_change(change):
    library, replaced = pair(Own())
    before = {*vars(library.se)}
    for each in (library, replaced):
        change(each.se)
    said_in(lambda: replaced.se(x_of()))
    assert [entry.name for entry in restore_se(replaced).replaced] == ["se"]
    assert type(replaced.se) is Own and {*vars(replaced.se)} == before
    x = x_of()
    assert torch.equal(replaced.se(x), library.se(x))
    assert not said_in(lambda: replaced.se(x))
