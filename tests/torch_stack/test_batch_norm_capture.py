"""FusedBatchNormSE compiled, exported and traced."""

import pytest
import torch
from norm_twins import FUSED, maps, norm_twins, step
from pairwise import each_pair
from selection import kept
from shapes import LAYOUTS
from torch import nn
from torch.export import Dim
from twins import assert_same

RESIDUAL = dict(add=True, post_act="relu")
CAPTURED = {name: FUSED[name] for name in ("add-relu", "silu-before", "no-running-statistics")}
MODES = {"train": True, "eval": False}


# torch.compile


@pytest.fixture
def compiled():
    """Compiles for any batch and size, and the list of graphs."""
    torch._dynamo.reset()
    graphs = []

    def compiler(graph, example_inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, example_inputs)

    options = dict(fullgraph=True, backend=compiler, dynamic=True)
    yield lambda module: torch.compile(module, **options), graphs
    torch._dynamo.reset()


def compile_and_compare(compiled, device, options, training, layout):
    compile_module, graphs = compiled
    plain, fused = (m.train(training) for m in norm_twins(device=device, **options))
    function, counts = compile_module(fused), []
    for batch, size in ((3, (6, 5)), (2, (4, 9)), (5, (7, 8))):
        inputs = maps(batch, size, device=device, add=options.get("add", False))
        inputs = [LAYOUTS[layout](t) for t in inputs]
        found = step(fused, inputs, function)
        assert_same(found, step(plain, inputs))
        assert found["y"].stride() == found["gradients"][0].stride() == inputs[0].stride()
        counts.append(len(graphs))
    assert len(set(counts)) == 1, f"recompiled for another batch or size: {counts}"
    names = [str(node.target) for node in graphs[-1].graph.nodes]
    assert names and not any("batch_norm" in name for name in names), "not the fused call"


# test_compile_on_every_backend has the training of add-relu.
COMPILED = {
    "add-relu-eval": ("add-relu", False), "silu-before-eval": ("silu-before", False),
    "silu-before-train": ("silu-before", True),
    "no-running-statistics-train": ("no-running-statistics", True),
}


@kept(pytest.mark.parametrize("options, training", COMPILED.values(), ids=COMPILED),
      "silu-before-eval")
def test_compile(compiled, options, training):
    options = CAPTURED[options]
    compile_and_compare(compiled, "cpu", options, training, "contiguous")


def test_compile_on_every_backend(place, compiled):
    compile_and_compare(compiled, place.device, RESIDUAL, True, "channels-last")


@pytest.mark.thorough
@pytest.mark.usefixtures("compiled")
def test_compile_by_inductor():
    plain, fused = norm_twins(**RESIDUAL)
    function, inputs = torch.compile(fused, fullgraph=True), maps()
    for _ in range(2):
        assert_same(step(fused, inputs, function), step(plain, inputs))


# Capture


def dynamic(count):
    return ({0: Dim("batch", min=2), 2: Dim("height", min=2), 3: Dim("width", min=2)},) * count


def of_other_sizes(options):
    add = options.get("add", False)
    return maps(2, (7, 8), add=add), maps(5, (4, 9), add=add)


EXPORTS = each_pair(
    options=CAPTURED, training=MODES, strict={"strict": True, "non-strict": False}
)


@kept(EXPORTS, *[case.id for case in EXPORTS.args[1]][::3])
def test_export(options, training, strict):
    plain, fused = (m.train(training) for m in norm_twins(**options))
    example = tuple(maps(add=options.get("add", False)))
    program = torch.export.export(fused, example, dynamic_shapes=dynamic(len(example)),
                                  strict=strict)
    operators = {str(n.target) for n in program.graph.nodes if n.op == "call_function"}
    assert operators and not any("se_fused" in name for name in operators), operators
    captured = program.module()
    for inputs in of_other_sizes(options):
        assert_same(captured(*inputs), plain(*inputs))
    expected = dict(plain.named_buffers())
    for name, buffer in captured.named_buffers():
        assert_same(buffer, expected[name])


@pytest.mark.filterwarnings("ignore:.torch.jit.*deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:.torch.jit.*deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("error::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", ["add-relu", "silu-before"])  # with running statistics
def test_jit_trace(name):
    options = CAPTURED[name]
    plain, fused = (m.eval() for m in norm_twins(**options))
    traced = torch.jit.trace(fused, tuple(maps(add=options.get("add", False))))
    operators = {node.kind() for node in traced.inlined_graph.nodes()}
    assert operators and all(name.startswith(("aten::", "prim::")) for name in operators)
    for inputs in of_other_sizes(options):
        assert_same(traced(*inputs), plain(*inputs))


class Net(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.block, self.end = block, nn.Tanh()

    def forward(self, x, residual):
        return self.end(self.block(x * 2, residual))


def test_symbolic_trace_has_one_node():
    plain, fused = (Net(m).eval() for m in norm_twins(**RESIDUAL))
    graph = torch.fx.symbolic_trace(fused)
    assert [n.target for n in graph.graph.nodes if n.op == "call_module"] == ["block", "end"]
    assert graph.block is fused.block
    inputs = maps()
    assert_same(graph(*inputs), plain(*inputs))
    alone = torch.fx.symbolic_trace(nn.Sequential(norm_twins()[1]))
    assert [n.target for n in alone.graph.nodes if n.op == "call_module"] == ["0"]
