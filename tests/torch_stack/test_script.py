"""torch.jit.script: FusedSE and FusedBatchNormSE become plain PyTorch, with their values."""

import pytest
import torch
from reference import block
from torch import nn

from se_fused import FusedBatchNormSE, FusedSE

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.*deprecated:FutureWarning")
C, R = 24, 6
SHAPES = ((3, C), (2, C, 5), (2, C, 5, 4), (0, C, 5, 4), (2, C, 3, 2, 4))


class Excitation(nn.Module):
    def __init__(self, inputs):
        super().__init__()
        self.layer = nn.Linear(inputs, C)

    def forward(self, z):
        return torch.tanh(self.layer(z))


BLOCKS = {
    "mean": {},
    "maximum": dict(squeeze="max"),
    "mean-and-maximum": dict(squeeze="avg_max"),
    "add-maxpool": dict(add_maxpool=True),
    "both": dict(squeeze="concat"),
    "norm-and-other-activations": dict(
        norm_layer=nn.BatchNorm2d, act_layer=nn.ELU, gate_layer="hard_sigmoid"
    ),
    "excitation": dict(excitation=Excitation(C)),
    "excitation-of-both": dict(excitation=Excitation(2 * C), squeeze="concat"),
}


def make(options):
    width = {} if "excitation" in options else dict(rd_channels=R)
    return FusedSE(C, **width, **options)


@pytest.mark.parametrize("options", BLOCKS.values(), ids=BLOCKS)
def test_scripted_is_equal(options):
    for dtype, tolerance in ((torch.float64, 1e-13), (torch.float32, 1e-6)):
        module = make(options).to(dtype).eval()
        keys, modules = list(module.state_dict()), list(module.modules())
        scripted = torch.jit.script(module)
        for shape in SHAPES:
            x = torch.randn(shape, dtype=dtype)
            expected = module(x)
            torch.testing.assert_close(scripted(x), expected, rtol=tolerance, atol=tolerance)
        assert list(module.state_dict()) == keys and list(module.modules()) == modules


def test_scripted_against_the_formula():
    module = make({}).double()
    x = torch.randn(2, C, 5, 4, dtype=torch.float64)
    fc1, fc2 = module.fc1, module.fc2
    expected = block(x, fc1.weight, fc1.bias, fc2.weight, fc2.bias, "relu", "sigmoid")
    torch.testing.assert_close(torch.jit.script(module)(x), expected, rtol=1e-12, atol=1e-12)


def test_parameters_wider_than_the_map():
    module = make({})
    x = torch.randn(2, C, 5, 4).bfloat16()
    y = torch.jit.script(module)(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, module(x), rtol=2e-2, atol=2e-2)


def test_layout_is_kept():
    x = torch.randn(2, C, 5, 4).to(memory_format=torch.channels_last)
    assert torch.jit.script(make({}))(x).is_contiguous(memory_format=torch.channels_last)


def test_saved_in_a_network_without_our_operators(tmp_path):
    network = nn.Sequential(nn.Conv2d(3, C, 1), make({}), nn.Flatten()).double()
    scripted = torch.jit.script(network)
    operators = {node.kind() for node in scripted.inlined_graph.nodes()}
    assert operators and all(name.startswith(("aten::", "prim::")) for name in operators)
    scripted.save(tmp_path / "network.pt")
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    torch.testing.assert_close(torch.jit.load(tmp_path / "network.pt")(x), network(x))


TAILS = {
    "alone": {},
    "residual-and-relu": dict(add=True, post_act="relu"),
    "activation": dict(act="silu"),
    "unfused": dict(act=nn.ELU, norm_layer=nn.BatchNorm2d, add=True),
}


@pytest.mark.parametrize("options", TAILS.values(), ids=TAILS)
def test_scripted_end_of_a_block(options):
    module = FusedBatchNormSE(C, rd_channels=R, **options).double()
    x, residual = torch.randn(2, 3, C, 5, 4, dtype=torch.float64)
    maps = (x, residual) if module.add else (x,)
    module(*maps)
    module.eval()
    scripted = torch.jit.script(module)
    torch.testing.assert_close(scripted(*maps), module(*maps), rtol=1e-12, atol=1e-12)
    wrong = (x,) if module.add else (x, residual)
    with pytest.raises(torch.jit.Error, match="residual must be given if add is True, and only"):
        scripted(*wrong)
