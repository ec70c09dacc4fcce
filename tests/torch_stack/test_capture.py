"""Export, ONNX, TorchScript, torch.fx: graphs of PyTorch's own operators, with its values."""

import pytest
import torch
from pairwise import each_pair
from selection import kept
from torch import nn
from torch.export import Dim
from twins import KINDS, C, R, assert_same, each_kind, images, twins

import se_fused
from se_fused import FusedSE

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.*deprecated:FutureWarning")
SIZES = ((2, (7, 8)), (5, (4, 9)), (3, (3, 3)))
FORCED = {"automatic": None, "forced-eager": "eager", "forced-cpp": "cpp"}


@pytest.fixture(params=FORCED.values(), ids=FORCED)
def forced(request):
    """A capture is the same whatever backend is forced."""
    if request.param == "cpp":
        reason = se_fused.backends.why_not("cpp", torch.device("cpu"))
        if reason:
            pytest.skip(f"cpp: {reason}; the automatic choice covers the capture")
    with se_fused.backend(request.param):
        yield


def dynamic():
    return ({0: Dim("batch", min=2), 2: Dim("height", min=2), 3: Dim("width", min=2)},)


def agrees_at_all_sizes(captured, plain, dtype=torch.float64, rtol=1e-10):
    for batch, size in SIZES:
        x = images(batch, size, dtype)
        assert_same(captured(x), plain(x), rtol)


# torch.export


EXPORTS = each_pair(forced=FORCED, kind=KINDS.keys(), strict={"strict": True, "non-strict": False})
EXPORTS = pytest.mark.parametrize(*EXPORTS.args, indirect=["forced"])


@kept(EXPORTS, *[case.id for case in EXPORTS.args[1]][::3])
def test_export(forced, kind, strict):
    plain, fused = (net.eval() for net in twins(kind))
    program = torch.export.export(fused, (images(),), dynamic_shapes=dynamic(), strict=strict)
    operators = {str(n.target) for n in program.graph.nodes if n.op == "call_function"}
    assert operators and not any("se_fused" in name for name in operators), operators
    agrees_at_all_sizes(program.module(), plain)
    program = program.run_decompositions()
    agrees_at_all_sizes(program.module(), plain)


class Autocast(nn.Module):
    """A network that enters autocast itself: torch.export records no autocast from outside."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.net(x)


@kept(each_kind, "swapped")
def test_export_of_autocast(kind):
    net, x = Autocast(twins(kind, torch.float32)[1].eval()), images(dtype=torch.float32)
    program = torch.export.export(net, (x,))
    for captured in (program, program.run_decompositions()):
        found = captured.module()(x)
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found, net(x), rtol=torch.finfo(torch.bfloat16).eps, atol=0.01)


def test_exported_program_is_saved_without_us(tmp_path):
    plain, fused = (net.eval() for net in twins("swapped"))
    program = torch.export.export(fused, (images(),), dynamic_shapes=dynamic())
    torch.export.save(program, tmp_path / "net.pt2")
    agrees_at_all_sizes(torch.export.load(tmp_path / "net.pt2").module(), plain)


def test_export_for_training_keeps_the_gradients():
    plain, fused = twins("swapped")
    module = torch.export.export(fused, (images(),), dynamic_shapes=dynamic()).module()
    x = images(3, (4, 4))
    for net in (plain, module):
        net(x).square().sum().backward()
    found = {name: p.grad for name, p in module.named_parameters()}
    assert_same(found, {name: p.grad for name, p in plain.named_parameters()})


@pytest.mark.parametrize("layout", ["contiguous", "channels-last", "strided"])
@pytest.mark.parametrize("rank", [2, 3, 4, 5], ids=["no-spatial-dims", "1d", "2d", "3d"])
def test_export_of_every_rank(rank, layout):
    module = FusedSE(C, rd_channels=R, dtype=torch.float64)
    x = torch.randn(4, C, *(6, 5, 3)[: rank - 2], dtype=torch.float64)
    if layout == "channels-last" and rank > 3:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    elif layout == "strided":
        x = x.repeat_interleave(2, -1)[..., ::2]
    dims = ({0: Dim("batch", min=2)} | {i: Dim(f"size{i}", min=2) for i in range(2, rank)},)
    captured = torch.export.export(module, (x,), dynamic_shapes=dims).module()
    other = torch.randn(7, C, *(4, 9, 2)[: rank - 2], dtype=torch.float64)
    for example in (x, other):
        assert_same(captured(example), module(example))


# ONNX


def onnx_model(fused):
    pytest.importorskip("onnx", reason="onnx is not installed; test_export covers the capture")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed; see test_export")
    program = torch.onnx.export(
        fused, (images(dtype=torch.float32),), dynamo=True, dynamic_shapes=dynamic(), verbose=False
    )
    return program.model_proto


# test_export has each kind with each forced backend; here the two take turns.
TURNS = {f"{name}-{kind}": (name, kind) for name, kind in zip(FORCED, KINDS)}
each_turn = pytest.mark.parametrize(
    "forced, kind", [(FORCED[name], kind) for name, kind in TURNS.values()], ids=TURNS,
    indirect=["forced"],
)


@kept(each_turn, "forced-cpp-swapped")
def test_onnx(forced, kind):
    plain, fused = (net.eval() for net in twins(kind, torch.float32))
    model = onnx_model(fused)
    assert {node.domain for node in model.graph.node} == {""} and not model.functions
    from onnx.reference import ReferenceEvaluator

    evaluator, name = ReferenceEvaluator(model), model.graph.input[0].name
    agrees_at_all_sizes(
        lambda x: torch.from_numpy(evaluator.run(None, {name: x.numpy()})[0]),
        plain, torch.float32, rtol=1e-4,
    )


def test_onnx_runtime():
    runtime = pytest.importorskip("onnxruntime", reason="not installed; test_onnx covers the graph")
    plain, fused = (net.eval() for net in twins("swapped", torch.float32))
    model = onnx_model(fused)
    session = runtime.InferenceSession(model.SerializeToString())
    name = model.graph.input[0].name
    agrees_at_all_sizes(
        lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0]),
        plain, torch.float32, rtol=1e-4,
    )


# TorchScript


@each_kind
@pytest.mark.filterwarnings("error::torch.jit.TracerWarning")
def test_jit_trace(forced, kind, tmp_path):
    plain, fused = (net.eval() for net in twins(kind))
    traced = torch.jit.trace(fused, images())
    operators = {node.kind() for node in traced.inlined_graph.nodes()}
    assert operators and all(name.startswith(("aten::", "prim::")) for name in operators)
    agrees_at_all_sizes(traced, plain)
    traced.save(tmp_path / "net.pt")
    agrees_at_all_sizes(torch.jit.load(tmp_path / "net.pt"), plain)


def test_jit_script_of_a_swapped_network():
    """By its library's forward."""
    plain, net = (net.eval() for net in twins("swapped"))
    classes = [type(module) for module in net.modules()]
    agrees_at_all_sizes(torch.jit.script(net), plain)
    assert [type(module) for module in net.modules()] == classes
    agrees_at_all_sizes(net, plain)


# torch.fx


@each_kind
def test_symbolic_trace_has_one_node_for_each_block(forced, kind):
    plain, fused = (net.eval() for net in twins(kind))
    graph = torch.fx.symbolic_trace(fused)
    targets = [node.target for node in graph.graph.nodes if node.op == "call_module"]
    assert targets == ["stem", "first", "act", "conv", "blocks.0", "head"]
    assert graph.first is fused.first
    agrees_at_all_sizes(graph, plain)
    agrees_at_all_sizes(torch.fx.Interpreter(graph).run, plain)


@each_kind
def test_feature_extractor(kind):
    extraction = pytest.importorskip(
        "torchvision.models.feature_extraction",
        reason="torchvision is not installed; the symbolic trace covers its tracer",
    )
    plain, fused = (net.eval() for net in twins(kind))
    names = ["first", "blocks.0", "head"]
    extractor, x = extraction.create_feature_extractor(fused, names), images()
    first = plain.first(plain.stem(x))
    second = plain.blocks(plain.conv(plain.act(first)))
    assert_same(extractor(x), dict(zip(names, (first, second, plain(x)))))
