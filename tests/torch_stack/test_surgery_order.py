"""replace_se and fuse before and after what else is done to a model.

The model gives what it gives without them, and runs fused or says why it does not: in a warning
where its layers have changed since, in the report where they had before.
"""

import copy

import pytest
import torch
from order_actions import ACTIONS, IN_EVAL_MODE, in_place
from ordered import SE, WHOLE, network, observed, step, surgery
from residual_blocks import assert_same, images
from selection import kept
from torch import nn

pytestmark = [
    pytest.mark.usefixtures("fresh_compiler"),
    pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning"),
]

KEPT_IN_PART = {  # one of both runs fused yet
    "hooks-on-blocks": SE, "backward-hooks-on-blocks": SE, "hooks-on-layers": SE,
    "weight-norm-of-a-convolution": SE, "parametrized-batch-norm": SE, "patched-batch-norm": SE,
    "torch-fx": SE, "folded": SE,
}  # fmt: skip
ORDERS = ("first", "after")


def changed(name, order, action):
    """The network with the surgery, the one without, and what is said of SE that is not fused."""
    plain, net = network(), network()
    if order == "first":
        surgery(net)
        net, _, left = observed(action, net)
    else:
        net = action(net)
        left = surgery(net)
    return net, action(plain), left


def check(name, reason, net, plain, left, whole=WHOLE):
    x = images(4)
    expected = step(plain, x)
    found, called, said = observed(step, net, x)
    assert_same(found, expected)
    if reason is None:
        assert called == whole and not said
    else:
        assert called < whole and called <= KEPT_IN_PART.get(name, set())
        assert any(reason in text for text in said + left), said + left
    net.eval(), plain.eval()
    assert_same(net(x), plain(x))


def test_surgery_itself_warns_of_nothing():
    """Nor while copies are verified."""
    net = network()
    for _ in range(2):
        assert not observed(surgery, net)[2]


IN_SHORT = "deepcopy", "data-parallel", "frozen", "compiled", "weight-norm", "hooks-on-layers"


@kept(pytest.mark.parametrize("name", ACTIONS), *IN_SHORT)
@pytest.mark.parametrize("order", ORDERS)
def test_order(name, order):
    action, *reasons = ACTIONS[name]
    check(name, reasons[order == "after"], *changed(name, order, action))


@kept(pytest.mark.parametrize("name", [name for name, row in ACTIONS.items() if any(row[1:])]),
      "weight-norm-of-a-convolution")
def test_surgery_again_is_that_of_a_changed_model(name):
    """Or more, and without a warning: what is unfused now is in the report."""
    action = ACTIONS[name][0]
    net, plain, _ = changed(name, "first", action)
    surgery(net)
    x = images(4)
    found, called, said = observed(step, net, x)
    assert_same(found, step(plain, x))
    expected, _, _ = changed(name, "after", action)
    assert called >= observed(step, expected, x)[1]
    assert not said or name == "hooks-on-layers"  # of the SE module that was replaced before


@kept(pytest.mark.parametrize("name", IN_EVAL_MODE), "synchronised")
@pytest.mark.parametrize("order", ORDERS)
def test_order_in_eval_mode(name, order):
    action, *reasons = IN_EVAL_MODE[name]
    net, plain, left = changed(name, order, action)
    whole = {"excite"} | SE
    check(name, reasons[order == "after"], net.eval(), plain.eval(), left, whole)


@pytest.mark.parametrize("order", ORDERS)
def test_dynamic_quantization(order):
    """Its linear layers are float32 outside and of another class."""
    quantize = lambda net: torch.ao.quantization.quantize_dynamic(net.float().eval(), {nn.Linear})
    net, plain, left = changed("quantized", order, quantize)
    x = images(dtype=torch.float32)
    with torch.no_grad():
        expected = plain(x)
        found, called, said = observed(net, x)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert not called and (said if order == "first" else left)


@pytest.mark.thorough
@pytest.mark.parametrize("order", ORDERS)
def test_compiled_by_inductor(order):
    net, plain, left = changed("inductor", order, torch.compile)
    check("inductor", None, net, plain, left)


# timm's own


def _ema(net):
    from timm.utils import ModelEmaV3

    ema = ModelEmaV3(net, decay=0.5)
    ema.update(net)
    return ema.module.requires_grad_().train()


def _frozen_norms(net):
    from timm.utils.model import freeze_batch_norm_2d

    return freeze_batch_norm_2d(net)


def _unfrozen_norms(net):
    from timm.utils.model import unfreeze_batch_norm_2d

    return unfreeze_batch_norm_2d(_frozen_norms(net))


TIMM = {
    "ema": (_ema, WHOLE),
    "frozen-norms": (_frozen_norms, SE),
    "unfrozen-norms": (_unfrozen_norms, WHOLE),
    "checkpointed": (in_place(lambda net: net.set_grad_checkpointing()), WHOLE),
    "another-classifier": (
        in_place(lambda net: net.reset_classifier(3) or nn.init.ones_(net.fc.weight)), WHOLE
    ),
}


@kept(pytest.mark.parametrize("name", TIMM), "ema")
@pytest.mark.parametrize("order", ORDERS)
def test_order_of_timm(name, order):
    timm = pytest.importorskip("timm", reason="not installed; test_order covers blocks of our own")
    action, expected = TIMM[name]
    torch.manual_seed(0)
    plain = timm.create_model("seresnet18", num_classes=2).double()
    net, left = copy.deepcopy(plain), []
    if order == "first":
        assert not surgery(net)
    net, plain = (torch.manual_seed(1) and action(each).double() for each in (net, plain))
    if order == "after":
        left = surgery(net)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    found, called, said = observed(step, net, x)
    for value, wanted in zip(found, step(plain, x), strict=True):
        scale = wanted.abs().max().clamp(min=1e-6)
        torch.testing.assert_close(value / scale, wanted / scale, rtol=0, atol=1e-7)
    assert called - SE == expected - SE
    assert bool(said + left) == (expected != WHOLE)
