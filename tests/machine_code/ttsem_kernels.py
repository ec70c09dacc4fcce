"""Values, bounds and races of every Triton kernel; every case also with its programs shuffled.

How to run it: see ttsem_session.py.
"""

import importlib
import pkgutil
from itertools import product

import passes_reference as passes
import pytest
import torch
from block_operators import OPERATORS, call
from pairwise import each_pair
from reference import ACTS, GATES
from shapes import DENSE, make_inputs
from triton.runtime import JITFunction
from ttsem_session import DEVICE

from se_fused.backends import triton as kernels
from se_fused.backends.triton import feature_map

pytest_plugins = ["ttsem_session"]

# (shape of x, hidden width)
SHAPES = {
    "7x7": ((3, 33, 7, 7), 8),
    "ragged-channels": ((2, 70, 5, 14), 5),
    "wide-1x1": ((5, 20, 1, 1), 7),
    "wide-7x7": ((2, 20, 7, 7), 65),
    "split": ((2, 9, 40, 41), 3),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TILE_LAYOUTS = ("contiguous", "channels_last", "flat")


def run(operator, inputs, monkeypatch):
    arguments = operator.arguments(inputs)
    found = operator.call(arguments, kernels)
    operator.check(found, inputs)
    monkeypatch.setenv("TTSEM_GRID_ORDER", "shuffle:0")
    for name, result in operator.call(arguments, kernels).items():
        assert torch.equal(result, found[name]), f"{name} depends on the order of the programs"


BLOCK = {name: OPERATORS[name] for name in ("squeeze_excite", "squeeze_excite_backward")}


@each_pair(operator=OPERATORS, layout=DENSE, dtype=DTYPES, shape=SHAPES)
def test_values_bounds_and_races(monkeypatch, operator, layout, dtype, shape):
    run(operator, make_inputs(*shape, "cuda", dtype, layout=layout), monkeypatch)


@each_pair(operator=BLOCK, layout=DENSE, shape=SHAPES)
def test_excitation_between_the_launches(monkeypatch, operator, layout, shape):
    without_l2 = DEVICE._replace(l2_bytes=0)  # no place for the weights
    monkeypatch.setattr(feature_map, "device_of", lambda x: without_l2)
    run(operator, make_inputs(*shape, "cuda", layout=layout), monkeypatch)


@pytest.mark.parametrize("operator", BLOCK.values(), ids=BLOCK)
@pytest.mark.parametrize("act, gate", list(zip(ACTS, [*GATES, "sigmoid"])))
def test_activations_without_biases(monkeypatch, operator, act, gate):
    inputs = make_inputs((2, 9, 5, 7), 4, "cuda", act=act, gate=gate, biases=False)
    run(operator, inputs, monkeypatch)


@each_pair(
    operator=passes.OPERATORS,
    layout=DENSE,
    act=["identity", "silu"],
    shape=["ragged-channels", "wide-1x1", "wide-7x7", "split"],
)
def test_passes_of_a_block_with_batch_norm(monkeypatch, operator, layout, act, shape):
    dtype = torch.bfloat16 if act == "silu" else torch.float32
    inputs = passes.make_norm_inputs(SHAPES[shape][0], "cuda", dtype, layout=layout, act=act)
    run(operator, inputs, monkeypatch)


@pytest.mark.parametrize("operator", ["squeeze", "squeeze_excite", "squeeze_excite_backward"])
@pytest.mark.parametrize("layout", DENSE)
def test_programs_share_the_sums_of_a_large_plane(races, operator, layout):
    """Were it not so, the cases named "split" above would not be what they say."""
    inputs = make_inputs(*SHAPES["split"], "cuda", layout=layout)
    call(operator, OPERATORS[operator].arguments(inputs), kernels)
    assert races.excused > 0


def test_every_kernel_is_launched_in_every_layout(monkeypatch):
    modules = [
        importlib.import_module(f"{kernels.__name__}.{module.name}")
        for module in pkgutil.iter_modules(kernels.__path__)
    ]
    names = {
        value.__name__
        for module in modules
        for value in vars(module).values()
        if isinstance(value, JITFunction) and value.__name__.endswith("_kernel")
    }
    launched = set()

    def record(kernel, *args, **kwargs):  # and run nothing
        launched.add((kernel.__name__, kwargs["LAYOUT"]))

    monkeypatch.setattr(JITFunction, "run", record)
    for layout in DENSE:
        for shape, hidden in SHAPES.values():
            inputs = make_inputs(shape, hidden, "cuda", layout=layout)
            for operator in OPERATORS.values():
                getattr(kernels, operator.name)(*operator.arguments(inputs))
            inputs = passes.make_norm_inputs(shape, "cuda", layout=layout)
            for operator in passes.OPERATORS.values():
                getattr(kernels, operator.name)(*operator.arguments(inputs))
    assert launched == set(product(names, TILE_LAYOUTS))
