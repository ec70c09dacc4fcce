"""FusedSE against the modules it replaces."""

import copy
import io
import pickle

import pytest
import torch
from module_cases import (
    PARTS,
    PASSES,
    WHOLE,
    Count,
    assert_same,
    expected_of,
    feature_map,
    run,
    small,
)
from selection import each_pair_on
from torch import nn

import se_fused
from se_fused import FusedSE

COVER = "the plain blocks of this file cover the arithmetic without it"


@pytest.fixture
def timm():
    return pytest.importorskip("timm", reason=f"timm is not installed; {COVER}")


@pytest.fixture
def torchvision():
    return pytest.importorskip("torchvision", reason=f"torchvision is not installed; {COVER}")


# PyTorch's own float64 gradient of hardsigmoid has a 1/6 in float32.
HARDSIGMOID_RTOL = 1e-6


# timm's arguments, and what runs the block.
CONFIGURATIONS = {
    "plain": ({}, WHOLE),
    "reduction-ratio": (dict(rd_ratio=0.25, rd_divisor=1), WHOLE),
    "hidden-channels": (dict(rd_channels=7), WHOLE),
    "no-bias": (dict(bias=False), WHOLE),
    "silu": (dict(act_layer=nn.SiLU), WHOLE),
    "hardswish": (dict(act_layer=nn.Hardswish), WHOLE),
    "gelu": (dict(act_layer=nn.GELU), WHOLE),
    "hard-sigmoid-by-name": (dict(gate_layer="hard_sigmoid"), WHOLE),
    "tanh-gate": (dict(gate_layer=nn.Tanh), WHOLE),
    "unknown-act": (dict(act_layer=nn.ELU), PARTS),
    "unknown-gate": (dict(gate_layer=nn.Softsign), PARTS),
    "norm": (dict(norm_layer=nn.BatchNorm2d), PARTS),
    "norm-no-bias-silu": (dict(norm_layer=nn.BatchNorm2d, bias=False, act_layer=nn.SiLU), PARTS),
    "maxpool": (dict(add_maxpool=True), PASSES),
    "maxpool-and-norm": (dict(add_maxpool=True, norm_layer=nn.BatchNorm2d), PARTS),
}


@each_pair_on(configuration=CONFIGURATIONS, layout=["contiguous", "channels-last"])
def test_equals_timm(place, timm, configuration, layout):
    arguments, called = configuration
    torch.manual_seed(3)
    theirs = timm.layers.SEModule(24, **arguments).double().to(place.device)
    torch.manual_seed(3)
    ours = FusedSE(24, **arguments).double().to(place.device)
    for (name, mine), (their_name, other) in zip(
        ours.state_dict().items(), theirs.state_dict().items(), strict=True
    ):
        assert name == their_name and torch.equal(mine, other), "the initialisation differs"
    x, dy = feature_map(place), feature_map(place)
    if layout == "channels-last":
        x = x.contiguous(memory_format=torch.channels_last)
    rtol = HARDSIGMOID_RTOL if arguments.get("gate_layer") == "hard_sigmoid" else 1e-10
    if place.device == "cuda" and arguments.get("act_layer") is nn.Hardswish:
        rtol = HARDSIGMOID_RTOL  # as much of PyTorch's own
    with Count() as count:
        found = run(ours, x, dy)
    assert_same(found, run(theirs, x, dy), rtol)
    assert found["y"].stride() == found["dx"].stride() == x.stride()
    assert count.called == called
    # Running statistics have moved alike.
    assert_same(ours.state_dict(), theirs.state_dict())
    assert_same(run(ours.eval(), x, dy), run(theirs.eval(), x, dy), rtol)


def test_loads_timm_state_strictly(place, timm):
    theirs = timm.layers.SEModule(24, norm_layer=nn.BatchNorm2d).double().to(place.device)
    ours = FusedSE(24, norm_layer=nn.BatchNorm2d).double().to(place.device)
    x, dy = feature_map(place), feature_map(place)
    run(theirs, x, dy)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert_same(run(ours.eval(), x, dy), run(theirs.eval(), x, dy))


@pytest.mark.parametrize(
    "act, gate", [(nn.ReLU, nn.Sigmoid), (nn.ReLU, nn.Hardsigmoid), (nn.SiLU, nn.Sigmoid)],
    ids=["resnet", "mobilenet-v3", "efficientnet"],
)
def test_loads_torchvision_state_strictly(place, torchvision, act, gate):
    module = torchvision.ops.SqueezeExcitation
    theirs = module(24, 6, activation=act, scale_activation=gate).double().to(place.device)
    ours = FusedSE(24, rd_channels=6, act_layer=act, gate_layer=gate).double().to(place.device)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x, dy = feature_map(place), feature_map(place)
    rtol = HARDSIGMOID_RTOL if gate is nn.Hardsigmoid else 1e-10
    assert_same(run(ours, x, dy), run(theirs, x, dy), rtol)
    theirs.load_state_dict(ours.state_dict(), strict=True)


MODELS = {
    "resnet18-attn-layer": ("resnet18", lambda se: dict(block_args=dict(attn_layer=se))),
    "efficientnet-se-layer": ("test_efficientnet", lambda se: dict(se_layer=se)),
}


@pytest.mark.parametrize("name, options", MODELS.values(), ids=MODELS)
def test_inside_a_timm_model(native_place, timm, name, options):
    models = []
    for layer in (timm.layers.SEModule, FusedSE):
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=5, **options(layer))
        models.append(model.to(native_place.device).eval())
    theirs, ours = models
    blocks = [m for m in ours.modules() if isinstance(m, FusedSE)]
    assert blocks and not any(isinstance(m, timm.layers.SEModule) for m in ours.modules())
    assert all("one operator" in repr(m) for m in blocks)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = feature_map(native_place, 3, torch.float32, (32, 32))
    dy = torch.randn(3, 5, device=x.device)
    found, expected = run(ours, x, dy), run(theirs, x, dy)
    assert found.keys() == expected.keys()
    for key in found:
        difference = (found[key] - expected[key]).norm()
        assert difference <= 1e-3 * expected[key].norm(), key


def test_repr_shows_the_order_and_the_backend(place):
    order = "squeeze → fc1 → act → fc2 → gate → rescale"
    assert f"{order}, one operator, backend={place.backend}" in repr(small(place))
    normed = "squeeze → fc1 → norm → act → fc2 → gate → rescale, squeeze and rescale fused"
    assert normed in repr(small(place, norm_layer=nn.BatchNorm2d))


def _reload(module):
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    buffer.seek(0)
    fresh = copy.deepcopy(module)
    for parameter in fresh.parameters():
        nn.init.zeros_(parameter)
    fresh.load_state_dict(torch.load(buffer), strict=True)
    return fresh


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "state-dict": _reload,
}


@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("norm", [None, nn.BatchNorm2d], ids=["plain", "norm"])
def test_copies_compute_the_same(place, duplicate, norm):
    module, x = small(place, norm_layer=norm).eval(), feature_map(place, 8)
    with torch.no_grad():
        expected = module(x)
        twin = duplicate(module)
        for parameter in module.parameters():
            parameter.zero_()
        assert torch.equal(twin(x), expected) and not torch.equal(module(x), expected)


@pytest.mark.parametrize("arguments", [{}, dict(norm_layer=nn.BatchNorm2d, add_maxpool=True)],
                         ids=["whole", "composed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16],
                         ids=["fp32", "bf16", "fp16"])
def test_conversion_to_a_dtype(place, dtype, arguments):
    module, x = small(place, **arguments).to(dtype).eval(), feature_map(place, 8, dtype)
    exact = copy.deepcopy(module).double()(x.double())
    y = module(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), exact, rtol=4 * torch.finfo(dtype).eps, atol=1e-6)


def test_construction_on_meta_then_materialised(place):
    module = FusedSE(8, rd_channels=3, device="meta", dtype=torch.float64)
    assert module(torch.empty(2, 8, 3, 3, device="meta", dtype=torch.float64)).device.type == "meta"
    source, x = small(place), feature_map(place, 8)
    module = module.to_empty(device=place.device)
    module.load_state_dict(source.state_dict())
    torch.testing.assert_close(module(x), expected_of(source, x))


def test_map_without_spatial_dims_and_other_ranks(place):
    module = small(place)
    for size in ((), (6,), (3, 2), (2, 3, 2)):
        x = feature_map(place, 8, size=size)
        torch.testing.assert_close(module(x), expected_of(module, x))


def test_public_names():
    assert {"FusedSE", "backend", "rescale", "squeeze", "squeeze_excite"} <= set(se_fused.__all__)
