"""replace_se: the same network, the same parameters, the same checkpoints."""

import copy

import pytest
import torch

from se_fused import FusedSE, replace_se

timm = pytest.importorskip("timm", reason="not installed; test_module.py covers FusedSE itself")
models = pytest.importorskip("torchvision.models", reason="not installed; timm's models remain")

# name: (constructor, number of SE modules)
NETWORKS = {
    "seresnet": (lambda: timm.create_model("seresnext26d_32x4d", num_classes=5), 8),
    "without-se": (lambda: timm.create_model("efficientnet_lite0", num_classes=5), 0),
    "mobilenetv3": (lambda: timm.create_model("mobilenetv3_small_050", num_classes=5), 9),
    "legacy-senet": (lambda: timm.create_model("legacy_seresnet18", num_classes=5), 8),
    "torchvision-mobilenetv3": (lambda: models.mobilenet_v3_small(num_classes=5), 9),
}


@pytest.fixture(params=NETWORKS.values(), ids=NETWORKS)
def network(request):
    make, count = request.param
    return make().double().eval(), count


def gradients(network, x):
    x = x.clone().requires_grad_()
    y = network(x)
    found = torch.autograd.grad(y.square().sum(), [x, *network.parameters()])
    return [y, *found]


def test_same_network(network):
    eager, count = network
    fused = copy.deepcopy(eager)
    names = list(fused.state_dict())
    parameters = list(fused.parameters())
    report = replace_se(fused)

    assert len(report.replaced) == count and not report.left
    assert sum(isinstance(module, FusedSE) for module in fused.modules()) == count
    assert all(fused.get_submodule(entry.name) for entry in report.replaced)
    assert list(fused.state_dict()) == names
    assert all(a is b for a, b in zip(fused.parameters(), parameters, strict=True))
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    for found, expected in zip(gradients(fused, x), gradients(eager, x), strict=True):
        # mobilenetv3's hardsigmoid: torch's own gradient has a float32 1/6.
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_checkpoints_load_both_ways(network):
    eager, _ = network
    fused = copy.deepcopy(eager)
    replace_se(fused)
    with torch.no_grad():
        for parameter in fused.parameters():
            parameter.add_(torch.randn_like(parameter))
    eager.load_state_dict(fused.state_dict())
    for name, tensor in fused.state_dict().items():
        assert torch.equal(tensor, eager.state_dict()[name]), name
    fused.load_state_dict(eager.state_dict())


def test_module_with_hooks_is_left():
    network = timm.create_model("legacy_seresnet18", num_classes=5)
    calls = []
    network.layer1[0].se_module.register_forward_hook(lambda *_: calls.append(1))
    report = replace_se(network)
    assert [entry.name for entry in report.left] == ["layer1.0.se_module"]
    assert "hooks" in report.left[0].reason and "hooks" in str(report)
    assert len(report.replaced) == 7
    network(torch.randn(1, 3, 64, 64))
    assert calls == [1]


def test_training_mode_is_kept():
    network = timm.create_model("legacy_seresnet18", num_classes=5).eval()
    network.layer2[0].se_module.train()
    replace_se(network)
    assert network.layer2[0].se_module.training and not network.layer1[0].se_module.training


def test_se_module_itself_is_refused():
    with pytest.raises(ValueError, match="model is itself a SEModule; use FusedSE"):
        replace_se(timm.layers.SEModule(16))
