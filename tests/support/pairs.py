"""An SE module replaced, beside the same untouched: what each computes, and what is said of it."""

import copy
import warnings

import torch
from module_cases import Count
from se_modules import C
from torch import nn

from se_fused import FusedSE, replace_se

SAID = "runs its library's forward, unfused: "


def x_of(seed: int | None = None) -> torch.Tensor:
    numbers = None if seed is None else torch.Generator().manual_seed(seed)
    return torch.randn(2, C, 4, 5, dtype=torch.float64, generator=numbers)


def pair(module: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The library's, and a copy of it that is replaced; each is .se of a module."""
    library = nn.ModuleDict({"se": module.double()})
    replaced = copy.deepcopy(library)
    report = replace_se(replaced)
    assert [entry.name for entry in report.replaced] == ["se"], str(report)
    assert isinstance(replaced.se, FusedSE)
    return library, replaced


def changed(module: nn.Module, change) -> tuple[nn.Module, nn.Module]:
    """A pair of which both were changed after replace_se; ``change`` gets the SE module."""
    both = pair(module)
    for each in both:
        change(each.se)
    return both


def step(module: nn.Module, x, *args, **kwargs) -> list[torch.Tensor]:
    """Result, gradients of the map and the parameters, buffers."""
    module.zero_grad()
    x = x.detach().clone().requires_grad_()
    y = module(x, *args, **kwargs)
    y.square().sum().backward()
    grads = [p.grad for p in module.parameters() if p.grad is not None]
    buffers = [buffer.clone() for buffer in module.buffers()]
    return [y.detach(), x.grad, *grads, *buffers]


def said_in(run) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    texts = [str(warning.message) for warning in caught]
    return [text.partition(SAID)[2] for text in texts if SAID in text]


def assert_library_runs(both, x, reason: str, *args, **kwargs):
    """Twice: the same numbers as the library's, and one warning that names the reason."""
    library, replaced = both

    def run():
        for _ in range(2):
            with Count() as count:
                found = step(replaced.se, x, *args, **kwargs)
            expected = step(library.se, x, *args, **kwargs)
            assert len(found) == len(expected)
            assert all(map(torch.equal, found, expected))
            assert not count.__dict__.get("called")

    said = said_in(run)
    assert len(said) == 1 and reason in said[0], said


def assert_fused(both, x, *args, **kwargs):
    """The same numbers as the library's from our operators, and nothing is said."""
    library, replaced = both
    with Count() as count:
        said = said_in(lambda: step(replaced.se, x, *args, **kwargs))
    assert not said and {"squeeze_excite", "apply_forward"} & {*count.called}
    found, expected = (step(each.se, x, *args, **kwargs) for each in (replaced, library))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
