"""Faults planted in launches of ``rescale``, and what a step over the stub driver says of each."""

import json
from typing import NamedTuple
from unittest.mock import patch

import stub_driver
import torch
import triton
import triton.language as tl
from launch_steps import Part, both_ways
from public_calls import ALL_CASES, Call, feature_map

import se_fused
from se_fused.backends import triton as backend
from se_fused.backends.triton import plan
from se_fused.backends.triton.feature_map import FeatureMap


@triton.jit
def one_more_kernel(
    x_ptr, residual_ptr, center_ptr, scale_ptr, shift_ptr, g_ptr, y_ptr, mask_ptr, channels,
    spatial, more,
    LAYOUT: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr, PLANE: tl.constexpr,
    ALIGN: tl.constexpr, INT64: tl.constexpr, NORM_ACT: tl.constexpr,
):  # fmt: skip
    tl.store(y_ptr, tl.load(x_ptr))


@triton.jit
def one_less_kernel(
    x_ptr, residual_ptr, center_ptr, scale_ptr, shift_ptr, g_ptr, y_ptr, mask_ptr, channels,
    LAYOUT: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr, PLANE: tl.constexpr,
    ALIGN: tl.constexpr, INT64: tl.constexpr, NORM_ACT: tl.constexpr,
):  # fmt: skip
    tl.store(y_ptr, tl.load(x_ptr))


@triton.jit
def no_align_kernel(
    x_ptr, residual_ptr, center_ptr, scale_ptr, shift_ptr, g_ptr, y_ptr, mask_ptr, channels,
    spatial,
    LAYOUT: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr, PLANE: tl.constexpr,
    INT64: tl.constexpr, NORM_ACT: tl.constexpr,
):  # fmt: skip
    tl.store(y_ptr, tl.load(x_ptr))


class Fault(NamedTuple):
    place: object
    name: str
    value: object
    says: str


def _grid(programs):
    return property(lambda feature_map: (programs,))


FAULTS = {
    "argument-too-few": Fault(
        backend, "_apply_forward_kernel", one_more_kernel,
        "missing 1 required positional argument: 'more'",
    ),
    "argument-too-many": Fault(
        backend, "_apply_forward_kernel", one_less_kernel, "multiple values for argument 'LAYOUT'"
    ),
    "unknown-keyword": Fault(
        backend, "_apply_forward_kernel", no_align_kernel, "ALIGN was specified"
    ),
    "empty-grid": Fault(
        FeatureMap, "apply_grid", _grid(0), "was not launched, its grid is (0,)"
    ),
    "grid-beyond-int32": Fault(FeatureMap, "apply_grid", _grid(1 << 31), "OverflowError"),
    "another-grid": Fault(FeatureMap, "apply_grid", _grid(3), "the grid is [3, 1, 1], not"),
    "launch-left-out": Fault(
        backend, "apply_forward", lambda x, *parts: (torch.empty_like(x), x.new_empty(0)),
        "launched [], expected ['apply_forward']",
    ),
    "too-many-warps": Fault(plan, "WARPS", 64, "threads"),
}  # fmt: skip


def print_faults():
    """In the process that has the stub."""
    library = stub_driver.install()
    part = Part("channels-last-odd-9x11", "fp32", plan.WARPS, reads_code=False)
    x = feature_map(ALL_CASES[part.case], torch.float32)
    gate = torch.zeros(x.shape[:2])
    call = Call("rescale", lambda: se_fused.rescale(x, gate), [], ("apply_forward",), None)
    found = {}
    for name, fault in FAULTS.items():
        with patch.object(fault.place, fault.name, fault.value):
            [step] = both_ways(library, part, call, set())
        found[name] = step.faults()
    [step] = both_ways(library, part, call, set())
    assert not step.faults(), step.faults()
    print(json.dumps(found))
