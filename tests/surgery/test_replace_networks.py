"""replace_se on whole networks of libraries: the same network in float64, gradients included."""

import copy

import pytest
import torch
from library_networks import (
    from_monai,
    from_segmentation_models,
    from_timm,
    from_torchvision,
    from_transformers,
    timm,
)
from selection import kept

from se_fused import FusedSE, replace_se, restore_se
from se_fused.surgery.find_se import find_by_class

# How many SE modules each network has.
TIMM = {
    "seresnet50": 16,
    "legacy_seresnet18": 8,
    "legacy_seresnext26_32x4d": 8,
    "efficientnet_b0": 16,
    "efficientnet_lite0": 0,
    "tf_efficientnetv2_b0": 16,
    "mobilenetv3_small_050": 9,
    "regnety_002": 13,
    "rexnet_100": 13,
    "ghostnet_050": 7,
    "ese_vovnet19b_dw": 4,
    "hgnet_tiny": 5,
    "repvit_m0_9": 10,
    "mixnet_s": 13,
    "fbnetv3_b": 18,
    "tinynet_e": 10,
    "hardcorenas_a": 8,
    "lcnet_050": 2,
    "nf_regnet_b0": 16,
    "efficientvit_m0": 2,
    "semnasnet_075": 8,
}
TORCHVISION = {
    "mobilenet_v3_small": 9,
    "efficientnet_b0": 16,
    "regnet_y_400mf": 16,
}


NETWORKS = {f"timm-{name}": (from_timm, name, count) for name, count in TIMM.items()}
NETWORKS |= {f"tv-{name}": (from_torchvision, name, n) for name, n in TORCHVISION.items()}
NETWORKS |= {
    "smp-efficientnet-b0": (from_segmentation_models, "efficientnet-b0", 26),
    "monai-2d": (from_monai, 2, 4),
    "monai-3d": (from_monai, 3, 4),
    "hf-efficientnet": (from_transformers, "efficientnet", 10),
    "hf-regnet": (from_transformers, "regnet", 4),
}


def gradients(network, x):
    """The result and the gradients of x and of all parameters, random layers fixed."""
    torch.manual_seed(1)
    x = x.clone().requires_grad_()
    y = network(x)
    wanted = [x, *network.parameters()]
    return [y.detach(), *torch.autograd.grad(y.square().sum(), wanted, allow_unused=True)]


def assert_same_network(eager, fused, size):
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    for found, expected in zip(gradients(fused, x), gradients(eager, x), strict=True):
        if expected is None:
            assert found is None
        else:
            # PyTorch's own hardsigmoid has a float32 1/6 in its float64 gradient.
            # A gradient below 1e-6 may be nothing but rounding.
            scale = expected.abs().max().clamp(min=1e-6)
            torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=1e-6)


@kept(pytest.mark.parametrize("make, name, count", NETWORKS.values(), ids=NETWORKS),
      "timm-mobilenetv3_small_050", "tv-mobilenet_v3_small", "smp-efficientnet-b0", "monai-2d",
      "hf-regnet")
def test_same_network(make, name, count):
    eager, size = make(name)
    eager = eager.double().eval()
    fused = copy.deepcopy(eager)
    names, parameters = list(fused.state_dict()), list(fused.parameters())
    classes = [type(module) for module in fused.modules()]
    report = replace_se(fused)

    assert len(report.replaced) == count and not report.left
    assert sum(isinstance(module, FusedSE) for module in fused.modules()) == count
    assert list(fused.state_dict()) == names
    assert all(a is b for a, b in zip(fused.parameters(), parameters, strict=True))
    assert_same_network(eager, fused, size)

    fused.load_state_dict(eager.state_dict(), strict=True)
    eager.load_state_dict(fused.state_dict(), strict=True)
    restore_se(fused)
    assert [type(module) for module in fused.modules()] == classes


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["seresnet18", "rexnet_100"])
def test_same_training_step(name):
    """In training mode: batch statistics, running statistics and an optimizer's step."""
    eager, size = from_timm(name)
    eager = eager.double().train()
    fused = copy.deepcopy(eager)
    replace_se(fused)
    x = torch.randn(4, 3, *size, dtype=torch.float64)
    for network in (eager, fused):
        torch.manual_seed(2)
        optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
        network(x).square().sum().backward()
        optimizer.step()
    for key, expected in eager.state_dict().items():
        torch.testing.assert_close(fused.state_dict()[key], expected, rtol=1e-6, atol=1e-8)


LARGEST = 40_000_000  # parameters of a network that is compared as a whole


@pytest.mark.slow
@pytest.mark.parametrize("name", timm.list_models())
def test_every_timm_model(name):
    """Every SE module of timm's is replaced; networks of usual size are compared as a whole."""
    try:
        with torch.device("meta"):
            network = timm.create_model(name, num_classes=5)
    except (NotImplementedError, RuntimeError) as error:
        network = timm.create_model(name, num_classes=5)
        assert "meta" in str(error)
    known = [n for n, module in network.named_modules() if find_by_class(module)[0] is not None]
    report = replace_se(network)
    assert {entry.name for entry in report.replaced} >= set(known) and not report.left
    if known and sum(p.numel() for p in network.parameters()) < LARGEST:
        eager, size = from_timm(name)
        eager = eager.double().eval()
        fused = copy.deepcopy(eager)
        replace_se(fused)
        assert_same_network(eager, fused, size)
