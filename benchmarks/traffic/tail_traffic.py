"""Passes over the feature map of a block's end: plain PyTorch, compiled, and fused.

Run by `count_traffic.py`; how each is counted: counting.py.
"""

from functools import partial

import torch
from lib.inputs import DTYPES
from lib.maps import REDUCTION, Map
from lib.tables import markdown
from lib.tails import AFTER_SE, MBCONV, RESIDUAL, Tail
from traffic import bounds
from traffic.counting import (
    DIRECTIONS,
    LAYOUTS,
    by_bytes,
    by_generated_code,
    by_operators,
    kept_for_backward,
    make_map,
)
from traffic.tracing import Generated

# Small: the interpreter takes seconds for 100,000 elements.
SHAPES = [(2, 16, 56, 56), (2, 64, 14, 14), (2, 72, 7, 7)]
# 16 bit for the bound.
SHAPES_OF = {"fp32": SHAPES, "bf16": SHAPES[:1]}
EAGER, COMPILED, FUSED = "plain PyTorch", "compiled", "fused"
WITHOUT = ", without SE"


def collect() -> dict:
    """The rows, and what is kept for the backward pass: {tail: {side: maps}}, in float32."""
    rows, saved = [], {}
    for tail in (RESIDUAL, MBCONV, AFTER_SE):
        for dtype, layout in ((dtype, layout) for dtype in SHAPES_OF for layout in LAYOUTS):
            for side, block, count in sides(tail):
                for shape in [bounds.MAP] if side.startswith(COMPILED) else SHAPES_OF[dtype]:
                    inputs = block_and_maps(tail, block, shape, layout, dtype)
                    rows.append(
                        {"tail": tail.name, "side": side, "dtype": dtype, "shape": list(shape),
                         "layout": layout, **count(*inputs)}
                    )
        saved[tail.name] = {side: kept(tail, side, block) for side, block, _ in sides(tail)}
    return {"rows": rows, "kept": saved}


def sides(tail: Tail):
    yield EAGER, tail.eager, by_operators
    yield COMPILED, tail.eager, by_generated_code
    if tail.norm:
        yield EAGER + WITHOUT, tail.without_se, by_operators
        yield COMPILED + WITHOUT, tail.without_se, by_generated_code
    yield FUSED, tail.fused, by_bytes


def block_and_maps(tail, block, shape, layout, dtype):
    of_shape = Map("", shape, max(4, shape[1] // REDUCTION), tail.act or "relu", "sigmoid", 1)
    maps = [make_map(shape, layout, DTYPES[dtype]) for _ in range(1 + tail.add)]
    return block(of_shape).to(DTYPES[dtype]), *maps


def kept(tail, side, block, shape=bounds.MAP) -> float:
    """For the backward pass, in maps; the larger of both layouts."""
    found = []
    for layout in LAYOUTS:
        module, *maps = block_and_maps(tail, block, shape, layout, "fp32")
        with Generated(maps[0]):
            if side.startswith(COMPILED):
                module = torch.compile(module, fullgraph=True, dynamic=False)
            found.append(kept_for_backward(module, *maps))
    return max(found)


def table(result) -> str:
    tails = result["tails"]
    lines = []
    for (name, side), of_side in groups(tails["rows"], "fp32").items():
        found = {layout: of[0] for layout, of in of_side.items()}
        passes = {layout: tuple(map(partial(counted, row), DIRECTIONS))
                  for layout, row in found.items()}
        launches = [most_launches(of_side, direction) for direction in DIRECTIONS]
        same = len(set(passes.values())) == 1
        for layout, of in list(passes.items())[: 1 if same else None]:
            lines.append([
                name, side if same else f"{side}, {layout}", *map(_number, (*of, sum(of))),
                *launches, f"{tails['kept'][name][side]:.2f}",
            ])
    head = ["end of the block", "as", "passes forward", "passes backward", "together",
            "launches forward", "launches backward", "kept"]
    return "\n\n".join([
        "Counted, not measured, as above, of the end of a residual block in training, in float32, "
        "the same for contiguous and channels_last unless a row names one: plain PyTorch and fused "
        f"on maps of {', '.join(' × '.join(map(str, shape)) for shape in SHAPES)}, compiled on "
        f"{' × '.join(map(str, bounds.MAP))} with 1 × 1 convolutions. PyTorch's BatchNorm counts "
        "as two reads of x forward, and of x and dy backward; what the residual's gradient writes "
        "is counted in. Fused with the ReLU's mask: one bit per element, written once and read "
        "twice. Launches: the most of these maps. Kept: what the forward pass saves for the "
        f"backward pass, over the bytes of x, for a map of {' × '.join(map(str, bounds.MAP))}.",
        markdown(head, lines),
    ])


def groups(rows, dtype) -> dict[tuple, dict[str, list]]:
    """{(tail, side): {layout: its rows}}; for every map the same passes, masks apart."""
    found = {}
    for row in rows:
        if row["dtype"] == dtype:
            layouts = found.setdefault((row["tail"], row["side"]), {})
            layouts.setdefault(row["layout"], []).append(row)
    for layouts in found.values():
        for of in layouts.values():
            passes = {tuple(row[direction]["passes"] for direction in DIRECTIONS) for row in of}
            assert len(passes) == 1, "maps differ"
    return found


def counted(row, direction) -> float:
    """Passes over the map and its mask."""
    return row[direction]["passes"] + row[direction].get("mask", 0)


def most_launches(of_side, direction) -> str:
    found = [row[direction] for rows in of_side.values() for row in rows]
    parts = []
    for name, key in (("Triton", "kernels"), ("Inductor", "generated"), ("PyTorch", "operators")):
        most = max(len(of.get(key, [])) for of in found)
        if most:
            parts.append(f"{most} {name}")
    return " + ".join(parts)


def _number(passes: float) -> str:
    return f"{passes:.3g}"
