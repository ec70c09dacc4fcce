"""torch.compile(fullgraph=True), static and dynamic, and autocast: values and gradients."""

import copy

import pytest
import torch
from conftest import PLACES
from reference import Inputs, check, results
from selection import each_pair_on, kept
from shapes import DENSE, REDUCED, make_inputs
from torch import nn

import se_fused
from se_fused import FusedSE, ops
from se_fused.backends import reference

pytestmark = pytest.mark.usefixtures("fresh_compiler")

NAMES = ("dx", "dw1", "db1", "dw2", "db2")


def between_other_operators(x, w1, b1, w2, b2):
    """Something on both sides, so that the compiler has neighbours to arrange."""
    y = se_fused.squeeze_excite(x * 1, w1, b1, w2, b2, act="silu", gate="sigmoid")
    return y + 0


def forward_backward(function, inputs: Inputs):
    tensors = [t.detach().requires_grad_() for t in inputs.tensors]
    y = function(*tensors)
    y.backward(inputs.dy)
    return {"y": y.detach()} | {name: t.grad for name, t in zip(NAMES, tensors)}


def counted(backend="aot_eager", **options):
    """The function compiled, and the list of its graphs as they are compiled."""
    graphs = []

    def compiler(graph, example_inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend(backend)(graph, example_inputs)

    compiled = torch.compile(between_other_operators, fullgraph=True, backend=compiler, **options)
    return compiled, graphs


@each_pair_on(dtype={"fp32": torch.float32, "bf16": torch.bfloat16}, layout=DENSE)
def test_static(place, layout, dtype):
    compiled, graphs = counted(dynamic=False)
    inputs = make_inputs((3, 20, 5, 7), 4, place.device, dtype, act="silu", layout=layout)
    found = forward_backward(compiled, inputs)
    check(found, inputs)
    assert found["y"].stride() == found["dx"].stride() == inputs.x.stride()
    assert len(graphs) == 1


# What Inductor compiles does not depend on the place (test_change_of_backend_needs_no_new_graph).
INDUCTOR = {f"{place.name}-{layout}": (place, layout)
            for place, layout in zip(PLACES, 2 * (*DENSE, "channels-last"))}


@kept(pytest.mark.parametrize("place, layout", INDUCTOR.values(), ids=INDUCTOR,
                              indirect=["place"]), "cpp-channels-last")
def test_inductor(place, layout):
    compiled, graphs = counted("inductor", dynamic=False)
    inputs = make_inputs((3, 20, 5, 7), 4, place.device, act="silu", layout=layout)
    check(forward_backward(compiled, inputs), inputs)
    assert len(graphs) == 1


# Every rank in every layout, the places in turn: the graph is the same on each.
RANKS = {"no-spatial-dims": 2, "1d": 3, "2d": 4, "3d": 5}
DYNAMIC = [(rank, layout) for rank in RANKS for layout in DENSE]
DYNAMIC = {f"{place.name}-{rank}-{layout}": (place, layout, RANKS[rank])
           for place, (rank, layout) in zip(3 * PLACES, DYNAMIC)}


@kept(pytest.mark.parametrize("place, layout, rank", DYNAMIC.values(), ids=DYNAMIC,
                              indirect=["place"]), *list(DYNAMIC)[3:6])
def test_dynamic_batch_and_size(place, layout, rank):
    if layout == "channels-last" and rank < 4:
        layout = "transposed-samples"
    compiled, graphs = counted(dynamic=True)
    for batch, size in ((3, (5, 7, 2)), (2, (4, 9, 3)), (7, (6, 8, 4))):
        shape = (batch, 20, *size[: rank - 2])
        inputs = make_inputs(shape, 4, place.device, act="silu", layout=layout)
        check(forward_backward(compiled, inputs), inputs)
    assert len(graphs) == 1, "recompiled for another batch or size"


FROZEN = each_pair_on(backend=["aot_eager", "inductor"], layout=DENSE)


@kept(FROZEN, *[case.id for case in FROZEN.args[1] if "inductor" not in case.id])
def test_frozen_map(place, backend, layout):
    compiled, graphs = counted(backend)
    for shape in ((3, 20, 5, 7), (5, 20, 4, 6)):
        inputs = make_inputs(shape, 4, place.device, act="silu", layout=layout)
        parameters = [t.detach().requires_grad_() for t in inputs.tensors[1:]]
        compiled(inputs.x, *parameters).backward(inputs.dy)
        check({name: t.grad for name, t in zip(NAMES[1:], parameters)}, inputs)
    assert 1 <= len(graphs) <= 2


@pytest.mark.parametrize("wanted", ["x", "gate"])
def test_one_gradient_of_rescale(place, wanted):
    compiled = torch.compile(
        lambda x, gate: se_fused.rescale(x * 1, gate) + 0, fullgraph=True, backend="aot_eager"
    )
    inputs = make_inputs((3, 20, 5, 7), 4, place.device, layout="channels-last")
    tensors = {"x": inputs.x, "gate": results(inputs, torch.float32)["g"]}
    tensors[wanted].requires_grad_()
    compiled(**tensors).backward(inputs.dy)
    name = {"x": "dy_times_g", "gate": "dg"}[wanted]
    check({name: tensors[wanted].grad}, inputs)


@pytest.mark.thorough
def test_dynamic_inductor():
    compiled, graphs = counted("inductor", dynamic=True)
    for shape in ((3, 20, 5, 7), (5, 20, 4, 6)):
        inputs = make_inputs(shape, 4, "cpu", act="silu")
        check(forward_backward(compiled, inputs), inputs)
    assert len(graphs) == 1


def test_change_of_backend_needs_no_new_graph(place):
    compiled, graphs = counted(dynamic=False)
    inputs = make_inputs((3, 20, 5, 7), 4, place.device, act="silu")
    check(forward_backward(compiled, inputs), inputs)
    with se_fused.backend("eager"):
        check(forward_backward(compiled, inputs), inputs)
    assert len(graphs) == 1


MODULES = {
    "whole": {},
    "norm": dict(norm_layer=nn.BatchNorm2d),
    "maxpool": dict(add_maxpool=True),
    "unknown-act": dict(act_layer=nn.ELU),
}


def module_and_map(place, arguments, dtype=torch.float64):
    module = FusedSE(16, rd_channels=4, device=place.device, dtype=dtype, **arguments)
    x = torch.randn(3, 16, 5, 7).to(place.device, dtype)
    return module, x.contiguous(memory_format=torch.channels_last)


def step(function, module, x):
    x = x.detach().requires_grad_()
    module.zero_grad()
    y = function(x)
    y.square().sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in module.parameters())]


@kept(pytest.mark.parametrize("arguments", MODULES.values(), ids=MODULES), "whole", "norm")
def test_module(place, arguments):
    module, x = module_and_map(place, arguments)
    expected = step(module, module, x)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    found = step(compiled, module, x)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)
    assert found[0].stride() == x.stride()


def under_autocast(place, dtype, function, *arguments):
    with torch.autocast(place.device, dtype=dtype):
        return function(*arguments)


@each_pair_on(dtype=REDUCED, how=["eager-mode", "compiled", "backward-inside-too"])
def test_autocast_of_a_16_bit_map_and_float32_weights(place, dtype, how):
    """Gradients of float32 weights are those of float32 arithmetic: nothing is lowered."""
    inputs = make_inputs((3, 20, 5, 7), 4, place.device, dtype, weight_dtype=torch.float32,
                         act="silu")
    function = counted()[0] if how == "compiled" else between_other_operators
    if how == "backward-inside-too":
        found = under_autocast(place, dtype, forward_backward, function, inputs)
    else:
        found = forward_backward(
            lambda *tensors: under_autocast(place, dtype, function, *tensors), inputs
        )
    assert found["y"].dtype == found["dx"].dtype == dtype
    assert found["dw1"].dtype == torch.float32
    check(found, inputs)


@pytest.mark.parametrize("dtype", REDUCED.values(), ids=REDUCED)
def test_autocast_leaves_a_float32_map_alone(place, dtype):
    inputs = make_inputs((3, 20, 5, 7), 4, place.device, act="silu")
    found = forward_backward(
        lambda *tensors: under_autocast(place, dtype, between_other_operators, *tensors), inputs
    )
    assert {t.dtype for t in found.values()} == {torch.float32}
    check(found, inputs)


@each_pair_on(arguments=MODULES, dtype=REDUCED, map_dtype=["16-bit-map", "float32-map"])
def test_autocast_of_the_module(place, arguments, dtype, map_dtype):
    module, x = module_and_map(place, arguments, torch.float32)
    if map_dtype == "16-bit-map":
        x = x.to(dtype)
    wide = copy.deepcopy(module.eval()).double()
    exact = step(wide, wide, x.double())
    found = step(lambda x: under_autocast(place, dtype, module, x), module, x)
    assert found[0].dtype == found[1].dtype == x.dtype
    assert found[0].stride() == found[1].stride() == x.stride()
    # The layers between squeeze and rescale run in autocast's dtype, whatever the map's.
    for name, result, expected in zip(("y", "dx", "dw1", "db1"), found, exact):
        torch.testing.assert_close(
            result.double(), expected, rtol=0, msg=name,
            atol=8 * torch.finfo(dtype).eps * expected.abs().max().item(),
        )


def test_autocast_leaves_arithmetic_in_float32(place):
    inputs = make_inputs((3, 20, 14, 14), 4, place.device, torch.bfloat16,
                         weight_dtype=torch.float32)
    with torch.autocast(place.device, dtype=torch.bfloat16):
        check({"y": se_fused.squeeze_excite(*inputs.tensors)}, inputs)


GRADIENTS = {
    "max": lambda: se_fused.FusedSE(32, rd_channels=8, squeeze="max"),
    "concat": lambda: se_fused.FusedSE(32, rd_channels=8, squeeze="concat"),
    "norm": lambda: se_fused.FusedBatchNormSE(32, rd_channels=8, act="silu"),
}


@pytest.mark.parametrize("kind", GRADIENTS)
def test_autocast_casts_no_matmul_of_a_compiled_gradient(place, kind, monkeypatch):
    """Where the excitation is traced; that of a block with BatchNorm only on a GPU: as there."""
    for name in ("merge_moments", "excite", "excite_backward"):
        monkeypatch.setattr(ops, name, getattr(reference, name))
    module = GRADIENTS[kind]().to(place.device)
    x = torch.randn(4, 32, 5, 5).to(place.device, torch.bfloat16)
    compiled = torch.compile(module, fullgraph=True)

    def outcome(function):
        return step(lambda x: under_autocast(place, torch.bfloat16, function, x), module, x)

    expected, found = outcome(module), outcome(compiled)
    for result, wanted in zip(found, expected):
        rounded = 2**-7 if result.dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(result, wanted, rtol=rounded, atol=1e-5 + rounded / 10)
