"""A network's other lives: other dtypes, the meta device, inference mode, determinism, hooks."""

import copy

import pytest
import torch
from module_cases import expected_of, feature_map, small
from shapes import DTYPES
from torch import nn
from torch._subclasses import FakeTensorMode
from twins import COMPOSED, assert_same, each_kind, gradients, images, twins

from se_fused import replace_se, restore_se

# dtypes and devices


@each_kind
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_converted_network(native_place, kind, dtype):
    """y and the gradients are no further from float64 than the plain network's of that dtype."""
    device = native_place.device
    nets = [net.eval().to(dtype) for net in twins(kind, device=device)]
    x = images(dtype=dtype, device=device)
    exact = gradients(copy.deepcopy(nets[0]).double(), x.double())
    expected, found = (gradients(net, x) for net in nets)
    for name, t in found.items():
        assert t.dtype == dtype and t.shape == exact[name].shape, name
        error, eager = ((g[name].double() - exact[name]).norm() for g in (found, expected))
        eps = torch.finfo(dtype).eps
        assert error <= 2 * (eager + 4 * eps * exact[name].norm()), name


CONVERSIONS = {
    "half": (lambda net: net.half(), torch.float16),
    "bfloat16": (lambda net: net.bfloat16(), torch.bfloat16),
    "float": (lambda net: net.float(), torch.float32),
    "to": (lambda net: net.to(torch.float16), torch.float16),
    "type": (lambda net: net.type(torch.float32), torch.float32),
}


@each_kind
@pytest.mark.parametrize("convert, dtype", CONVERSIONS.values(), ids=CONVERSIONS)
def test_conversion_and_back(kind, convert, dtype):
    plain, fused = (net.eval() for net in twins(kind))
    assert convert(fused)(images(dtype=dtype)).dtype == dtype
    fused.double().load_state_dict(plain.state_dict())
    x = images()
    assert_same(fused(x), plain(x))


@each_kind
def test_meta_device_then_materialised(native_place, kind):
    device = native_place.device
    plain, fused = twins(kind, device=device)
    state = copy.deepcopy(plain.state_dict())
    fused = fused.to("meta")
    found = gradients(fused, images().to("meta"))
    expected = gradients(plain, images(device=device))
    assert {name: t.shape for name, t in found.items()} == {
        name: t.shape for name, t in expected.items()
    }
    assert all(t.is_meta for t in found.values())
    fused = fused.to_empty(device=device)
    fused.load_state_dict(state)
    plain.load_state_dict(state)
    x = images(device=device)
    assert_same(gradients(fused, x), gradients(plain, x))


@each_kind
def test_fake_tensors(kind):
    fused, x = twins(kind)[1], images().contiguous(memory_format=torch.channels_last)
    expected = gradients(fused, x)
    with FakeTensorMode() as mode:
        for module in fused.modules():
            for own in (module._parameters, module._buffers):
                own.update({n: t if t is None else mode.from_tensor(t) for n, t in own.items()})
        found = gradients(fused, mode.from_tensor(x))
    describe = lambda tensors: {name: (t.shape, t.dtype) for name, t in tensors.items()}
    assert describe(found) == describe(expected)
    assert found["dx"].stride() == expected["dx"].stride()


# Modes


@each_kind
def test_inference_mode_and_no_grad(native_place, kind):
    device = native_place.device
    plain, fused = (net.eval() for net in twins(kind, device=device))
    x = images(device=device)
    expected = plain(x).detach()
    with torch.inference_mode():
        found = fused(x)
        assert found.is_inference() and found.grad_fn is None
        assert_same(found, expected)
        assert_same(fused(images(device=device).copy_(x)), expected)
    with torch.no_grad():
        found = fused(x)
        assert not found.requires_grad and not found.is_inference()
        assert_same(found, expected)
    assert fused(x).grad_fn is not None
    with torch.inference_mode():
        inference_x = images(device=device).copy_(x)
    fused.requires_grad_(False)
    assert_same(fused(inference_x).clone(), expected)


def test_swap_inside_inference_mode():
    plain, x = twins("swapped")[0], images()
    with torch.inference_mode():
        inside = copy.deepcopy(plain)  # of inference tensors
        for net in (plain, inside):
            expected = net(x)
            assert len(replace_se(net).replaced) == 2
            assert torch.is_inference_mode_enabled()
            assert_same(net(x), expected)


@each_kind
def test_nothing_is_saved_without_gradients(native_place, kind):
    _, fused = twins(kind, device=native_place.device)
    x, saved = images(device=native_place.device), []
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda t: t):
        with torch.no_grad():
            fused(x)
        fused.requires_grad_(False)(x)
    assert not saved


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@each_kind
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_deterministic_algorithms(deterministic, native_place, kind, dtype):
    _, fused = twins(kind, dtype, native_place.device)
    x = images(8, (13, 11), dtype, native_place.device)
    first, *others = [gradients(copy.deepcopy(fused), x) for _ in range(3)]
    for again in others:
        assert all(torch.equal(again[name], t) for name, t in first.items())
    assert all(t.isfinite().all() for t in first.values())


# Hooks on FusedSE itself


@pytest.mark.parametrize("arguments", [{}, COMPOSED], ids=["one-operator", "composed"])
def test_hooks_see_the_block_s_values(place, arguments):
    module = small(place, **arguments).eval()
    x, dy = feature_map(place, 8).requires_grad_(), feature_map(place, 8)
    y = module(x)
    (dx,) = torch.autograd.grad(y, x, dy)
    seen = {}
    module.register_forward_pre_hook(lambda m, args: seen.update(before=args))
    module.register_forward_hook(lambda m, args, result: seen.update(inputs=args, result=result))
    module.register_full_backward_pre_hook(lambda m, dy: seen.update(dy_before=dy))
    module.register_full_backward_hook(lambda m, dx, dy: seen.update(dx=dx, dy=dy))
    parameter = module.fc2.weight
    parameter.register_hook(lambda gradient: seen.update(parameter=gradient))
    y = module(x)
    y.register_hook(lambda gradient: seen.update(y=gradient))
    y.backward(dy)
    expected = dict(before=(x,), inputs=(x,), result=y, dy_before=(dy,), dx=(dx,), dy=(dy,), y=dy,
                    parameter=parameter.grad)
    assert seen.keys() == expected.keys()
    torch.testing.assert_close(seen, expected, rtol=1e-12, atol=1e-13)
    if not arguments:
        torch.testing.assert_close(y, expected_of(module, x))


def test_hooks_that_change_values_count(place):
    module = small(place)
    x = feature_map(place, 8).requires_grad_()
    handles = [
        module.register_forward_pre_hook(lambda m, args: (2 * args[0],)),
        module.register_forward_hook(lambda m, args, result: result + 1),
        module.register_full_backward_hook(lambda m, dx, dy: (3 * dx[0],)),
    ]
    y = module(x)
    torch.testing.assert_close(y, expected_of(module, 2 * x) + 1)
    y.sum().backward()
    (expected,) = torch.autograd.grad(expected_of(module, 2 * x).sum(), x)
    torch.testing.assert_close(x.grad, 3 * expected)
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(module(x), expected_of(module, x))
    assert "one operator" in repr(module)


def test_hook_registered_after_the_swap_survives_the_restoration():
    plain, net = twins("swapped")
    seen, x = [], images()
    net.first.register_forward_hook(lambda module, args, result: seen.append(result))
    expected = plain.first(plain.stem(x))
    assert_same(gradients(net, x), gradients(plain, x))
    restore_se(net)
    assert_same(gradients(net, x), gradients(plain, x))
    assert_same(seen, [expected, expected])


def test_global_hook_sees_fused_blocks():
    _, net = twins("swapped")
    seen = []
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, args, result: seen.append(type(module).__name__)
    )
    try:
        net(images())
    finally:
        handle.remove()
    assert "FusedSELayer" in seen and "FusedSEModule" in seen
