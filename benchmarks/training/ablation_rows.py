"""The rows of the paper's ablations, with its ImageNet figures, and networks for them.

Source: Hu et al., arXiv 1709.01507, section 6, tables 10 to 14, all of ResNet-50, where the layers
of SE have no biases.
"""

from typing import NamedTuple

import torch
from lib import models
from torch import nn

from se_fused import insert_se


class SE(NamedTuple):
    """Arguments of ``insert_se``; reduction None is the ratio that the user asks for."""

    reduction: float | tuple[float, ...] | None = None
    where: str = "standard"
    stages: tuple[int, ...] | None = None
    squeeze: str = "avg"
    gate: str = "sigmoid"


class Paper(NamedTuple):
    """Errors in % and parameters in millions; None where the table has none."""

    top1_error: float
    top5_error: float
    parameters: float | None = None


class Row(NamedTuple):
    name: str
    se: SE | None  # None: the network as it is
    paper: Paper | None = None  # None: the paper has no such row


class Table(NamedTuple):
    number: int
    title: str
    rows: tuple[Row, ...]


TABLES = {
    "reduction": Table(10, "reduction ratio", (
        Row("2", SE(2), Paper(22.29, 6.00, 45.7)),
        Row("4", SE(4), Paper(22.25, 6.09, 35.7)),
        Row("8", SE(8), Paper(22.26, 5.99, 30.7)),
        Row("16", SE(16), Paper(22.28, 6.03, 28.1)),
        Row("32", SE(32), Paper(22.72, 6.20, 26.9)),
        Row("without SE", None, Paper(23.30, 6.55, 25.6)),
    )),
    "squeeze": Table(11, "squeeze", (
        Row("max", SE(squeeze="max"), Paper(22.57, 6.09)),
        Row("avg", SE(squeeze="avg"), Paper(22.28, 6.03)),
        Row("avg_max", SE(squeeze="avg_max")),
        Row("concat", SE(squeeze="concat")),
    )),
    "gate": Table(12, "gate", (
        Row("ReLU", SE(gate="relu"), Paper(23.47, 6.98)),
        Row("Tanh", SE(gate="tanh"), Paper(23.00, 6.38)),
        Row("Sigmoid", SE(gate="sigmoid"), Paper(22.28, 6.03)),
    )),
    "stages": Table(13, "stages with SE", (
        Row("stage 2", SE(stages=(2,)), Paper(23.03, 6.48, 25.6)),
        Row("stage 3", SE(stages=(3,)), Paper(23.04, 6.32, 25.7)),
        Row("stage 4", SE(stages=(4,)), Paper(22.68, 6.22, 26.4)),
        Row("all", SE(), Paper(22.28, 6.03, 28.1)),
    )),
    "integration": Table(14, "place of SE", (
        Row("SE", SE(where="standard"), Paper(22.28, 6.03)),
        Row("SE-PRE", SE(where="pre"), Paper(22.23, 6.00)),
        Row("SE-POST", SE(where="post"), Paper(22.78, 6.35)),
        Row("SE-Identity", SE(where="identity"), Paper(22.20, 6.15)),
    )),
}  # fmt: skip

SMALL = "resnet20"
# The stages of the small network are counted as the paper counts, whose first is the stem.
STAGES = {2: slice(0, 3), 3: slice(3, 6), 4: slice(6, 9)}
# What SE follows in its blocks, by the end of the name; "" is the block itself.
PLACES = {"standard": ".bn2", "pre": ".branch", "post": "", "identity": ".shortcut"}


def rows_of(name: str, ratio: float, ratios: tuple[float, ...]) -> list[Row]:
    """The rows of a table, with this ratio where they have none of their own; in the table of
    ratios one more with these: one for all stages, or one for each."""
    rows = [
        row._replace(se=row.se and row.se._replace(reduction=row.se.reduction or ratio))
        for row in TABLES[name].rows
    ]
    se = SE(ratios[0] if len(ratios) == 1 else ratios)
    if name == "reduction" and ratios and se not in [row.se for row in rows]:
        rows.append(Row(" / ".join(f"{ratio:g}" for ratio in ratios), se))
    return rows


def network(model: str, width: int, num_classes: int, se: SE | None, seed: int) -> nn.Module:
    """The network with this SE; its other weights are those of this seed whatever the SE is.

    Raises ValueError where ``insert_se`` cannot put it there.
    """
    torch.manual_seed(seed)
    if model != SMALL:
        plain = models.from_library(model, num_classes)
        if se is not None:
            insert_se(plain, bias=False, **{**se._asdict(), "reduction": _listed(se.reduction)})
        return plain
    plain = models.ResNet20(num_classes, has_se=False, width=width)
    if se is not None:
        stages = se.stages or tuple(STAGES)
        ratios = se.reduction if isinstance(se.reduction, tuple) else (se.reduction,) * len(stages)
        if len(ratios) != len(stages):
            raise ValueError(
                f"reduction must be one ratio, or one for each of the stages "
                f"{', '.join(map(str, stages))}; got {len(ratios)}"
            )
        for stage, ratio in zip(stages, ratios):
            blocks = plain.blocks[STAGES[stage]]
            channels = blocks[-1].conv2.out_channels
            if channels < ratio:
                raise ValueError(
                    f"{ratio:g} leaves no hidden unit of the {channels} channels of stage {stage}"
                )
            insert_se(
                blocks, reduction=ratio, squeeze=se.squeeze, gate=se.gate, bias=False,
                blocks=_followed(PLACES[se.where]),
            )  # fmt: skip
    return plain


def _listed(reduction):
    return list(reduction) if isinstance(reduction, tuple) else reduction


def _followed(end: str):
    """For ``insert_se``: the channels of what is at this place of each block."""
    channels = {}

    def blocks(name, module):
        if isinstance(module, models.BasicBlock):
            first, last = module.conv1.in_channels, module.conv2.out_channels
            channels[name + end] = first if end == ".branch" else last
        return channels.get(name)

    return blocks
