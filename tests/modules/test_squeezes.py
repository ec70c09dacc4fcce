"""FusedSE with other squeezes than the mean, and with a module for its excitation."""

import copy
import io

import pytest
import torch
from block_functions import KINDS
from module_cases import PARTS, PASSES, Count, assert_same, feature_map, run
from reference import SQUEEZES, block, spatial_max, spatial_mean
from selection import each_pair_on
from torch import nn

from se_fused import FusedBatchNormSE, FusedSE, fuse, replace_se
from se_fused.modules.batch_norm_se import block_specification

C, R = 8, 3
each_kind = pytest.mark.parametrize("kind", KINDS)
FORMATS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}


class Plain(nn.Module):
    """The twin of FusedSE, as users write it."""

    def __init__(self, se: FusedSE, kind: str):
        super().__init__()
        self.kind = kind
        for name, layer in se.named_children():
            self.add_module(name, copy.deepcopy(layer))

    def forward(self, x):
        z = spatial_mean(x) if self.kind == "avg" else SQUEEZES[self.kind](
            spatial_mean(x), spatial_max(x)
        )
        if hasattr(self, "excitation"):
            g = self.excitation(z)
        else:
            g = self.gate(self.fc2(self.act(self.bn(self.fc1(z[:, :, None, None])))))
        return x * g.reshape(x.shape[:2] + (1, 1))


def small(place, **arguments):
    return FusedSE(C, rd_channels=R, dtype=torch.float64, device=place.device, **arguments)


LAYERS = {
    "plain": ({}, PASSES),
    "silu-tanh-no-bias": (dict(act_layer="silu", gate_layer=nn.Tanh, bias=False), PASSES),
    "norm": (dict(norm_layer=nn.BatchNorm2d), PARTS),
    "unknown-act": (dict(act_layer=nn.ELU), PARTS),
}


@each_pair_on(kind=KINDS, memory_format=FORMATS, layers=LAYERS)
def test_equals_the_plain_block(place, kind, memory_format, layers):
    layers, called = layers
    se = small(place, squeeze=kind, **layers)
    plain = Plain(se, kind)
    x = feature_map(place, C).contiguous(memory_format=memory_format)
    dy = torch.randn_like(x)
    with Count() as count:
        found = run(se, x, dy)
    assert count.called == called
    assert_same(found, run(plain, x, dy))
    assert found["y"].stride() == found["dx"].stride() == x.stride()
    assert se.fc1.weight.shape == (R, 2 * C if kind == "concat" else C, 1, 1)


@each_kind
def test_repr_says_the_squeeze(place, kind):
    order = f"squeeze by {kind} → fc1 → act → fc2 → gate → rescale"
    assert f"{order}, one function, backend={place.backend}" in repr(small(place, squeeze=kind))
    parts = repr(small(place, squeeze=kind, norm_layer=nn.BatchNorm2d))
    assert f"squeeze by {kind} → fc1 → norm → " in parts and "squeeze and rescale fused" in parts


def test_maxpool_is_a_squeeze(place):
    by_name, by_flag = small(place, squeeze="avg_max"), small(place, add_maxpool=True)
    by_flag.load_state_dict(by_name.state_dict())
    x = feature_map(place, C)
    assert by_flag.squeeze == "avg_max" and torch.equal(by_name(x), by_flag(x))
    by_name.squeeze = by_flag.squeeze = "avg"
    fc1, fc2 = by_name.fc1, by_name.fc2
    expected = block(x, fc1.weight, fc1.bias, fc2.weight, fc2.bias, "relu", "sigmoid")
    torch.testing.assert_close(by_name(x), expected)
    torch.testing.assert_close(by_flag(x), expected)


def test_hooks_on_a_layer_fire(place):
    se, x = small(place, squeeze="concat"), feature_map(place, C)
    expected, seen = se(x), []
    se.fc1.register_forward_hook(lambda layer, args, result: seen.append(args[0].shape))
    torch.testing.assert_close(se(x), expected)
    assert seen == [(3, 2 * C, 1, 1)]


@each_kind
def test_copies_and_state(place, kind):
    se, x = small(place, squeeze=kind), feature_map(place, C)
    buffer = io.BytesIO()
    torch.save(se, buffer)
    buffer.seek(0)
    for twin in (copy.deepcopy(se), torch.load(buffer, weights_only=False)):
        assert torch.equal(twin(x), se(x))
    assert list(se.state_dict()) == list(FusedSE(C).state_dict())


def excitation(inputs=C, place=None):
    layers = nn.Sequential(
        nn.Linear(inputs, R), nn.LayerNorm(R), nn.GELU(), nn.Linear(R, C), nn.Softsign()
    )
    return layers if place is None else layers.to(place.device, torch.float64)


@each_pair_on(kind=list(SQUEEZES), memory_format=FORMATS)
def test_module_as_the_excitation(place, kind, memory_format):
    layers = excitation(2 * C if kind == "concat" else C, place)
    se = FusedSE(C, excitation=layers, squeeze=kind)
    assert [name for name, _ in se.named_children()] == ["excitation"]
    x = feature_map(place, C).contiguous(memory_format=memory_format)
    dy = torch.randn_like(x)
    with Count() as count:
        found = run(se, x, dy)
    assert count.called == PARTS
    assert_same(found, run(Plain(se, kind), x, dy))
    name = "squeeze" if kind == "avg" else f"squeeze by {kind}"
    text = f"{name} → excitation → rescale, squeeze and rescale fused, backend={place.backend}"
    assert text in repr(se)


class Trailing(nn.Module):
    """No parameters, a gate with dims of size 1."""

    def forward(self, z):
        return torch.sigmoid(z)[:, :, None, None]


def test_excitation_without_parameters(place):
    se, x = FusedSE(C, excitation=Trailing()), feature_map(place, C)
    torch.testing.assert_close(se(x), x * torch.sigmoid(x.mean((2, 3), keepdim=True)))
    assert "rescale, squeeze and rescale fused\n" in repr(se)
    assert torch.equal(copy.deepcopy(se)(x), se(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("parameters", ["16-bit", "float32"])
def test_excitation_beside_a_16_bit_map(place, dtype, parameters):
    layers = excitation().to(place.device, dtype if parameters == "16-bit" else torch.float32)
    x = feature_map(place, C, dtype)
    y = FusedSE(C, excitation=layers)(x)
    exact = Plain(FusedSE(C, excitation=copy.deepcopy(layers).double()), "avg")(x.double())
    assert y.dtype == dtype
    torch.testing.assert_close(
        y.double(), exact, rtol=0, atol=8 * torch.finfo(dtype).eps * exact.abs().max().item()
    )


def test_gate_that_is_no_tensor_is_named():
    layers = nn.LSTM(C, C)
    with pytest.raises(TypeError, match="gate must be a tensor, got tuple"):
        FusedSE(C, excitation=layers)(torch.randn(3, C, 5, 7))


def test_gate_of_another_shape_is_named():
    x = torch.randn(3, C, 5, 7)
    for layers in (nn.Linear(C, R), nn.Flatten(0)):
        with pytest.raises(ValueError, match=r"gate must have shape \(3, 8\).* got \("):
            FusedSE(C, excitation=layers)(x)


def test_excitation_in_export_and_compile():
    se = FusedSE(C, excitation=excitation(2 * C), squeeze="concat").eval()
    x = torch.randn(3, C, 5, 7)
    program = torch.export.export(se, (x,))
    targets = [str(node.target) for node in program.graph.nodes]
    assert not any("se_fused" in target for target in targets)
    torch.testing.assert_close(program.module()(x), se(x))
    compiled = torch.compile(se, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), se(x))


class Block(nn.Module):
    def __init__(self, se):
        super().__init__()
        self.bn, self.se, self.act = nn.BatchNorm2d(C), se, nn.ReLU()

    def forward(self, x):
        return self.act(self.se(self.bn(x)) + x)


OTHERS = {kind: dict(squeeze=kind) for kind in KINDS}
OTHERS["excitation"] = dict(excitation=excitation())


@pytest.mark.parametrize("arguments", OTHERS.values(), ids=OTHERS)
def test_blocks_with_batch_norm_stay_in_parts(arguments):
    net = nn.Sequential(Block(FusedSE(C, **arguments)))
    bn, x = net[0].bn, torch.randn(2, C, 3, 3)
    assert block_specification(bn, None, net[0].se, x, None, None) is None
    report = fuse(net)
    assert [entry.reason for entry in report.left] == ["it does not run as one operator"]
    assert block_specification(bn, None, FusedSE(C), x, None, None) is not None


def test_batch_norm_block_with_maxpool_computes_one_by_one():
    module = FusedBatchNormSE(C, add_maxpool=True, dtype=torch.float64)
    x = torch.randn(4, C, 5, 7, dtype=torch.float64)
    plain = Plain(module.se, "avg_max")
    expected = plain(nn.functional.batch_norm(x, None, None, training=True))
    torch.testing.assert_close(module(x), expected)


def test_excitation_is_not_swapped():
    """What has the layers of SE inside of a FusedSE squeezes no map."""
    layers = nn.Sequential(nn.Linear(C, R), nn.ReLU(), nn.Linear(R, C), nn.Sigmoid())
    net = nn.Sequential(FusedSE(C, excitation=layers))
    assert not replace_se(net).replaced and type(net[0].excitation) is nn.Sequential
