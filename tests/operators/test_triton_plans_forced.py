"""What only the Triton backend decides: every decision, forced, gives the same values."""

import pytest
import torch
from block_operators import OPERATORS
from pairwise import each_pair
from shapes import DENSE, LARGE, SHAPES, make_inputs

WHY = "triton is not installed; eager and cpp are tested"
plan = pytest.importorskip("se_fused.backends.triton.plan", reason=WHY)
feature_map = pytest.importorskip("se_fused.backends.triton.feature_map", reason=WHY)

CASES = {name: {**SHAPES, **LARGE}[name] for name in ("7x7", "3d", "many-samples", "5x157")} | {
    "flat-7x7": ((2, 72, 7, 7), 4)
}
FORCED = {
    "excitation-between-the-launches": (plan, "excites_in_reduce", lambda *_: False),
    "excitation-in-the-launch": (plan, "excites_in_reduce", lambda *_: True),
    "int64-offsets": (feature_map, "_INT64_FROM", 0),
    "no-split-planes": (plan, "PROGRAMS_PER_MULTIPROCESSOR", 0),
    "split-planes": (plan, "PROGRAMS_PER_MULTIPROCESSOR", 1000),
    "splits-of-several-rounds": (plan, "BUSY_PROGRAMS", 1000),
    "no-flat-tiles": (plan, "ACCESS_BYTES", 1),
}


@pytest.fixture(autouse=True)
def forget_plans():
    plan.plan.cache_clear()
    yield
    plan.plan.cache_clear()


@pytest.mark.usefixtures("poisoned_allocations")
@each_pair(
    case=CASES,
    forced=FORCED,
    layout=DENSE,
    dtype={"fp32": torch.float32, "bf16": torch.bfloat16},
)
def test_values(triton_place, monkeypatch, case, forced, layout, dtype):
    shape, hidden = case
    monkeypatch.setattr(*forced)
    inputs = make_inputs(shape, hidden, triton_place.device, dtype, layout=layout)
    for operator in OPERATORS.values():
        operator.check(operator.call(operator.arguments(inputs)), inputs)
