"""What ``compiled.py`` compiles: targets, cases, and what runs the kernels on a case."""

import sys
from itertools import cycle, product
from pathlib import Path
from typing import NamedTuple

import torch
from triton.backends.compiler import GPUTarget

from se_fused.backends.triton.plan import Device
from se_fused.memory_format import mask_size

sys.path.append(str(Path(__file__).resolve().parents[1] / "support"))

from shapes import DTYPES  # noqa: E402

KB, MB = 1 << 10, 1 << 20
TARGETS = {  # with the properties of a card of the kind
    "sm_75": (GPUTarget("cuda", 75, 32), Device(40, 4 * MB, 64 * KB)),  # T4
    "sm_80": (GPUTarget("cuda", 80, 32), Device(108, 40 * MB, 163 * KB)),  # A100
    "sm_90": (GPUTarget("cuda", 90, 32), Device(132, 50 * MB, 227 * KB)),  # H100
    "sm_100": (GPUTarget("cuda", 100, 32), Device(148, 126 * MB, 227 * KB)),  # B200
    "sm_120": (GPUTarget("cuda", 120, 32), Device(170, 96 * MB, 99 * KB)),  # RTX 5090
    "gfx942": (GPUTarget("hip", "gfx942", 64), Device(304, 4 * MB, 64 * KB)),  # MI300X
    "gfx1100": (GPUTarget("hip", "gfx1100", 32), Device(48, 6 * MB, 64 * KB)),  # RX 7900 XTX
}


class Case(NamedTuple):
    shape: tuple[int, ...]
    channels_last: bool
    inside: int | None  # hidden width of an excitation in the reduce launch
    between: int | None  # and of one between the launches
    act: str = "relu"
    gate: str = "sigmoid"
    dtypes: tuple[str, ...] = tuple(DTYPES)
    wide: bool = True  # the map is taken 16 bytes at a time
    norm: str | None = None  # activation of a block with BatchNorm
    maximum: bool = False  # the squeeze has it too


CASES = {
    "contiguous-56x56": Case((32, 256, 56, 56), False, 16, 512, norm="silu"),
    "channels-last-56x56": Case(
        (32, 256, 56, 56), True, 16, 512, norm="identity", maximum=True
    ),
    "contiguous-14x14": Case((8, 256, 14, 14), False, 16, 512, maximum=True),
    "contiguous-7x7": Case((8, 512, 7, 7), False, 8, 512, norm="silu"),
    "contiguous-7x7-2048-channels": Case((32, 2048, 7, 7), False, None, 128, maximum=True),
    "channels-last-7x7": Case((8, 512, 7, 7), True, 8, 512),
    "channels-last-28x28-120-channels": Case((8, 120, 28, 28), True, 32, None),
    "wide-excitation": Case((8, 128, 28, 28), False, 256, None, "gelu", "tanh"),
    # Odd planes too large for several to a tile.
    "contiguous-95x95": Case((8, 160, 95, 95), False, 8, None, wide=False),
    "contiguous-int64": Case(
        (2700, 256, 56, 56), False, 16, None, dtypes=("bf16",), maximum=True
    ),
    "channels-last-int64": Case(
        (2700, 256, 56, 56), True, 16, None, dtypes=("bf16",), norm="silu"
    ),
}
# (target, dtype, case) of the test suite: every kernel for NVIDIA and for AMD, in every layout;
# and of its thorough tests.
EVERYDAY = [
    ("sm_90", "bf16", "channels-last-56x56"),
    ("sm_90", "fp32", "contiguous-7x7"),
    ("gfx942", "fp32", "channels-last-56x56"),
]
THOROUGH = [
    ("sm_90", "fp32", "contiguous-56x56"),
    ("sm_90", "bf16", "contiguous-14x14"),
    ("gfx942", "bf16", "contiguous-56x56"),
    ("gfx942", "bf16", "contiguous-7x7"),
]
# The case that launches every kernel, and two that launch most in the other layouts.
EVERY_KERNEL, OTHER_LAYOUTS = "channels-last-56x56", ("contiguous-56x56", "contiguous-7x7")


def everything(targets, dtypes, cases) -> list[tuple[str, str, str]]:
    """(target, dtype, case) of every combination that exists."""
    return [part for part in product(targets, dtypes, cases) if part[1] in CASES[part[2]].dtypes]


def covering(targets, dtypes, cases) -> list[tuple[str, str, str]]:
    """Every kernel for each target and in each dtype, most in the other layouts too, and each case
    once. Whatever else two of them could break together is left to ``everything``."""
    found, layouts = [], cycle([case for case in OTHER_LAYOUTS if case in cases])
    for at, target in enumerate(targets):
        if EVERY_KERNEL in cases:
            found.append((target, dtypes[at % len(dtypes)], EVERY_KERNEL))
        if layout := next(layouts, None):
            found.append((target, dtypes[(at + 1) % len(dtypes)], layout))
    others = [case for case in cases if case != EVERY_KERNEL and case not in OTHER_LAYOUTS]
    for at, case in enumerate(others):
        existing = [dtype for dtype in dtypes if dtype in CASES[case].dtypes]
        if existing:
            found.append((targets[at % len(targets)], existing[at % len(existing)], case))
    return found


def operations(case: Case, dtype: torch.dtype):
    """(name, call) of every function of the backend."""
    from se_fused.backends import triton as backend

    form = torch.channels_last if case.channels_last else torch.contiguous_format
    x, dy = (torch.empty(case.shape, dtype=dtype, memory_format=form) for _ in range(2))
    acc = torch.promote_types(dtype, torch.float32)
    samples, channels = case.shape[:2]
    z, g = (torch.zeros(samples, channels, dtype=acc) for _ in range(2))
    for where, hidden in (("inside", case.inside), ("between", case.between)):
        if hidden is None:
            continue
        sizes = (hidden, channels), (hidden,), (channels, hidden), (channels,)
        weights = *(torch.zeros(size, dtype=dtype) for size in sizes), case.act, case.gate
        yield (
            f"squeeze_excite {where}",
            lambda w=weights: backend.squeeze_excite(x, None, *w, False),
        )
        yield (
            f"squeeze_excite_backward {where}",
            lambda w=weights: backend.squeeze_excite_backward(dy, x, None, z, g, *w, False),
        )
    no_norm, linear = (None, None, None), "identity"
    yield "squeeze", lambda: backend.reduce_forward(x, *no_norm, linear, "mean")
    yield "rescale", lambda: backend.apply_forward(x, None, *no_norm, g, linear, False)
    for name, gate in (("gate_gradient", None), ("rescale_backward", g)):
        yield name, lambda gate=gate: backend.reduce_backward(
            dy, x, None, *no_norm, None, gate, linear
        )
    if case.maximum:
        yield "squeeze_max", lambda: backend.reduce_forward(x, *no_norm, linear, "max")
        yield "gate_gradient_max", lambda: backend.reduce_backward(
            dy, x, None, *no_norm, z, None, linear
        )
        yield "gradient_max", lambda: backend.apply_backward(
            dy, x, None, *no_norm, g, g, z, g, None, None, linear, False
        )
    if case.norm is None:
        return
    # Of a residual block in training, with BatchNorm and without.
    residual, mask = torch.empty_like(x), torch.zeros(mask_size(x), dtype=torch.uint8)
    norm = _, slope, offset = [torch.zeros(channels, dtype=acc) for _ in range(3)]
    yield "moments", lambda: backend.reduce_forward(x, *no_norm, linear, "moments")
    yield "squeeze with norm", lambda: backend.reduce_forward(x, *norm, case.norm, "mean")
    for name, parts, act in ((" with norm", norm, case.norm), (" with ReLU", no_norm, linear)):
        through = (slope, offset) if name == " with norm" else (None, None)
        yield f"rescale{name}", lambda n=parts, a=act: backend.apply_forward(
            x, residual, *n, g, a, True
        )
        yield f"sums{name}", lambda n=parts, a=act: backend.reduce_backward(
            dy, x, mask, *n, None, None, a
        )
        yield f"gradient{name}", lambda n=parts, a=act, t=through: backend.apply_backward(
            dy, x, mask, *n, g, g, None, None, *t, a, True
        )
    if case.inside is not None:
        sizes = (case.inside, channels), (case.inside,), (channels, case.inside), (channels,)
        inside = *(torch.zeros(size, dtype=dtype) for size in sizes), case.act, case.gate
        yield "squeeze_excite_backward with ReLU", lambda: backend.squeeze_excite_backward(
            dy, x, mask, z, g, *inside, True
        )
