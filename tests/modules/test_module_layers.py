"""FusedSE looks at its layers at every call: hooks, parametrizations, replaced modules."""

import pytest
import torch
from module_cases import expected_of, feature_map, small
from torch import nn
from torch.nn.utils import parametrize


@pytest.mark.parametrize("hook", ["forward", "forward-pre", "backward"])
def test_hooks_on_a_layer_fire(place, hook):
    module, x, seen = small(place), feature_map(place, 8).requires_grad_(), []
    register = {
        "forward": module.fc1.register_forward_hook,
        "forward-pre": module.fc1.register_forward_pre_hook,
        "backward": module.fc1.register_full_backward_hook,
    }[hook]
    handle = register(lambda *arguments: seen.append(arguments[0]))
    y = module(x)
    y.sum().backward()
    assert seen == [module.fc1]
    torch.testing.assert_close(y, expected_of(module, x))
    assert "squeeze and rescale fused" in repr(module)
    handle.remove()
    module(x)
    assert seen == [module.fc1] and "one operator" in repr(module)


def test_hook_that_changes_a_layer_s_result_counts(place):
    module, x = small(place), feature_map(place, 8)
    module.fc2.register_forward_hook(lambda layer, args, result: torch.zeros_like(result))
    torch.testing.assert_close(module(x), x / 2)


def test_parametrized_layer(place):
    class Double(nn.Module):
        def forward(self, weight):
            return 2 * weight

    module, x = small(place), feature_map(place, 8)
    parametrize.register_parametrization(module.fc1, "weight", Double())
    y = module(x)
    torch.testing.assert_close(y, expected_of(module, x))
    y.sum().backward()
    assert module.fc1.parametrizations.weight.original.grad.abs().max() > 0


def test_replaced_layer_is_used(place):
    module, x = small(place), feature_map(place, 8)
    module.act = nn.SiLU()
    torch.testing.assert_close(module(x), expected_of(module, x, act="silu"))
    module.gate = nn.Softsign()
    hidden = module.fc2(module.act(module.fc1(x.mean((2, 3), keepdim=True))))
    torch.testing.assert_close(module(x), x * nn.functional.softsign(hidden))
