"""FusedBatchNormSE and its twin in plain PyTorch: equal names, equal parameters."""

import formulas
import pytest
import torch
from torch import Tensor, nn
from twins import COMPOSED, C, PlainSE, R

from se_fused import FusedBatchNormSE, functional


class Hardswish(nn.Module):
    """nn.Hardswish has a float32 1/6 in float64 on a GPU."""

    def forward(self, p):
        return formulas.ACTS["hardswish"](p)


ACTS = {None: nn.Identity, "relu": nn.ReLU, "silu": nn.SiLU, "hardswish": Hardswish,
        "gelu": nn.GELU, "tanh": nn.Tanh}


class Plain(nn.Module):
    """FusedBatchNormSE with these arguments, as users write it."""

    def __init__(self, act=None, add=False, post_act=None, bias=True, se=None, **batch_norm):
        super().__init__()
        self.bn = nn.BatchNorm2d(C, **batch_norm)
        self.act, self.se, self.post_act = ACTS[act](), PlainSE(**(se or {})), ACTS[post_act]()
        if not bias:
            self.se.fc1.bias = self.se.fc2.bias = None

    def forward(self, x, residual=None):
        y = self.se(self.act(self.bn(x)))
        return self.post_act(y if residual is None else y + residual)


# Of the module. What they have in common runs fused.
FUSED = {
    "add-relu": dict(add=True, post_act="relu"),
    "relu-before": dict(act="relu"),
    "silu-before": dict(act="silu"),
    "hardswish-add-relu": dict(act="hardswish", add=True, post_act="relu"),
    "alone": dict(),
    "no-average-momentum": dict(momentum=None, add=True, post_act="relu"),
    "momentum-and-eps": dict(momentum=0.7, eps=0.1, add=True),
    "no-affine": dict(affine=False, post_act="relu"),
    "no-running-statistics": dict(track_running_stats=False, add=True, post_act="relu"),
    "no-biases-of-se": dict(bias=False, add=True, post_act="relu"),
}
UNFUSED = {
    "gelu-before": dict(act="gelu", add=True, post_act="relu"),
    "tanh-after": dict(add=True, post_act="tanh"),
    "silu-after": dict(add=True, post_act="silu"),
    "maxpool": dict(se=dict(add_maxpool=True), add=True, post_act="relu"),
    "norm-in-se": dict(se=COMPOSED, act="silu"),
}


def norm_twins(dtype=torch.float64, device="cpu", se=None, **options):
    """The plain module and the fused one, with the same random parameters."""
    plain = Plain(se=se, **options)
    with torch.no_grad():
        for name, p in plain.named_parameters():
            p.normal_(mean=float(name == "bn.weight"), std=0.4)
    fused = FusedBatchNormSE(C, rd_channels=R, **options, **(se or {}))
    fused.load_state_dict(plain.state_dict())
    return plain.to(device, dtype), fused.to(device, dtype)


def maps(batch=4, size=(6, 5), dtype=torch.float64, device="cpu", add=True) -> list[Tensor]:
    """x, and a residual if one is added."""
    return [torch.randn(batch, C, *size, dtype=torch.float64).to(device, dtype)
            for _ in range(1 + add)]


def step(module, inputs, function=None) -> dict[str, Tensor]:
    """y, all gradients, and the buffers afterwards."""
    inputs = [t.detach().requires_grad_() for t in inputs]
    module.zero_grad()
    y = (module if function is None else function)(*inputs)
    y.square().sum().backward()
    found = {name: p.grad for name, p in module.named_parameters()}
    found |= {name: t.clone() for name, t in module.named_buffers()}
    return {"y": y.detach(), "gradients": [t.grad for t in inputs]} | found


@pytest.fixture
def fused_calls(monkeypatch) -> list:
    """One element for each fused call."""
    calls, function = [], functional.batch_norm_squeeze_excite

    def counted(x, *args, **kwargs):
        calls.append(x.shape)
        return function(x, *args, **kwargs)

    monkeypatch.setattr(functional, "batch_norm_squeeze_excite", counted)
    return calls
