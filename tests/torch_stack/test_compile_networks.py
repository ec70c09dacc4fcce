"""torch.compile of networks: one graph for every batch and size, values of plain PyTorch."""

import copy

import pytest
import torch
from se_examples import EXAMPLES, map_for, network
from selection import kept
from twins import assert_same, each_kind, gradients, images, twins

from se_fused import replace_se, restore_se

pytestmark = pytest.mark.usefixtures("fresh_compiler")


def compiled(net, **options):
    """The network compiled whole, and the list of its graphs as they are compiled.

    The compiler may see the graph of one compilation twice (it tensorifies scalars)."""
    graphs = []

    def compiler(graph, example_inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, example_inputs)

    return torch.compile(net, fullgraph=True, backend=compiler, **options), graphs


@kept(each_kind, "one-operator")
def test_one_graph_for_every_batch_and_size(kind):
    plain, fused = twins(kind)
    function, graphs = compiled(fused, dynamic=True)
    counts = set()
    for batch, size in ((4, (6, 5)), (2, (9, 4)), (7, (5, 8))):
        x = images(batch, size)
        assert_same(gradients(fused, x, function), gradients(plain, x))
        counts.add(len(graphs))
    assert len(counts) == 1, "recompiled for another batch or size"
    assert "torch.ops.se_fused" in graphs[0].print_readable(print_output=False)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["swapped"])
def test_size_that_changes_costs_one_more_graph(kind):
    """Without dynamic=True the compiler learns by the second size which dims vary."""
    plain, fused = twins(kind)
    function, graphs = compiled(fused)
    counts = []
    for batch, size in ((4, (6, 5)), (3, (9, 4)), (7, (5, 8)), (5, (8, 7))):
        x = images(batch, size)
        assert_same(gradients(fused, x, function), gradients(plain, x))
        counts.append(len(graphs))
    assert counts[0] < counts[1] == counts[2] == counts[3]


# Inductor, too, of the network whose modules are the libraries' own.
INFERENCE = {"one-operator": "aot_eager", "composed": "aot_eager", "swapped": "inductor"}


@kept(pytest.mark.parametrize("kind, backend", INFERENCE.items(), ids=INFERENCE), "one-operator")
def test_inference(kind, backend):
    plain, fused = twins(kind)
    function = torch.compile(fused.eval(), fullgraph=True, backend=backend)
    x = images()
    with torch.no_grad():
        assert_same(function(x), plain.eval()(x))
    with torch.inference_mode():
        assert_same(function(x), plain.eval()(x))


@pytest.mark.thorough
def test_restored_network_is_compiled_anew():
    plain, net = twins("swapped")
    x = images()
    function, graphs = compiled(net)
    assert_same(gradients(net, x, function), gradients(plain, x))
    restore_se(net)
    assert_same(gradients(net, x, function), gradients(plain, x))
    assert len(graphs) == 2, "the fused graph is still in use"
    replace_se(net)
    assert_same(gradients(net, x, function), gradients(plain, x))


# One of each form: another forward, another layout, another formula, functions for layers.
FORMS = (
    "efficientnet-pytorch", "smp-scse", "smp-mobileone", "timm-channels-last", "timm-efficientnet",
    "timm-hgnet", "timm-effective-se-maxpool", "torchvision", "monai-1d", "monai-residual-3d",
    "hf-pp-ocr-v5", "hf-qwen-omni", "mmpretrain", "geffnet-hardsigmoid", "pytorchcv-linear",
    "fastai",
)


@kept(pytest.mark.parametrize("name", FORMS), "mmpretrain")
def test_every_form_of_swapped_module(name):
    eager = network(EXAMPLES[name]).se
    fused = copy.deepcopy(eager)
    assert len(replace_se(fused).replaced) == 1
    function, graphs = compiled(fused, dynamic=True)
    batch, *sizes = map_for(EXAMPLES[name]).shape
    channels = 2 if name == "timm-channels-last" else 0
    counts = set()
    for more in (0, 2):
        size = [n if i == channels else n + more for i, n in enumerate(sizes)]
        x = torch.randn(batch + more, *size, dtype=torch.float64)
        # PyTorch's own hardsigmoid has a float32 1/6 in its float64 gradient.
        assert_same(gradients(fused, x, function), gradients(eager, x), rtol=1e-6)
        counts.add(len(graphs))
    assert len(counts) == 1, "recompiled for another batch or size"
    assert "torch.ops.se_fused" in graphs[0].print_readable(print_output=False)
