"""The public functions on one case, and the launches that each makes, forward and backward."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from compiled_cases import CASES, Case
from torch import Tensor

import se_fused
from se_fused import FusedBatchNormSE, FusedSE

# Cases of launches alone: odd sizes, where nothing is aligned, and few dims.
ODD = {
    "odd-5x7": Case((3, 33, 5, 7), False, 6, 300, norm="silu", maximum=True, wide=False),
    "channels-last-odd-9x11": Case(
        (2, 19, 9, 11), True, 3, 300, norm="identity", maximum=True, wide=False
    ),
    "odd-95x95": Case((2, 13, 95, 95), False, 4, None, maximum=True, wide=False),
    "no-spatial-dims": Case((5, 20), False, 7, None, maximum=True, wide=False),
    "1x1": Case((3, 20, 1, 1), False, 5, None, norm="hardswish", maximum=True, wide=False),
    "3d": Case((2, 20, 3, 5, 4), True, 6, None, maximum=True, wide=False),
}
EMPTY = {
    "no-samples": Case((0, 20, 7, 7), False, 5, None, norm="silu", wide=False),
    "no-samples-no-spatial-dims": Case((0, 20), False, 5, None, wide=False),
}
ALL_CASES = CASES | ODD | EMPTY
LARGE = 1 << 31  # elements, from which offsets are int64: no memory of such a map is touched
TOUCHED = 1 << 22  # elements of the largest map that plain PyTorch may write

# Kernels that a call launches, forward and backward, without "_kernel".
FORWARD, BACKWARD = ("reduce_forward", "apply_forward"), ("reduce_backward", "apply_backward")
BLOCK = FORWARD, BACKWARD


class Call(NamedTuple):
    name: str
    run: Callable[[], Tensor]
    wanted: list[Tensor]  # the gradients that are
    forward: tuple[str, ...]
    backward: tuple[str, ...] | None  # None: not run


def public_calls(case: Case, dtype: torch.dtype, weight_dtype: torch.dtype) -> Iterator[Call]:
    x, residual = (feature_map(case, dtype).requires_grad_() for _ in range(2))
    channels = x.shape[1]
    for where, hidden in (("inside", case.inside), ("between", case.between)):
        if hidden is None:
            continue
        se = FusedSE(
            channels, rd_channels=hidden, act_layer=case.act, gate_layer=case.gate
        ).to(weight_dtype)
        parameters = list(se.parameters())
        yield Call(f"FusedSE {where}", lambda se=se: se(x), [x, *parameters], *BLOCK)
    if x.numel() < LARGE:
        yield from _functions(x, residual, case.inside or 4, weight_dtype)
    if case.norm is not None:
        yield from _tails(case.norm, x, residual, weight_dtype)


def feature_map(case: Case, dtype: torch.dtype) -> Tensor:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    form = formats[len(case.shape)] if case.channels_last else torch.contiguous_format
    return torch.empty(case.shape, dtype=dtype, memory_format=form)


def _functions(
    x: Tensor, residual: Tensor, hidden: int, weight_dtype: torch.dtype
) -> Iterator[Call]:
    channels = x.shape[1]
    w1, b1, w2, b2 = weights = _weights(channels, channels, hidden, weight_dtype)
    fixed = [t.detach() for t in weights]
    frozen = x.detach()
    gate = torch.zeros(x.shape[:2], dtype=weight_dtype, requires_grad=True)
    yield Call(
        "squeeze_excite", lambda: se_fused.squeeze_excite(x, *weights), [x, *weights], *BLOCK
    )
    yield Call(
        "squeeze_excite without biases", lambda: se_fused.squeeze_excite(x, w1, None, w2, None),
        [x, w1, w2], *BLOCK,
    )  # fmt: skip
    yield Call(
        "squeeze_excite of a fixed map", lambda: se_fused.squeeze_excite(frozen, *weights),
        weights, FORWARD, BACKWARD[:1],
    )  # fmt: skip
    yield Call(
        "squeeze_excite of fixed weights", lambda: se_fused.squeeze_excite(x, *fixed), [x], *BLOCK
    )
    yield Call(
        "squeeze_excite_add_act",
        lambda: se_fused.squeeze_excite_add_act(x, residual, *weights),
        [x, residual, *weights], *BLOCK,
    )  # fmt: skip
    plain = () if x.numel() <= TOUCHED else None
    yield Call("squeeze", lambda: se_fused.squeeze(x), [x], FORWARD[:1], plain)
    apply, gradient = FORWARD[1:], BACKWARD[:1]
    yield Call("rescale", lambda: se_fused.rescale(x, gate), [x, gate], apply, gradient)
    yield Call(
        "rescale by a fixed gate", lambda: se_fused.rescale(x, gate.detach()), [x], apply, apply
    )
    yield Call(
        "rescale of a fixed map", lambda: se_fused.rescale(frozen, gate), [gate], apply, gradient
    )
    if not x.numel():  # of no positions there is no maximum
        return
    for kind in ("max", "avg_max", "concat"):
        inputs = 2 * channels if kind == "concat" else channels
        joined = _weights(inputs, channels, hidden, weight_dtype)
        yield Call(
            f"squeeze_excite {kind}",
            lambda joined=joined, kind=kind: se_fused.squeeze_excite(x, *joined, squeeze=kind),
            [x, *joined], *BLOCK,
        )  # fmt: skip
        yield Call(
            f"squeeze {kind}", lambda kind=kind: se_fused.squeeze(x, kind), [x],
            FORWARD[:1], plain,
        )  # fmt: skip


def _weights(inputs: int, outputs: int, hidden: int, dtype: torch.dtype) -> list[Tensor]:
    sizes = (hidden, inputs), (hidden,), (outputs, hidden), (outputs,)
    return [torch.zeros(size, dtype=dtype, requires_grad=True) for size in sizes]


def _tails(act: str, x: Tensor, residual: Tensor, weight_dtype: torch.dtype) -> Iterator[Call]:
    """Training and eval, with a residual and ReLU and without."""
    is_linear = act == "identity"
    for training in (True, False) if x.numel() else (False,):
        first = ("moments",) if training else ()
        if not is_linear or not training:
            first += ("reduce_forward",)
        for add, post_act in ((True, "relu"), (False, None)):
            tail = FusedBatchNormSE(
                x.shape[1], act=None if is_linear else act, add=add, post_act=post_act,
                rd_channels=4,
            ).to(weight_dtype).train(training)  # fmt: skip
            maps = (x, residual) if add else (x,)
            mode = "training" if training else "eval"
            yield Call(
                f"FusedBatchNormSE {mode}" + (", residual and ReLU" if add else ""),
                lambda tail=tail, maps=maps: tail(*maps),
                [*maps, *tail.parameters()], (*first, "apply_forward"), BACKWARD,
            )  # fmt: skip
