"""What insert_se adds to networks, in parameters and multiplications, beside the SENet paper
(arXiv 1709.01507 v4): exactly by its equation 5, and its tables as far as they are rounded."""

import copy
import functools
import math

import pytest
import torch
from selection import kept
from torch import nn

from se_fused import FusedSE, insert_se

WITHOUT = "not installed; test_insert_options.py covers blocks that the user chooses"
timm = pytest.importorskip("timm", reason=WITHOUT)
torchvision = pytest.importorskip("torchvision", reason=WITHOUT)

LIBRARIES = {"torchvision": torchvision.models.get_model, "timm": timm.create_model}
each_library = pytest.mark.parametrize("library", LIBRARIES)


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def on_meta(library: str, name: str) -> nn.Module:
    return copy.deepcopy(_on_meta(library, name))


@functools.cache
def _on_meta(library: str, name: str) -> nn.Module:
    has_initializer = library == "torchvision" and name in ("googlenet", "inception_v3")
    options = {"init_weights": False} if has_initializer else {}
    with torch.device("meta"):
        return LIBRARIES[library](name, **options).eval()


def added(library: str, name: str, bias=False, **options) -> int:
    network = on_meta(library, name)
    before = count(network)
    insert_se(network, bias=bias, **options)
    se = [module for module in network.modules() if isinstance(module, FusedSE)]
    assert count(network) - before == sum(map(count, se))
    return count(network) - before


# Blocks of each stage and their channels: He et al., arXiv 1512.03385, table 1.
BLOCKS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3), "resnet152": (3, 8, 36, 3)}
CHANNELS = (256, 512, 1024, 2048)
RESNET50 = 25_557_032


# Each ratio, and each depth once; test_equation_5_in_numbers has the depths too.
@pytest.mark.parametrize(
    "name, r", [("resnet50", r) for r in (2, 4, 8, 16, 32)] + [("resnet101", 4), ("resnet152", 16)]
)
def test_equation_5(name, r, library="torchvision"):
    weights = 2 * sum(n * c * c for n, c in zip(BLOCKS[name], CHANNELS)) // r
    biases = sum(n * (c + c // r) for n, c in zip(BLOCKS[name], CHANNELS))
    assert added(library, name, reduction=r) == weights
    assert added(library, name, reduction=r, bias=True) == weights + biases


def test_equation_5_in_numbers():
    found = [added("timm", name) for name in BLOCKS]
    assert found == [2_514_944, 4_743_168, 6_578_176]


def test_parameters_of_senet_in_timm():
    """The same network, built with SE."""
    network = on_meta("timm", "resnet50")
    insert_se(network)
    assert count(network) == count(on_meta("timm", "seresnet50"))


# Of SE-ResNet-50, in millions.
TOTALS = {
    "table-10-r-2": (dict(reduction=2), 45.7),
    "table-10-r-4": (dict(reduction=4), 35.7),
    "table-10-r-8": (dict(reduction=8), 30.7),
    "table-10-r-16": (dict(), 28.1),
    "table-10-r-32": (dict(reduction=32), 26.9),
    "table-13-stage-2": (dict(stages=[2]), 25.6),
    "table-13-stage-3": (dict(stages=[3]), 25.7),
    "table-13-stage-4": (dict(stages=[4]), 26.4),
    "table-13-all": (dict(stages=[2, 3, 4, 5]), 28.1),
    "table-15-se-3x3": (dict(where="conv3x3"), 25.8),
}


@pytest.mark.parametrize("options, total", TOTALS.values(), ids=TOTALS)
def test_totals_of_the_paper(options, total):
    """With biases. The paper's ablations have none, but its five totals of table 10 are those of a
    ResNet-50 of 25.62 to 25.63 million parameters, which has 25.56."""
    found = RESNET50 + added("torchvision", "resnet50", bias=True, **options)
    assert found / 1e6 == pytest.approx(total, abs=0.1)


def test_original_of_the_paper():
    assert count(on_meta("torchvision", "resnet50")) == RESNET50
    assert RESNET50 / 1e6 == pytest.approx(25.6, abs=0.1)


@each_library
def test_each_stage(library):
    """Table 13; the last stage, which the paper leaves aside, and section 4: without its SE about
    4 % of the parameters are added."""
    found = {stage: added(library, "resnet50", stages=[stage]) for stage in (2, 3, 4, 5)}
    assert found == {2: 24_576, 3: 131_072, 4: 786_432, 5: 1_572_864}
    without_last = added(library, "resnet50", stages=[2, 3, 4])
    assert without_last == 942_080
    assert round(100 * without_last / RESNET50) == 4


@each_library
def test_each_placement(library):
    """Tables 14 and 15; before the residual branch SE has the channels of the block before."""
    inputs = 64, *[256] * 3, *[512] * 4, *[1024] * 6, *[2048] * 2
    before = 2 * sum(c * c for c in inputs) // 16
    found = {w: added(library, "resnet50", where=w) for w in ("pre", "post", "identity", "conv3x3")}
    assert found == {"pre": before, "post": 2_514_944, "identity": 2_514_944, "conv3x3": 157_184}


def test_mobilenet():
    """Table 3: 4.2 to 4.7 million."""
    assert added("timm", "mobilenetv1_100") == 479_744
    before = count(on_meta("timm", "mobilenetv1_100")) / 1e6
    assert before == pytest.approx(4.2, abs=0.1)
    assert before + 0.479744 == pytest.approx(4.7, abs=0.1)


def named(networks) -> list[str]:
    return [name.replace(" ", "-") for name in networks]


VGG_16 = [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6
RESNET_50 = [256] * 3 + [512] * 4 + [1024] * 6 + [2048] * 3
# Sandler et al., arXiv 1801.04381, table 2.
MOBILENET_V2 = [16] + [24] * 2 + [32] * 3 + [64] * 4 + [96] * 3 + [160] * 3 + [320]
# The channels of the maps that get SE.
WIDTHS = {
    "torchvision vgg16": VGG_16,
    "torchvision vgg16_bn": VGG_16,
    "timm vgg16_bn": VGG_16,
    "torchvision resnet18": [64] * 2 + [128] * 2 + [256] * 2 + [512] * 2,
    "timm resnet34": [64] * 3 + [128] * 4 + [256] * 6 + [512] * 3,
    "torchvision resnext50_32x4d": RESNET_50,
    "timm wide_resnet50_2": RESNET_50,
    # Szegedy et al., arXiv 1409.4842, table 1.
    "torchvision googlenet": [256, 480, 512, 512, 512, 528, 832, 832, 1024],
    # Szegedy et al., arXiv 1512.00567, table 1.
    "torchvision inception_v3": [256, 288, 288] + [768] * 5 + [1280, 2048, 2048],
    "timm inception_v3": [256, 288, 288] + [768] * 5 + [1280, 2048, 2048],
    "timm inception_resnet_v2": [320] * 11 + [1088] * 21 + [2080] * 11,
    "timm mobilenetv1_100": [64] + [128] * 2 + [256] * 2 + [512] * 6 + [1024] * 2,
    "torchvision mobilenet_v2": MOBILENET_V2,
    "timm mobilenetv2_100": MOBILENET_V2,
    # Half of the channels of Ma et al., arXiv 1807.11164, table 5.
    "torchvision shufflenet_v2_x1_0": [58] * 4 + [116] * 8 + [232] * 4,
}  # fmt: skip


@kept(pytest.mark.parametrize("network, widths", WIDTHS.items(), ids=named(WIDTHS)),
      *[name for name in named(WIDTHS) if "inception_" not in name])
def test_each_family(network, widths):
    model = on_meta(*network.split())
    insert_se(model)
    found = [(m.fc1.in_channels, m.fc1.out_channels) for m in se_in_order(model)]
    assert found == [(c, c // 16) for c in widths]
    assert model(torch.empty(1, 3, 299, 299, device="meta")).shape == (1, 1000)


def se_in_order(network: nn.Module) -> list[FusedSE]:
    return [module for module in network.modules() if isinstance(module, FusedSE)]


# Stages of each network, and how many blocks each has.
STAGES = {
    "torchvision resnet50": {2: 3, 3: 4, 4: 6, 5: 3},
    "timm resnet18": {2: 2, 3: 2, 4: 2, 5: 2},
    "torchvision vgg16_bn": {1: 2, 2: 2, 3: 3, 4: 3, 5: 3},
    "torchvision googlenet": {3: 2, 4: 5, 5: 2},
    "torchvision inception_v3": {5: 3, 6: 5, 7: 3},
    "timm inception_resnet_v2": {5: 11, 6: 21, 7: 11},
    "timm mobilenetv1_100": {1: 1, 2: 2, 3: 2, 4: 6, 5: 2},
    "torchvision mobilenet_v2": {1: 1, 2: 2, 3: 3, 4: 4, 5: 3, 6: 3, 7: 1},
    "timm mobilenetv2_100": {1: 1, 2: 2, 3: 3, 4: 4, 5: 3, 6: 3, 7: 1},
    "torchvision shufflenet_v2_x1_0": {2: 4, 3: 8, 4: 4},
}


@kept(pytest.mark.parametrize("network, stages", STAGES.items(), ids=named(STAGES)),
      *[name for name in named(STAGES) if "inception_" not in name])
def test_stages_of_each_family(network, stages):
    """A reduction of its own for each stage shows which blocks are in it."""
    model = on_meta(*network.split())
    ratios = [2**i / 4 for i in range(len(stages))]
    insert_se(model, reduction=ratios)
    found = [m.fc1.out_channels / m.fc1.in_channels for m in se_in_order(model)]
    expected = [1 / r for r, n in zip(ratios, stages.values()) for _ in range(n)]
    assert found == pytest.approx(expected)

    model = on_meta(*network.split())
    last = max(stages)
    assert len(insert_se(model, stages=[last]).replaced) == stages[last]


def multiplications(library: str, name: str) -> float:
    """Of the SE blocks that are called for an image of 224², in millions: of their layers and of
    the rescale (the squeeze has additions)."""
    network = on_meta(library, name)
    insert_se(network, bias=False)
    total = 0

    def add(se, args):
        nonlocal total
        total += count(se) + math.prod(args[0].shape)

    for se in se_in_order(network):
        se.register_forward_pre_hook(add)
    network(torch.empty(1, 3, 224, 224, device="meta"))
    return total / 1e6


def test_multiplications():
    """Section 4: 3.86 to 3.87 GFLOPs; table 3: 569 to 572 MFLOPs."""
    assert multiplications("torchvision", "resnet50") == pytest.approx(8.0, rel=0.01)
    assert multiplications("timm", "mobilenetv1_100") == pytest.approx(3.2, rel=0.01)


# GFLOPs without SE and with it.
TABLE_2 = {
    "resnet50": (3.86, 3.87),
    "resnet101": (7.58, 7.60),
    "resnet152": (11.30, 11.32),
    "resnext50_32x4d": (4.24, 4.25),
    "vgg16": (15.47, 15.48),
}


@pytest.mark.parametrize("name, gflops", TABLE_2.items(), ids=TABLE_2)
def test_table_2(name, gflops):
    """Both numbers are rounded to 0.01."""
    before, with_se = gflops
    found = multiplications("torchvision", name) / 1e3
    assert abs(found - (with_se - before)) < 0.01


def test_no_rounding_of_the_hidden_width():
    """timm's SEModule rounds to multiples of 8."""
    network = on_meta("torchvision", "shufflenet_v2_x1_0")
    insert_se(network, reduction=16)
    assert se_in_order(network)[0].fc1.weight.shape == (3, 58, 1, 1)
