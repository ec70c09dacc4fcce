"""The judge must reject: every fault planted here is one that a kernel could have."""

import pytest
import reference
import torch
from shapes import make_inputs


@pytest.fixture(scope="module")
def inputs():
    torch.manual_seed(0)
    return make_inputs((2, 3, 5, 157), 2, "cpu", torch.bfloat16, weight_dtype=torch.float32)


@pytest.fixture(scope="module")
def right(inputs):
    """Correct results in the dtypes of the operators: float32, and y and dx rounded once."""
    found = reference.results(inputs, torch.float64)
    return {
        name: t.to(torch.bfloat16 if name in ("y", "dx") else torch.float32)
        for name, t in found.items()
    }


def test_correct_results_pass(inputs, right):
    reference.check(right, inputs)


def summed_in_bf16(inputs, right):
    total = torch.zeros(2, 3, dtype=torch.bfloat16)
    for column in inputs.x.flatten(2).unbind(2):
        total += column
    return {"z": (total / 785).float()}


FAULTS = {
    "sum-accumulated-in-bf16": summed_in_bf16,
    "sum-rounded-to-bf16": lambda i, r: {"z": r["z"].bfloat16().float()},
    "product-rounded-too-often": lambda i, r: {"dw1": r["dw1"].bfloat16().float()},
    "one-element-forgotten": lambda i, r: {"y": r["y"].index_fill(3, torch.tensor([156]), 0)},
    "one-element-nan": lambda i, r: {"y": r["y"].index_fill(3, torch.tensor([156]), float("nan"))},
    "last-column-missing-in-the-mean": lambda i, r: {"z": i.x[..., :-1].float().sum((2, 3)) / 785},
    "gradient-of-the-mean-forgotten": lambda i, r: {"dx": r["dy_times_g"]},
    "gradient-counted-twice": lambda i, r: {"dw2": 2 * r["dw2"]},
    "two-channels-swapped": lambda i, r: {"g": r["g"][:, [1, 0, 2]]},
    "float64-computed-in-float32": lambda i, r: {"dp2": r["dp2"].double()},
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_planted_fault_is_rejected(fault, inputs, right):
    with pytest.raises(AssertionError, match="error"):
        reference.check(fault(inputs, right), inputs)


def test_wrong_shape_is_rejected(inputs, right):
    with pytest.raises(AssertionError, match="shape"):
        reference.check({"z": right["z"][:1]}, inputs)


@pytest.mark.parametrize("act", reference.ACTS)
@pytest.mark.parametrize("gate", reference.GATES)
def test_block_and_results_are_the_same_formula(act, gate):
    inputs = make_inputs((2, 3, 4, 5), 2, "cpu", torch.float64, act=act, gate=gate)
    torch.testing.assert_close(
        reference.block(*inputs.block), reference.results(inputs, torch.float64)["y"]
    )
