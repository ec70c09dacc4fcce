"""insert_se: where SE stands, by hand in float64; test_insert_options.py has its arguments."""

import copy

import pytest
import reference
import torch
import torch.nn.functional as F
from library_networks import assert_same, without_chance
from plain_resnets import RESNETS, se_blocks
from selection import kept
from torch import nn

from se_fused import FusedSE, insert_se
from se_fused.surgery.networks import WHERE

WITHOUT = "not installed; test_insert_options.py covers blocks that the user chooses"
timm = pytest.importorskip("timm", reason=WITHOUT)
torchvision = pytest.importorskip("torchvision", reason=WITHOUT)


def by_hand(se: FusedSE):
    """The block as users write it, and leaves with its parameters."""
    leaves = [p.detach().clone().requires_grad_() for p in se.parameters()]
    w1, b1, w2, b2 = leaves
    return lambda x: reference.block(x, w1, b1, w2, b2, "relu", "sigmoid"), leaves


def step(function, x, parameters):
    x = x.clone().requires_grad_()
    y = function(x)
    return [y.detach(), *torch.autograd.grad(y.square().mean(), [x, *parameters])]


def assert_same_step(inserted, plain, function, leaves, x):
    """The result and all gradients of a training step: of x, of what the network had, of SE."""
    names = dict(plain.named_parameters())
    own = {name: p for name, p in inserted.named_parameters() if name in names}
    of_se = [p for se in se_blocks(inserted) for p in se.parameters()]
    assert len([*own, *of_se]) == len([*inserted.parameters()])
    found = step(inserted, x, [*own.values(), *of_se])
    assert_same(found, step(function, x, [*plain.parameters(), *leaves]))


# The residual units of figure 5 and table 15, of a block's own layers.


def branch(block, x, after_3x3=lambda y: y):
    if not hasattr(block, "conv3"):
        return block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x)))))
    y = F.relu(block.bn1(block.conv1(x)))
    y = F.relu(after_3x3(block.bn2(block.conv2(y))))
    return block.bn3(block.conv3(y))


def identity(block, x):
    return x if block.downsample is None else block.downsample(x)


UNITS = {
    "standard": lambda block, se, x: F.relu(se(branch(block, x)) + identity(block, x)),
    "pre": lambda block, se, x: F.relu(branch(block, se(x)) + identity(block, x)),
    "post": lambda block, se, x: se(F.relu(branch(block, x) + identity(block, x))),
    "identity": lambda block, se, x: F.relu(branch(block, x) + se(identity(block, x))),
    "conv3x3": lambda block, se, x: F.relu(branch(block, x, se) + identity(block, x)),
}
assert tuple(UNITS) == WHERE

PLACED = {
    f"{name}-{where}": (make, where)
    for name, make in RESNETS.items()
    for where in WHERE
    if "bottleneck" in name or where != "conv3x3"
}


@pytest.mark.parametrize("make, where", PLACED.values(), ids=PLACED)
def test_residual_units(make, where):
    plain = without_chance(make().double())
    inserted = copy.deepcopy(plain)
    insert_se(inserted, where=where)
    hands = [by_hand(se) for se in se_blocks(inserted)]

    def function(x):
        ses = iter(hands)
        x = F.max_pool2d(F.relu(plain.bn1(plain.conv1(x))), 3, 2, 1)
        for layer in (plain.layer1, plain.layer2, plain.layer3, plain.layer4):
            for block in layer:
                x = UNITS[where](block, next(ses)[0], x)
        assert next(ses, None) is None
        return plain.fc(x.mean((2, 3)))

    leaves = [leaf for _, leaves in hands for leaf in leaves]
    x = torch.randn(3, 3, 64, 64, dtype=torch.float64)
    assert_same_step(inserted, plain, function, leaves, x)


# The other families: the layers, by name, whose results SE is to rescale.


def vgg(batch_norm):
    with torch.device("meta"):  # its classifier has 10⁸ parameters
        network = torchvision.models.VGG(nn.Sequential(), init_weights=False)
    width = [8, "M", 16, "M", 32, 32, "M"]
    network.features = torchvision.models.vgg.make_layers(width, batch_norm)
    network.classifier = nn.Linear(32 * 49, 3)
    return network


def short(network):
    for name in ("repeat", "repeat_1", "repeat_2"):
        setattr(network, name, getattr(network, name)[:1])
    return network


FAMILIES = {
    "vgg": (lambda: vgg(False), 32, "features.1 features.4 features.7 features.9"),
    "vgg-bn": (lambda: vgg(True), 32, "features.2 features.6 features.10 features.13"),
    "timm-vgg": (
        lambda: timm.models.vgg.VGG(
            [8, "M", 32, "M"], num_classes=3, norm_layer=nn.BatchNorm2d, mlp_ratio=1 / 64
        ),
        32, "features.2 features.6",
    ),
    "googlenet": (
        lambda: torchvision.models.googlenet(
            num_classes=3, aux_logits=False, init_weights=False
        ),
        64, " ".join(f"inception{name}" for name in "3a 3b 4a 4b 4c 4d 4e 5a 5b".split()),
    ),
    "inception-v3": (
        lambda: torchvision.models.inception_v3(
            num_classes=3, aux_logits=False, init_weights=False
        ),
        75, " ".join(f"Mixed_{name}" for name in "5b 5c 5d 6a 6b 6c 6d 6e 7a 7b 7c".split()),
    ),
    "inception-resnet-v2": (
        lambda: short(timm.create_model("inception_resnet_v2", num_classes=3)), 75,
        "mixed_5b repeat.0.conv2d mixed_6a repeat_1.0.conv2d mixed_7a repeat_2.0.conv2d "
        "block8.conv2d",
    ),
    "mobilenet-v1": (
        lambda: timm.create_model("mobilenetv1_100", num_classes=3), 32,
        " ".join(f"blocks.{i}.{j}.bn2" for i, n in enumerate((1, 2, 2, 6, 2)) for j in range(n)),
    ),
    "mobilenet-v2": (
        lambda: torchvision.models.mobilenet_v2(num_classes=3, width_mult=0.75), 32,
        " ".join(f"features.{i}.conv" for i in range(1, 18)),
    ),
    "timm-mobilenet-v2": (
        lambda: timm.create_model("mobilenetv2_050", num_classes=3), 32,
        "blocks.0.0.bn2 " + " ".join(
            f"blocks.{i}.{j}.bn3" for i, n in enumerate((2, 3, 4, 3, 3, 1), 1) for j in range(n)
        ),
    ),
    "shufflenet-v2": (
        lambda: torchvision.models.shufflenet_v2_x0_5(num_classes=3), 32,
        " ".join(f"stage{i}.{j}.branch2" for i, n in ((2, 4), (3, 8), (4, 4)) for j in range(n)),
    ),
}  # fmt: skip


@kept(pytest.mark.parametrize("make, size, names", FAMILIES.values(), ids=FAMILIES),
      "vgg-bn", "googlenet", "timm-mobilenet-v2", "shufflenet-v2")
def test_standard_placement_of_other_families(make, size, names):
    plain = without_chance(make().double()).train()
    inserted = copy.deepcopy(plain)
    insert_se(inserted, reduction=4)
    leaves = []
    for name, se in zip(names.split(), se_blocks(inserted), strict=True):
        function, own = by_hand(se)
        leaves += own
        plain.get_submodule(name).register_forward_hook(lambda _, args, y, f=function: f(y))
    x = torch.randn(3, 3, size, size, dtype=torch.float64)
    assert_same_step(inserted, plain, plain, leaves, x)


# The residual units of MobileNets: up to the 3×3 convolution, with norm and ReLU6; and the rest.
MOBILENETS = {
    "torchvision": (
        lambda: torchvision.models.mobilenetv2.InvertedResidual(16, 16, 1, 3),
        lambda block, x: block.conv[:2](x),
        lambda block, x: block.conv[2:](x),
    ),
    "torchvision-without-expansion": (
        lambda: torchvision.models.mobilenetv2.InvertedResidual(16, 16, 1, 1),
        lambda block, x: block.conv[:1](x),
        lambda block, x: block.conv[1:](x),
    ),
    "timm": (
        lambda: timm.models._efficientnet_blocks.InvertedResidual(16, 16, exp_ratio=3),
        lambda block, x: block.bn2(block.conv_dw(block.bn1(block.conv_pw(x)))),
        lambda block, x: block.bn3(block.conv_pwl(x)),
    ),
    "timm-depthwise-separable": (
        lambda: timm.models._efficientnet_blocks.DepthwiseSeparableConv(16, 16),
        lambda block, x: block.bn1(block.conv_dw(x)),
        lambda block, x: block.bn2(block.conv_pw(x)),
    ),
}
MOBILE_UNITS = {
    "standard": lambda first, rest, se, x: se(rest(first(x))) + x,
    "pre": lambda first, rest, se, x: rest(first(se(x))) + x,
    "post": lambda first, rest, se, x: se(rest(first(x)) + x),
    "conv3x3": lambda first, rest, se, x: rest(se(first(x))) + x,
}


@pytest.mark.parametrize("where", MOBILE_UNITS)
@pytest.mark.parametrize("make, first, rest", MOBILENETS.values(), ids=MOBILENETS)
def test_units_of_mobilenets(make, first, rest, where):
    plain = without_chance(nn.Sequential(make()).double())
    inserted = copy.deepcopy(plain)
    insert_se(inserted, where=where, reduction=4)
    (se,) = se_blocks(inserted)
    function, leaves = by_hand(se)

    def unit(x):
        (block,) = plain
        parts = (lambda x: first(block, x)), (lambda x: rest(block, x))
        return MOBILE_UNITS[where](*parts, function, x)

    x = torch.randn(3, 16, 7, 6, dtype=torch.float64)
    assert_same_step(inserted, plain, unit, leaves, x)
