"""On a GPU: streams, devices and CUDA graphs. Without one: the same calls on fake CUDA tensors."""

import pytest
import torch
from block_functions import forward_backward
from conftest import HAS_GPU
from reference import check
from shapes import make_inputs
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import se_fused
from se_fused import FusedSE, backends

on_gpu = pytest.mark.skipif(
    not HAS_GPU, reason="no GPU; test_fake_cuda_tensors traces the same calls"
)
backends_on_gpu = pytest.mark.parametrize("backend", ["triton", "cpp", "eager"])


def on(backend: str):
    reason = backends.why_not(backend, torch.device("cuda"))
    if reason:
        pytest.skip(f"{backend}: {reason}; the other backends are tested")
    return se_fused.backend(backend)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fake_cuda_tensors(layout, dtype):
    """The module is one operator and needs nothing of the device. (Autograd's engine needs one;
    the backward operator's fake is in test_block_operators.py.)"""
    with FakeTensorMode():
        block = FusedSE(64, device="cuda", dtype=dtype)
        x = torch.empty(2, 64, 7, 7, device="cuda", dtype=dtype).contiguous(memory_format=layout)
        graph = make_fx(block)(x.requires_grad_()).graph
    called = [str(node.target) for node in graph.nodes if "se_fused" in str(node.target)]
    assert called == ["se_fused.squeeze_excite.default"]
    y = list(graph.nodes)[-1].args[0].meta["val"]
    assert (y.device.type, y.dtype, y.stride()) == ("cuda", dtype, x.stride())


@on_gpu
@backends_on_gpu
def test_cuda_graph(backend):
    inputs = make_inputs((4, 64, 14, 14), 8, "cuda", torch.bfloat16)
    with on(backend):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # compiles and tunes
            for _ in range(3):
                forward_backward(inputs)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = forward_backward(inputs)
    for _ in range(2):  # the counters of finished programs start anew in every replay
        for tensor in found.values():
            tensor.fill_(torch.nan)
        graph.replay()
        torch.cuda.synchronize()
        check(found, inputs)


@on_gpu
@backends_on_gpu
def test_other_stream(backend):
    """The work is queued behind what fills x on the same stream."""
    inputs = make_inputs((4, 64, 56, 56), 8, "cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with on(backend), torch.cuda.stream(stream):
        late = torch.zeros_like(inputs.x)
        torch.cuda._sleep(10_000_000)
        late.copy_(inputs.x)
        found = forward_backward(inputs._replace(x=late))
    stream.synchronize()
    check(found, inputs)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs; nothing else covers it")
@backends_on_gpu
def test_device_that_is_not_current(backend):
    inputs = make_inputs((2, 64, 7, 7), 8, "cuda:1")
    with on(backend), torch.cuda.device(0):
        found = forward_backward(inputs)
    assert all(tensor.device == torch.device("cuda:1") for tensor in found.values())
    check(found, inputs)
