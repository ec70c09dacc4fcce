"""The choice of a backend: automatic by device, explicit without fallback, every reason told."""

import sys
from types import SimpleNamespace

import pytest
import torch
from interpreters import python
from reference import block, check, results
from shapes import make_inputs

import se_fused
from se_fused import backends

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
CONTRACT = ("unavailable", "reduce_forward", "apply_forward", "reduce_backward", "apply_backward",
            "squeeze_excite", "squeeze_excite_backward")
MIDDLE = ("merge_moments", "excite", "excite_backward")


class Stub(SimpleNamespace):
    """A backend module that can run or says why it cannot, and counts its calls."""

    OPERATORS = False

    def __init__(self, name, reason=None):
        super().__init__(name=name, reason=reason, calls=0, asked=0)

    def unavailable(self, device):
        self.asked += 1
        return self.reason

    def reduce_forward(self, x, *parts):
        self.calls += 1
        return torch.full((1, *x.shape[:2]), 7.0)


@pytest.fixture
def stubs(monkeypatch):
    """All backends replaced by stubs that can run, and no choice made yet."""
    stubs = {name: Stub(name) for name in backends.NAMES}

    def load(name):
        if isinstance(stubs[name], Exception):
            raise stubs[name]
        return stubs[name]

    monkeypatch.setattr(backends, "load", load)
    monkeypatch.setattr(backends, "_ready", {})
    monkeypatch.setattr(backends, "_forced", None)
    return stubs


def test_every_backend_keeps_the_contract(place):
    module = backends.load(place.backend)
    assert all(callable(getattr(module, name)) for name in CONTRACT + MIDDLE)
    assert isinstance(module.OPERATORS, bool)
    assert module.unavailable(torch.device(place.device)) is None


@pytest.mark.parametrize(
    "device, missing, chosen",
    [
        (CPU, [], "cpp"),
        (CPU, ["cpp"], "eager"),
        (CPU, ["triton", "cpp"], "eager"),
        (CUDA, [], "triton"),
        (CUDA, ["triton"], "cpp"),
        (CUDA, ["triton", "cpp"], "eager"),
        (torch.device("meta"), [], "eager"),
    ],
    ids=["cpu", "cpu-no-extension", "cpu-pure-python", "cuda", "cuda-no-triton",
         "cuda-pure-python", "other-device"],
)
@pytest.mark.parametrize("how", ["cannot-run", "cannot-be-imported"])
def test_automatic_choice(stubs, device, missing, chosen, how):
    for name in missing:
        stubs[name] = Stub(name, "no") if how == "cannot-run" else ImportError("no")
    assert backends.backend_for(device) == chosen


def test_call_goes_to_the_chosen_backend(stubs):
    x = torch.ones(2, 3, 4)
    assert (se_fused.squeeze(x) == 7).all()
    with se_fused.backend("triton"):
        se_fused.squeeze(x)
    assert {name: stub.calls for name, stub in stubs.items()} == {"cpp": 1, "triton": 1, "eager": 0}


@pytest.mark.parametrize("name", [None, "triton"])
def test_a_backend_that_can_run_is_asked_once(stubs, name):
    """Asking takes longer than a launch on a GPU."""
    for _ in range(3):
        with se_fused.backend(name):
            se_fused.squeeze(torch.ones(2, 3, 4))
    assert stubs[name or "cpp"].asked == 1 and stubs[name or "cpp"].calls == 3


def test_a_backend_that_cannot_run_is_asked_again(stubs):
    stubs["triton"].reason = "not yet"
    with se_fused.backend("triton"):
        with pytest.raises(RuntimeError, match="not yet"):
            backends.backend_for(CPU)
        stubs["triton"].reason = None
        assert backends.backend_for(CPU) == "triton"


def test_blocks_nest_and_restore(stubs):
    assert backends.forced_backend() is None
    with se_fused.backend("eager"):
        with se_fused.backend("triton"):
            assert backends.backend_for(CPU) == "triton"
            with se_fused.backend(None):
                assert backends.backend_for(CPU) == "cpp"
        assert backends.backend_for(CPU) == "eager"
        with pytest.raises(KeyError), se_fused.backend("cpp"):
            raise KeyError
        assert backends.backend_for(CPU) == "eager"
    assert backends.forced_backend() is None


@pytest.mark.parametrize("how", ["cannot-run", "cannot-be-imported"])
@pytest.mark.parametrize("name", backends.NAMES)
def test_named_backend_never_falls_back(stubs, name, how):
    reason = "the moon is full"
    stubs[name] = Stub(name, reason) if how == "cannot-run" else ImportError(reason)
    with se_fused.backend(name):
        for call in (lambda: se_fused.squeeze(torch.ones(2, 3)), lambda: backends.backend_for(CPU)):
            with pytest.raises(RuntimeError) as raised:
                call()
            for word in (repr(name), "cpu", reason):
                assert word in str(raised.value)
    assert all(stub.calls == 0 for stub in stubs.values() if isinstance(stub, Stub))


def test_named_backend_runs_forward_and_backward(place, monkeypatch):
    """A forced backend computes the result itself: nothing else is called."""
    for name in set(backends.NAMES) - {place.backend}:
        module = sys.modules.get(f"se_fused.backends.{backends._MODULES[name]}")
        for function in CONTRACT[1:] if module else ():
            monkeypatch.setattr(module, function, None)
    inputs = make_inputs((2, 8, 5, 5), 4, place.device)
    x = inputs.x.requires_grad_()
    y = se_fused.squeeze_excite(x, *inputs.tensors[1:])
    y.backward(inputs.dy)
    check({"y": y.detach(), "dx": x.grad}, inputs)


RUN = """
import torch, se_fused
from se_fused import backends
print("forced", backends.forced_backend())
print("sum", se_fused.squeeze(torch.ones(2, 3, 4)).sum().item())
print("ran", backends.backend_for(torch.device("cpu")))
"""


def test_environment_names_a_backend():
    done = python(RUN, SE_FUSED_BACKEND="eager")
    assert done.stdout.split() == ["forced", "eager", "sum", "6.0", "ran", "eager"], done.stderr


def test_empty_environment_is_the_automatic_choice():
    done = python(RUN, SE_FUSED_BACKEND="")
    chosen = "eager" if backends.why_not("cpp", CPU) else "cpp"
    assert done.stdout.split() == ["forced", "None", "sum", "6.0", "ran", chosen], done.stderr


def test_environment_names_an_unknown_backend():
    done = python(RUN, SE_FUSED_BACKEND="numpy")
    assert done.returncode != 0 and "sum" not in done.stdout
    assert "triton, cpp, eager" in done.stderr and "'numpy'" in done.stderr


def test_triton_on_cpu_tensors_needs_the_interpreter():
    done = python(RUN, SE_FUSED_BACKEND="triton", TRITON_INTERPRET="0")
    assert done.returncode != 0 and "sum" not in done.stdout
    assert "'triton' cannot run on cpu" in done.stderr


def test_report_tells_which_backend_each_device_gets():
    done = python("", "-m", "se_fused")
    assert done.returncode == 0, done.stderr
    chosen = "eager" if backends.why_not("cpp", CPU) else "cpp"
    assert f"backend: {chosen}" in done.stdout
    for word in (se_fused.__version__, torch.__version__, "triton", "cpp", "can run"):
        assert word in done.stdout


def test_report_of_an_impossible_request_is_no_traceback():
    done = python("", "-m", "se_fused", SE_FUSED_BACKEND="triton", TRITON_INTERPRET="0")
    assert done.returncode == 0, done.stderr
    assert "backend: none" in done.stdout and "'triton' cannot run on cpu" in done.stdout


def test_backends_agree(place):
    """All backends save the same z and g, so that a backward may run on another one."""
    inputs = make_inputs((3, 20, 7, 7), 6, place.device, torch.float64, act="gelu")
    y, _, z, g = torch.ops.se_fused.squeeze_excite(inputs.x, None, *inputs.block[1:], False)
    with se_fused.backend("eager"):
        gradients = torch.ops.se_fused.squeeze_excite_backward(
            inputs.dy, inputs.x, None, z, g, *inputs.block[1:], False
        )
    exact = results(inputs, torch.float64)
    torch.testing.assert_close(y, block(*inputs.block), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(gradients[0], exact["dx"], rtol=1e-12, atol=1e-12)
