"""Whose gates record_gates records, and that nothing else is computed or changed for them."""

import copy
from collections import Counter

import pytest
import torch
from gate_models import MODELS, N, each_model, plain_gates, recorded_gates
from reference import check
from se_examples import EXAMPLES, map_for
from selection import each_pair_on, kept
from shapes import DTYPES, make_inputs
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from twins import C, gradients, images

import se_fused
from se_fused import FusedSE, record_gates, replace_se


@each_pair_on(make=MODELS, training={"train": True, "eval": False})
def test_gates(place, make, training):
    plain, model = (net.train(training).to(place.device) for net in make())
    x = images(N, device=place.device)
    found = recorded_gates(model, x)
    assert list(found) == [n for n, m in model.named_modules() if isinstance(m, FusedSE)]
    expected = [g.cpu() for g in plain_gates(plain, x)]
    torch.testing.assert_close([*found.values()], expected, rtol=1e-10, atol=1e-12)


@kept(
    pytest.mark.parametrize("example", [e for e in EXAMPLES if not e.startswith("efficientnet")]),
    "timm-se", "timm-channels-last", "torchvision-mobilenetv3", "smp-scse", "hf-pp-ocr-v5",
    "moskomule", "mmdet-channel-attention",
)
def test_gates_of_swapped_modules(example):
    """What each library's own module multiplies the map by."""
    channels_last, example = example == "timm-channels-last", EXAMPLES[example]
    model = example.make().double().eval()
    library = copy.deepcopy(model)
    assert len(replace_se(model).replaced) == 1
    x = map_for(example)
    factor = library(x) / x
    if hasattr(model, "sSE"):
        factor = factor - model.sSE(x)
    factor = factor.flatten(1, -2).mean(1) if channels_last else factor.flatten(2).mean(2)
    g = recorded_gates(model, x)[""]
    added = int(getattr(model, "add_residual", False))
    torch.testing.assert_close(g, factor.detach() - added, rtol=1e-6, atol=1e-9)


@each_model
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_values_and_gradients_are_bitwise_the_same(native_place, make, training):
    model = make()[1].train(training).to(native_place.device)
    x, twin = images(N, device=native_place.device), copy.deepcopy(model)
    expected = gradients(twin, x) | dict(twin.named_buffers())
    with record_gates(model) as record:
        found = gradients(model, x) | dict(model.named_buffers())
    assert all(sums.samples == N for sums in record.blocks.values())
    assert found.keys() == expected.keys()
    for name in found:
        assert torch.equal(found[name], expected[name]), name


class Operators(TorchDispatchMode):
    """Each operator that runs, with the size of the largest tensor it takes or gives."""

    def __init__(self):
        super().__init__()
        self.called = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)]
        self.called.append((str(func), max(t.numel() for t in tensors) if tensors else 0))
        return out


@each_model
@pytest.mark.parametrize("grad", [True, False], ids=["training", "no-grad"])
def test_nothing_but_the_sums_is_added(native_place, make, grad):
    model, x = make()[1].to(native_place.device), images(N, device=native_place.device)

    def operators():
        with Operators() as operators, torch.set_grad_enabled(grad):
            y = model(x)
            if grad:
                y.sum().backward()
        return operators.called

    operators()  # what is done once only
    without = operators()
    with record_gates(model) as record:
        found = operators()
    added = Counter(found) - Counter(without)
    assert not Counter(without) - Counter(found)
    assert added and all(size <= N * C for _, size in added)
    assert all(name.startswith("aten.") for name, _ in added)
    calls = added.total() / len(record.blocks)
    assert calls <= 30, f"{calls} operators for the sums of a block"
    assert Counter(operators()) == Counter(without)


def _batch_norm(x, *weights, **options):
    """By running statistics that leave the map as it is."""
    ones = x.new_ones(x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32))
    return se_fused.batch_norm_squeeze_excite(
        x, 0 * ones, ones, None, None, *weights, eps=0.0, **options
    )


FUNCTIONS = {
    "squeeze-excite": se_fused.squeeze_excite,
    "add-act": lambda x, *args, **kw: se_fused.squeeze_excite_add_act(x, None, *args, **kw),
    "batch-norm": _batch_norm,
}


@each_pair_on(function=FUNCTIONS, dtype=DTYPES, grad={"training": True, "no-grad": False})
def test_on_gate_of_the_functions(place, function, dtype, grad):
    inputs = make_inputs((3, 20, 5, 7), 4, place.device, dtype)
    found = []
    function(*(t.detach().requires_grad_(grad) for t in inputs.tensors), on_gate=found.append)
    g, = found
    assert not g.requires_grad
    check({"g": g}, inputs)
