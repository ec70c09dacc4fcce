"""record_gates in PyTorch's modes, in compiled and copied models, and what it leaves behind."""

import copy
import pickle

import pytest
import torch
from gate_models import MODELS, N, each_model, recorded_gates
from selection import kept
from torch import nn
from torch.utils.checkpoint import checkpoint
from twins import C, images, twins

from se_fused import FusedSE, record_gates


@each_model
def test_under_autocast(native_place, make):
    model = make()[1].float().eval().to(native_place.device)
    x = images(N, dtype=torch.float32, device=native_place.device)
    exact = recorded_gates(copy.deepcopy(model).double(), x.double())

    def lowered(x):
        with torch.autocast(native_place.device, torch.bfloat16):
            return model(x)

    for name, g in recorded_gates(model, x, lowered).items():
        torch.testing.assert_close(g, exact[name], rtol=0, atol=16 * 2**-8)
        assert g.dtype == torch.float64


@each_model
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_then_with(make, mode):
    model, x = make()[1].eval(), images(N)
    expected = recorded_gates(model, x)
    with record_gates(model) as record:
        record.labels = range(N)
        with mode():
            model(x)
        model(x).sum().backward()
    for name, means in record.mean_per_class().items():
        assert record.blocks[name].samples == 2 * N
        torch.testing.assert_close(torch.stack([*means.values()]), expected[name])


@each_model
@pytest.mark.parametrize("reentrant", [False, True], ids=["not-reentrant", "reentrant"])
def test_activation_checkpointing_counts_once(make, reentrant):
    model, x = make()[1].eval(), images(N).requires_grad_()
    expected = recorded_gates(model, x)

    def run(x):
        checkpoint(model, x, use_reentrant=reentrant).square().sum().backward()

    assert repr(recorded_gates(model, x, run)) == repr(expected)


def test_double_backward_counts_once():
    for make in MODELS.values():
        model, x = make()[1], images(N).requires_grad_()
        with record_gates(model) as record:
            dx, = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
            dx.square().sum().backward()
        assert all(sums.samples == N for sums in record.blocks.values())


# The two ways to compile take turns.
COMPILED = {
    f"{how}-{name}": (MODELS[name], how)
    for name, how in zip(MODELS, ["function", "in-place"] * len(MODELS))
}


@kept(pytest.mark.parametrize("make, how", COMPILED.values(), ids=COMPILED),
      "function-one-operator", "in-place-fused-blocks")
def test_compiled_model_runs_uncompiled_and_then_its_graph(make, how):
    torch._dynamo.reset()
    model, x, graphs, runs = make()[1].eval(), images(N), [], []
    expected = recorded_gates(model, x)

    def backend(graph, example_inputs):
        graphs.append(graph)
        return lambda *args: runs.append(graph) or graph(*args)

    options = dict(fullgraph=True, backend=backend)
    compiled = torch.compile(lambda x: model(x), **options)
    if how == "in-place":
        model.compile(**options)
        compiled = model
    with torch.set_grad_enabled(how == "function"):
        y = compiled(x)
        found = recorded_gates(model, x, compiled)
        assert len(graphs) == len(runs) == 1
        torch.testing.assert_close(compiled(x), y, rtol=0, atol=0)
        assert len(graphs) == 1 and len(runs) == 2
    torch.testing.assert_close(found, expected)
    torch._dynamo.reset()


def _jvp(model, x):
    return torch.func.jvp(model, (x,), (x,))


TAKEN_APART = {
    "export": lambda model, x: torch.export.export(model, (x,)),
    "jit-trace": lambda model, x: torch.jit.trace(model, x),
    "vmap": lambda model, x: torch.func.vmap(model)(x[None]),
    "gradient": lambda model, x: torch.func.grad(lambda x: model(x).sum())(x),
    "forward-mode": _jvp,
}


@each_model
@pytest.mark.parametrize("take", TAKEN_APART.values(), ids=TAKEN_APART)
@pytest.mark.filterwarnings("ignore:.torch.jit.*deprecated:FutureWarning")
def test_taken_apart_raises(make, take):
    model, x = make()[1].eval(), images(N)
    with record_gates(model) as record:
        with pytest.raises(RuntimeError, match="leave record_gates first"):
            take(model, x)
    assert not any(sums.samples for sums in record.blocks.values())
    take(model, x)


def test_strict_export_raises():
    model, x = twins("one-operator")[1], images(N)
    with record_gates(model), pytest.raises(Exception, match="leave record_gates first"):
        torch.export.export(model, (x,), strict=True)
    torch.export.export(model, (x,), strict=True)


def test_exported_model_has_no_blocks():
    model = torch.export.export(twins("swapped")[1], (images(N),)).module()
    with pytest.raises(ValueError, match="an exported or traced model has none"):
        with record_gates(model):
            pass


# What is left behind


def is_clean(model):
    return not any("__on_gate__" in vars(module) for module in model.modules())


@each_model
def test_nothing_is_left(make):
    model = make()[1]
    before = copy.deepcopy(model.state_dict())
    with record_gates(model):
        assert not is_clean(model)
        torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert is_clean(model)
    with pytest.raises(KeyError, match="in between"):
        with record_gates(model):
            raise KeyError("in between")
    assert is_clean(model)
    with record_gates(model):
        pass


def test_inner_record_raises_and_the_outer_goes_on():
    model = nn.Sequential(FusedSE(C), FusedSE(C))
    with record_gates(model) as record:
        with pytest.raises(RuntimeError, match="the model is being recorded already"):
            with record_gates(model[1]):
                pass
        model(torch.randn(2, C, 3, 3))
    assert [sums.samples for sums in record.blocks.values()] == [2, 2]
    with record_gates(model[0]), record_gates(model[1]):
        pass


@each_model
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],
    ids=["deepcopy", "pickle"],
)
def test_copies_are_not_recorded(make, copied):
    if make is MODELS["swapped"] and copied is not copy.deepcopy:
        make = MODELS["fused-blocks"]  # which has a swapped module of a class that can be pickled
    model, x = make()[1].eval(), images(N)
    with record_gates(model) as record:
        other = copied(model)
        other(x)
        assert not any(sums.samples for sums in record.blocks.values())
        assert torch.equal(model(x), other(x))
    assert recorded_gates(other, x).keys() == record.blocks.keys()
