"""The C++ backend on the CPU: instruction sets, threads, processes and memory."""

import os
import subprocess
import sys
import threading

import pytest
import torch
from block_functions import forward_backward
from block_operators import OPERATORS, call
from reference import check
from shapes import DTYPES, make_inputs
from torch.utils.data import DataLoader, Dataset

import se_fused
from se_fused import backends

CPU = torch.device("cpu")
missing = backends.why_not("cpp", CPU)
pytestmark = pytest.mark.skipif(
    missing is not None,
    reason=f"{missing}; SE_FUSED_REQUIRE=cpp makes the tests of every operator fail instead",
)


def test_torch_s_current_cuda_stream_is_found():
    """Every call on a GPU asks for it; the function is found without a GPU too."""
    if not torch._C._dispatch_has_kernel_for_dispatch_key("se_fused::squeeze_excite.cpp", "CUDA"):
        pytest.skip("the extension was built without CUDA; .ci/run builds it with CUDA")
    assert torch.ops.se_fused.finds_cuda_stream() == (torch.version.cuda is not None)


def test_what_has_no_cuda_kernel_is_pytorch_s():
    """Of tensors that are not the CPU's; their values are plain PyTorch's, tested as eager."""
    cpp = backends.load("cpp")
    x, g, vector = (torch.empty(size, device="meta") for size in ((3, 5, 7), (3, 5), 5))
    norm = vector, vector, vector
    assert cpp.reduce_forward(x, *norm, "silu", "mean").shape == (1, 3, 5)
    assert cpp.reduce_forward(x, None, None, None, "identity", "moments").shape == (2, 3, 5)
    y, mask = cpp.apply_forward(x, x, *norm, g, "silu", True)
    assert (y.shape, mask.shape) == (x.shape, (15, 1))
    sums, _ = cpp.reduce_backward(x, x, mask, *norm, None, None, "silu")
    assert sums.shape == (5, 3, 5)
    dx, dr = cpp.apply_backward(x, x, mask, *norm, g, g, None, None, None, None, "silu", True)
    assert dx.shape == dr.shape == x.shape


def python(code, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def threads():
    """Sets torch's thread count; the old one comes back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


# Large enough that threads share the work: by samples, inside samples, and phase by phase.
SPLITS = {
    "by-sample": ((4, 32, 20, 20), 8),
    "inside-samples": ((1, 64, 40, 40), 8),
    "phase-by-phase": ((5, 300, 7, 7), 120),
}


@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize(("shape", "hidden"), SPLITS.values(), ids=SPLITS)
def test_every_split_among_threads(threads, shape, hidden, count, layout):
    threads(count)
    inputs = make_inputs(shape, hidden, "cpu", layout=layout)
    with se_fused.backend("cpp"):
        check(forward_backward(inputs), inputs)
        for operator in ("gate_gradient", "squeeze_max", "gate_gradient_max"):
            check(call(operator, OPERATORS[operator].arguments(inputs)), inputs)
        inputs = make_inputs(shape, hidden, "cpu", layout=layout, squeeze="concat")
        check(forward_backward(inputs), inputs)


thorough = pytest.mark.thorough


@pytest.mark.parametrize(
    "dtype, layout",
    [
        pytest.param("fp32", "contiguous"),
        pytest.param("bf16", "channels-last"),
        pytest.param("fp32", "channels-last", marks=thorough),
        pytest.param("bf16", "contiguous", marks=thorough),
        pytest.param("fp16", "contiguous", marks=thorough),
        pytest.param("fp16", "channels-last", marks=thorough),
    ],
)
def test_output_too_large_for_the_cache(dtype, layout):
    side = {"fp32": 216, "bf16": 304, "fp16": 304}[dtype]
    inputs = make_inputs((2, 48, side, side), 4, "cpu", DTYPES[dtype], layout=layout)
    assert inputs.x.nbytes > 16 << 20
    with se_fused.backend("cpp"):
        found = {"y": se_fused.squeeze_excite(*inputs.tensors, act="relu", gate="sigmoid")}
        check(found, inputs)


def test_one_thread_uses_one_thread(threads):
    """Processor time equals wall time with one thread, on work that two would share."""
    code = """
import time, torch, se_fused
torch.set_num_threads(1)
x, se = torch.randn(16, 64, 56, 56), se_fused.FusedSE(64)
with torch.no_grad(), se_fused.backend("cpp"):
    se(x)
    wall, processor = time.perf_counter(), time.process_time()
    for _ in range(30):
        se(x)
    print((time.process_time() - processor) / (time.perf_counter() - wall))
"""
    run = python(code)
    assert float(run.stdout) < 1.1, run.stderr


class Gated(Dataset):
    def __init__(self, x):
        self.se, self.x = se_fused.FusedSE(16), x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        with torch.no_grad():
            return self.se(self.x[index : index + 1])[0]


def test_forked_worker_processes():
    dataset = Gated(torch.randn(6, 16, 60, 60))
    with se_fused.backend("cpp"), torch.no_grad():
        expected = dataset.se(dataset.x)
        loader = DataLoader(
            dataset, batch_size=3, num_workers=2, multiprocessing_context="fork", timeout=60
        )
        found = torch.cat(list(loader))
    torch.testing.assert_close(found, expected)


def test_two_python_threads_at_once():
    all_inputs = [make_inputs((4, 32, 20, 20), 8, "cpu") for _ in range(2)]
    failures = []

    def work(inputs):
        try:
            for _ in range(10):
                check(forward_backward(inputs), inputs)
        except AssertionError as error:
            failures.append(error)

    with se_fused.backend("cpp"):
        workers = [threading.Thread(target=work, args=(inputs,)) for inputs in all_inputs]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(timeout=60)
    assert not any(worker.is_alive() for worker in workers)
    assert not failures, failures


# A fork for each: the extension asks for its instruction set once.
COMPARE = """
import os, sys, torch, se_fused
from se_fused.backends import cpp, reference

NO_NORM = None, None, None

def same(name, *arguments):
    found, expected = (getattr(backend, name)(*arguments) for backend in (cpp, reference))
    torch.testing.assert_close(found, expected, equal_nan=True)
    return expected

def compare():
    torch.manual_seed(0)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        for memory_format in (torch.contiguous_format, torch.channels_last):
            x, dy = torch.randn(2, 3, 37, 9, 9).to(dtype)
            x, dy = (t.contiguous(memory_format=memory_format) for t in (x, dy))
            w = [torch.randn(n) * 0.3 for n in ((5, 37), (5,), (37, 5), (37,))]
            w = [t.to(torch.promote_types(dtype, torch.float32)) for t in w]
            same("squeeze_excite", x, None, *w, "silu", "sigmoid", False)
            same("reduce_backward", dy, x, None, *NO_NORM, None, None, "identity")
            x = x.round()
            x[0, 5:, 4, 3], x[1, :7, 8, 8], x[2, 3:] = torch.nan, torch.inf, -torch.inf
            mean, m = same("reduce_forward", x, *NO_NORM, "identity", "max")
            same("reduce_backward", dy, x, None, *NO_NORM, m, None, "identity")
            g, grad_mean, grad_max = torch.rand(3, 3, 37).to(m.dtype)
            same("apply_backward", dy, x, None, *NO_NORM, g, grad_mean, m, grad_max, None, None,
                 "identity", False)
    return cpp.cpu_capability()

for capability in sys.argv[1:]:
    if os.fork():
        assert os.wait()[1] == 0
        continue
    os.environ["SE_FUSED_CPU_CAPABILITY"] = capability
    try:
        print(capability, compare(), flush=True)
    except RuntimeError as error:
        print(capability, str(error).splitlines()[0], flush=True)
    os._exit(0)
"""


def test_instruction_sets_by_environment():
    asked = ["avx512", "avx2", "baseline", "sse9"]
    run = python(COMPARE, *asked)
    assert run.returncode == 0, run.stderr
    found = dict(line.split(maxsplit=1) for line in run.stdout.splitlines())
    assert list(found) == asked
    here = [capability for capability in asked if found[capability] == capability]
    assert here == asked[3 - len(here) : 3], "with one set, a processor has those below it"
    assert backends.load("cpp").cpu_capability() in here
    for capability in set(asked) - set(here):
        assert "SE_FUSED_CPU_CAPABILITY must be avx512, avx2 or baseline" in found[capability]
        assert capability in found[capability].rpartition("baseline")[2]


PEAK = """
import re, torch, se_fused

def status(field):
    return int(re.search(field + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024

def growth(call):
    open("/proc/self/clear_refs", "w").write("5")  # the peak starts again from what is in use
    before = status("VmRSS")
    result = call()
    return status("VmHWM") - before, result

x = torch.randn(8, 64, 128, 128, requires_grad=True)
dy = torch.randn_like(x)
se = se_fused.FusedSE(64)
# Every path once, on a small map: what it loads of the libraries' code is no memory of the call.
se(x[:2]).backward(dy[:2])
se(x[:2].detach()).backward(dy[:2])
x.grad = None
forward, y = growth(lambda: se(x))
backward, _ = growth(lambda: torch.autograd.grad(y, [x, *se.parameters()], dy))
y = se(x.detach())
frozen, _ = growth(lambda: torch.autograd.grad(y, list(se.parameters()), dy))
print(x.nbytes, forward, backward, frozen)
"""


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK),
    reason="peak memory is read from Linux's /proc; the same allocations are made elsewhere",
)
@pytest.mark.parametrize(
    "huge_pages",
    [pytest.param("0", marks=thorough, id="small-pages"), pytest.param("1", id="huge-pages")],
)
def test_memory_is_the_output_and_little_more(huge_pages):
    """Beyond y, beyond dx: O(N·C), far below the 4 MB allowed; a copy of the map would be 32 MB.
    Where nobody asks for dx, no more than that."""
    run = python(PEAK, SE_FUSED_BACKEND="cpp", SE_FUSED_HUGE_PAGES=huge_pages)
    size, forward, backward, frozen = map(int, run.stdout.split())
    assert size // 2 < forward < size + (4 << 20), run.stderr
    assert size // 2 < backward < size + (4 << 20), run.stderr
    assert frozen < 4 << 20, run.stderr
