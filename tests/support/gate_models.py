"""Models with blocks of every kind, their twins in plain PyTorch, and the gates of both."""

import copy

import pytest
import torch
from norm_twins import norm_twins
from residual_blocks import Block, Net
from torch import nn
from twins import C, PlainSE, R, twins

from se_fused import FusedSE, fuse, insert_se, record_gates, replace_se
from se_fused.gates import GateRecord

N = 4


def _fused():
    """Blocks that ``fuse`` has fused, and SE that stands alone."""
    plain = Net(nn.Sequential(Block(se=PlainSE()), PlainSE())).double()
    model = copy.deepcopy(plain)
    assert len(replace_se(model).replaced) == 2 and len(fuse(model).replaced) == 1
    return plain, model


def _fused_batch_norm():
    plain, fused = (Net(norm).double() for norm in norm_twins(act="silu", post_act="relu"))
    fused.load_state_dict(plain.state_dict())
    return plain, fused


def _squeezed(kind):
    plain = Net(PlainSE(add_maxpool=True)).double()
    model = Net(FusedSE(C, rd_channels=R, squeeze=kind)).double()
    model.load_state_dict(plain.state_dict())
    return plain, model


def _excitation():
    plain = Net(PlainSE()).double()
    se = plain.block
    layers = nn.Sequential(nn.Unflatten(1, (C, 1, 1)), se.fc1, se.act, se.fc2, se.gate)
    model = copy.deepcopy(plain)
    model.block = FusedSE(C, excitation=copy.deepcopy(layers))
    return plain, model


def _inserted(fused):
    plain = Net(nn.Sequential(nn.BatchNorm2d(C), PlainSE())).double()
    model = Net(nn.Sequential(nn.BatchNorm2d(C))).double()
    insert_se(model, reduction=C / R, blocks=lambda _, m: C if type(m) is nn.BatchNorm2d else None)
    state = plain.state_dict()
    model.load_state_dict({name.replace("block.1", "block.0_se"): t for name, t in state.items()})
    assert not fused or len(fuse(model).replaced) == 1
    return plain, model


# Pairs of a model in plain PyTorch and ours, with the same parameters.
MODELS = {
    "one-operator": lambda: twins("one-operator"),
    "in-parts": lambda: twins("composed"),
    "swapped": lambda: twins("swapped"),
    "fused-blocks": _fused,
    "fused-batch-norm": _fused_batch_norm,
    "squeeze-by-avg-max": lambda: _squeezed("avg_max"),
    "excitation-of-ones-own": _excitation,
    "inserted": lambda: _inserted(fused=False),
    "inserted-and-fused": lambda: _inserted(fused=True),
}
each_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


def plain_gates(plain, x):
    """The gates of each SE module of a model in plain PyTorch, which all end in a sigmoid."""
    found = []
    hooks = [
        module.register_forward_hook(lambda module, args, g: found.append(g.detach().flatten(1)))
        for module in plain.modules() if isinstance(module, nn.Sigmoid)
    ]  # fmt: skip
    plain(x)
    for hook in hooks:
        hook.remove()
    return found


def recorded_gates(model, x, run=None):
    """The gates that a record has of each block, by way of a class for each sample."""
    with record_gates(model) as record:
        record.labels = range(len(x))
        model(x) if run is None else run(x)
    means = record.mean_per_class()
    assert all(sums.samples == len(x) for sums in record.blocks.values())
    return {name: torch.stack([*of.values()]) for name, of in means.items()}


def block(gate_layer="sigmoid", weight=0.0, bias=0.0):
    """An SE block whose gates are all ``gate(bias)`` where its weights are zero."""
    se = FusedSE(C, rd_channels=R, gate_layer=gate_layer).double()
    nn.init.constant_(se.fc2.weight, weight)
    nn.init.constant_(se.fc2.bias, bias)
    return se


def record_of(model, *batches, near=0.05, labels=()) -> GateRecord:
    with record_gates(model, near=near) as record:
        for index, x in enumerate(batches):
            if labels:
                record.labels = labels[index]
            model(x)
    return record


def maps(batch=4):
    return torch.randn(batch, C, 3, 5, dtype=torch.float64)
