"""replace_se and fuse before and after accelerate, torchao and peft have changed a model."""

import pytest
import torch
from ordered import WHOLE, network, observed, surgery
from residual_blocks import images
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor

ORDERS = ("first", "after")
WITHOUT = "not installed; {}"


def compared(action, order, dtype=torch.float64):
    """What is called fused, and what is said; results must be those of the untouched network."""
    plain, net = (network().to(dtype).eval() for _ in range(2))
    left = []
    if order == "first":
        surgery(net)
    action(plain), action(net)
    if order == "after":
        left = surgery(net)
    x = images(dtype=dtype)
    with torch.no_grad():
        found, called, said = observed(net, x)
        tolerance = 1e-12 if dtype == torch.float64 else 1e-5
        expected = plain(x)
        if isinstance(expected, TwoTensor):
            found, expected = found.a, expected.a
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    return called, said + left


@pytest.mark.parametrize("order", ORDERS)
def test_weights_of_a_tensor_subclass(order):
    def wrap(net):
        weight = net.alone.fc[0].weight.detach()
        net.alone.fc[0].weight = nn.Parameter(TwoTensor(weight, weight), requires_grad=False)

    called, said = compared(wrap, order)
    assert called < WHOLE  # the block runs fused yet
    assert any("no plain tensors" in text or "it has a TwoTensor" in text for text in said)


@pytest.mark.parametrize("order", ORDERS)
def test_offloaded_by_accelerate(order):
    reason = WITHOUT.format("test_surgery_order.py covers patched layers")
    accelerate = pytest.importorskip("accelerate", reason=reason)
    cpu = torch.device("cpu")
    called, said = compared(lambda net: accelerate.cpu_offload(net, execution_device=cpu), order)
    assert not called and any("forward has been" in text for text in said)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", ["Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"])
def test_quantized_by_torchao(order, name):
    reason = WITHOUT.format("test_weights_of_a_tensor_subclass covers such weights")
    quantization = pytest.importorskip("torchao.quantization", reason=reason)
    config = getattr(quantization, name)
    called, said = compared(
        lambda net: quantization.quantize_(net, config()), order, torch.float32
    )
    words = "its weights are no plain tensors", "among its parameters", "among its tensors"
    assert not called and any(word in text for word in words for text in said)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("then", ["", "merge", "unmerge", "unload"])
def test_adapters_of_peft(order, then):
    reason = WITHOUT.format("test_surgery_order.py covers layers of another class")
    peft = pytest.importorskip("peft", reason=reason)

    def adapt(net):
        targets = [name for name, m in net.named_modules() if isinstance(m, nn.Linear)]
        model = peft.get_peft_model(net, peft.LoraConfig(target_modules=targets, r=2))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.constant_(parameter, 0.1)
        if then == "unload":
            model.merge_and_unload()
        elif then:
            model.merge_adapter()
        if then == "unmerge":
            model.unmerge_adapter()

    def seeded(net):
        torch.manual_seed(4)
        adapt(net)

    called, said = compared(seeded, order)
    assert bool(called) == (then == "unload")
    if not called:
        words = "peft.tuners.lora.layer.Linear now", "has no weight that se_fused knows"
        assert any(word in text for word in words for text in said)
