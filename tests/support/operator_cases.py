"""The shapes and parts with which the operators are tested, and a run of one."""

import torch
from pairwise import each_pair
from shapes import DENSE
from shapes import SHAPES as BLOCK_SHAPES

LIKE_X = ("y", "dx", "dr", "dy_times_g", "dx_max")
SHAPES = {name: shape for name, (shape, _) in BLOCK_SHAPES.items()} | {
    "5x3": (2, 20, 5, 3),
    "2x2": (3, 5, 2, 2),
    "whole-bytes-7x7": (2, 72, 7, 7),
    "one-position-one-channel": (2, 1, 1, 1),
    "longer-than-a-tile": (2, 5, 40, 41),
    "few-large-samples": (1, 67, 64, 48),
}
VARIANTS = {
    "training": {},
    "no-residual": dict(residual=False, add=False),
    "no-relu": dict(relu=False, masked=False),
    "neither": dict(residual=False, add=False, relu=False, masked=False),
    "eval": dict(train=False),
    "eval-no-residual": dict(train=False, residual=False, add=False),
    "no-norm": dict(norm=False),
    "no-norm-alone": dict(norm=False, residual=False, add=False, relu=False, masked=False),
    "maximum": dict(norm=False, maximum=True),
    "maximum-alone": dict(
        norm=False, maximum=True, mean=False, residual=False, add=False, relu=False, masked=False
    ),
}


def each_shape(**factors):
    """Pairs with every shape, in the layouts that it has."""
    return each_pair(
        lambda row: row["layout"] == "channels-last" and len(row["shape"]) < 4,
        shape=SHAPES, layout=DENSE, **factors,
    )  # fmt: skip


def run_and_check(operator, inputs):
    arguments = operator.arguments(inputs)
    tensors = [a for a in arguments if isinstance(a, torch.Tensor)]
    before = [t.clone() for t in tensors]
    found = operator.call(arguments)
    acc = torch.promote_types(inputs.x.dtype, torch.float32)
    storages = {t.untyped_storage().data_ptr() for t in tensors if t.numel()}
    for name, result in found.items():
        dtype = torch.uint8 if name == "mask" else inputs.x.dtype if name in LIKE_X else acc
        assert result.dtype == dtype, name
        assert result.untyped_storage().data_ptr() not in storages, f"{name} aliases an input"
    for tensor, copy in zip(tensors, before):
        assert torch.equal(tensor, copy), "an input was changed"
    operator.check(found, inputs)
    return found
