"""Training: autocast with a gradient scaler, channels_last, checkpointing, frozen parameters."""

import copy

import pytest
import torch
from shapes import REDUCED
from torch import nn
from torch.utils.checkpoint import checkpoint
from twins import C, assert_same, each_kind, gradients, images, twins

from se_fused import FusedSE, replace_se

BATCHES = 6

# Autocast and the gradient scaler


def scaled_step(net, x, dtype, scaler, sgd):
    """One step as users write it; returns the unscaled gradients."""
    sgd.zero_grad()
    with torch.autocast(x.device.type, dtype=dtype):
        loss = net(x).float().square().mean()
    scaler.scale(loss).backward()
    scaler.unscale_(sgd)
    found = {name: p.grad.clone() for name, p in net.named_parameters()}
    scaler.step(sgd)
    scaler.update()
    return found


def smooth(net):
    """Without ReLU and maximum: where rounding decides which way they go, no bound holds."""
    for module in net.modules():
        if isinstance(module, FusedSE):
            module.squeeze = "avg"
        elif hasattr(module, "add_maxpool"):
            module.add_maxpool = False
        for name, layer in module.named_children():
            if isinstance(layer, nn.ReLU):
                setattr(module, name, nn.SiLU())
    return net


def errors_over_a_training(net, dtype, device) -> dict[str, tuple[float, float]]:
    """How far each parameter's gradients are from float64's at the same parameters, and the norm
    of those, over all batches."""
    torch.manual_seed(3)
    scaler = torch.amp.GradScaler(device, init_scale=2.0**8)
    sgd = torch.optim.SGD(net.parameters(), lr=1e-3)
    errors, norms = {}, {}
    for _ in range(BATCHES):
        x = images(8, dtype=torch.float32, device=device)
        exact = copy.deepcopy(net).double()
        exact.zero_grad()
        exact(x.double()).square().mean().backward()
        for (name, found), p in zip(scaled_step(net, x, dtype, scaler, sgd).items(),
                                    exact.parameters(), strict=True):
            errors[name] = errors.get(name, 0) + (found - p.grad).square().sum().item()
            norms[name] = norms.get(name, 0) + p.grad.square().sum().item()
    assert scaler.get_scale() == 2.0**8, "a step was skipped"
    return {name: (errors[name] ** 0.5, norms[name] ** 0.5) for name in errors}


@each_kind
@pytest.mark.parametrize("dtype", REDUCED.values(), ids=REDUCED)
def test_autocast_training_is_no_less_exact_than_the_plain_network_s(native_place, kind, dtype):
    plain, fused = map(smooth, twins(kind, torch.float32, native_place.device))
    before = copy.deepcopy(fused.state_dict())
    expected = errors_over_a_training(plain, dtype, native_place.device)
    found = errors_over_a_training(fused, dtype, native_place.device)
    assert not torch.equal(fused.stem.weight, before["stem.weight"])
    eps = torch.finfo(dtype).eps
    largest = max(norm for _, norm in expected.values())
    for name, (error, norm) in found.items():
        # Before a batch norm, the gradient of a bias is zero but for rounding.
        scale = largest if kind == "composed" and name.endswith("fc1.bias") else norm
        assert error <= 2 * (expected[name][0] + eps * scale), name


@each_kind
def test_gradient_scaler_skips_a_step_that_overflows(native_place, kind):
    _, net = twins(kind, torch.float32, native_place.device)
    scaler = torch.amp.GradScaler(native_place.device, init_scale=2.0**8)
    sgd = torch.optim.SGD(net.parameters(), lr=1e-3)
    x = images(dtype=torch.float32, device=native_place.device)
    before = [p.detach().clone() for p in net.parameters()]
    scaled_step(net, 1e6 * x, torch.float16, scaler, sgd)  # x itself is infinite in float16
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before))
    assert scaler.get_scale() == 2.0**7
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
    found = scaled_step(net, x, torch.float16, scaler, sgd)
    assert all(gradient.isfinite().all() for gradient in found.values())
    assert not torch.equal(net.stem.weight, before[0])


# channels_last


@each_kind
def test_channels_last_from_end_to_end(native_place, kind):
    """Maps and their gradients keep the layout, so that no convolution has to copy."""
    device = native_place.device
    plain, fused = twins(kind, device=device)
    fused = fused.to(memory_format=torch.channels_last)
    seen = {}

    def keep(name):
        def hook(module, inputs, y):
            seen[name] = y
            y.register_hook(lambda dy: seen.update({f"gradient of {name}": dy}))

        return hook

    for name in ("stem", "first", "conv", "blocks"):
        fused.get_submodule(name).register_forward_hook(keep(name))
    x = images(8, (7, 6), device=device)
    last = x.contiguous(memory_format=torch.channels_last)
    assert_same(gradients(fused, last), gradients(plain, x))
    # The head's mean hands an expanded gradient to the last block, which hands on a dense one.
    assert not seen.pop("gradient of blocks").is_contiguous(memory_format=torch.channels_last)
    assert len(seen) == 7
    for name, t in seen.items():
        assert t.is_contiguous(memory_format=torch.channels_last), name
        assert not t.is_contiguous(), f"{name} is in both layouts: the test shows nothing"


def test_eager_hands_on_a_gradient_that_must_be_copied():
    """What the test above finds is no matter of course."""
    plain, _ = twins("one-operator")
    plain, layouts = plain.to(memory_format=torch.channels_last), []
    plain.conv.register_full_backward_hook(lambda module, inputs, outputs: layouts.append(
        outputs[0].is_contiguous(memory_format=torch.channels_last)
    ))
    plain(images(8, (7, 6)).contiguous(memory_format=torch.channels_last)).sum().backward()
    assert layouts == [False]


# Activation checkpointing


def saved_elements(forward) -> int:
    """How many elements autograd keeps for the backward pass of it."""
    kept = {}

    def pack(t):
        kept[t.data_ptr()] = t.numel()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        forward()
    return sum(kept.values())


@each_kind
@pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "not-reentrant"])
def test_activation_checkpointing(native_place, kind, use_reentrant):
    device = native_place.device
    plain, fused = twins(kind, device=device)
    x, calls = images(device=device), []
    fused.first.register_forward_hook(lambda *arguments: calls.append(fused.training))
    recomputed = lambda x: checkpoint(fused, x, use_reentrant=use_reentrant)
    found, expected = gradients(fused, x, recomputed), gradients(plain, x)
    assert len(calls) == 2, "the forward pass was not run again"
    assert_same(found, expected)
    x = x.requires_grad_()
    assert saved_elements(lambda: recomputed(x)) <= x.numel() < saved_elements(lambda: fused(x))


# Frozen parameters


@each_kind
@pytest.mark.parametrize("layers", [("stem",), ("first",), ("first", "blocks"), ("conv", "head")],
                         ids="-and-".join)
def test_frozen_layers(native_place, kind, layers):
    plain, fused = twins(kind, device=native_place.device)
    for net in (plain, fused):
        for layer in layers:
            net.get_submodule(layer).requires_grad_(False)
    x = images(device=native_place.device)
    found = gradients(fused, x)
    assert not any(name.startswith(layers) for name in found) and "dx" in found
    assert_same(found, gradients(plain, x))


@each_kind
@pytest.mark.parametrize("trained", ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"])
def test_one_parameter_of_a_block_alone(native_place, kind, trained):
    """Neither the map nor the block's other parameters want a gradient."""
    if kind == "swapped":
        trained = trained.replace("fc1", "0.fc1").replace("fc2", "0.fc2")
        nets = [net.blocks for net in twins(kind, device=native_place.device)]
    else:
        nets = [net.first for net in twins(kind, device=native_place.device)]
    x = torch.randn(3, C, 5, 7, dtype=torch.float64, device=native_place.device)
    results = []
    for net in nets:
        net.requires_grad_(False).get_parameter(trained).requires_grad_()
        net(x).square().sum().backward()
        results.append({name: p.grad for name, p in net.named_parameters() if p.grad is not None})
    assert list(results[0]) == [trained]
    assert_same(*results)


def test_swap_of_a_frozen_network_keeps_it_frozen():
    plain, _ = twins("swapped")
    plain.requires_grad_(False)
    fused = copy.deepcopy(plain)
    assert len(replace_se(fused).replaced) == 2
    assert not any(p.requires_grad for p in fused.parameters())
    fused.head.requires_grad_(), plain.head.requires_grad_()
    x = images()
    assert_same(gradients(fused, x), gradients(plain, x))
