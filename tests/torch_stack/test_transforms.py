"""torch.func, forward-mode differentiation and gradients of gradients, against plain PyTorch."""

import pytest
import torch
from conftest import PLACES
from pairwise import each_pair
from torch.autograd import forward_ad, functional
from torch.func import (
    functional_call,
    functionalize,
    grad,
    grad_and_value,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    linearize,
    vjp,
    vmap,
)
from twins import KINDS, assert_same, each_kind, images, twins

import se_fused

# A backward pass that is batched or differentiated runs on plain operators, in either layout.
pytestmark = pytest.mark.filterwarnings("error:.*batching rule")
LAYOUTS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}
each_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
OUTPUTS = 5


def parts(net):
    parameters = {name: p.detach() for name, p in net.named_parameters()}
    return parameters, dict(net.named_buffers())


def loss_of(net, buffers):
    return lambda parameters, x: functional_call(net, (parameters, buffers), (x,)).square().sum()


def of_other_parameters(net, x, t):
    parameters, _ = parts(net)
    return functional_call(net, {name: 0.5 * p + 0.1 for name, p in parameters.items()}, (x,))


def gradient(net, x, t):
    parameters, buffers = parts(net)
    return grad_and_value(loss_of(net, buffers), argnums=(0, 1))(parameters, x)


def of_each_sample(net, x, t):
    parameters, buffers = parts(net)
    loss = loss_of(net, buffers)
    return vmap(grad(lambda p, sample: loss(p, sample[None])), (None, 0))(parameters, x)


def ensemble(net, x, t):
    """Three networks at once, and the gradient of all their parameters."""
    parameters, buffers = parts(net)
    stacked = {name: torch.stack([p, 2 * p, p + 0.1]) for name, p in parameters.items()}
    leaves = {name: p.requires_grad_() for name, p in stacked.items()}
    y = vmap(lambda p: functional_call(net, (p, buffers), (x,)))(leaves)
    return y, torch.autograd.grad(y.square().sum(), list(leaves.values()))


def jacobian_of_a_parameter(net, x, t):
    parameters, buffers = parts(net)
    name = next(name for name in parameters if name.startswith("first"))
    of = lambda p: functional_call(net, (parameters | {name: p}, buffers), (x,))
    return jacfwd(of)(parameters[name]), jacrev(of)(parameters[name])


def hessian_vector(net, x, t):
    square = lambda x: net(x).square().sum()
    return jvp(grad(square), (x,), (t,)), vjp(grad(square), x)[1](t)


def scalar_of(net):
    return lambda x: net(x).pow(3).sum()


TRANSFORMS = {
    "functional-call": of_other_parameters,
    "grad": gradient,
    "gradient-of-each-sample": of_each_sample,
    "ensemble": ensemble,
    "vmap-of-another-dim": lambda net, x, t: vmap(net, 1, 1)(torch.stack([x, t], 1)),
    "jacrev": lambda net, x, t: jacrev(net)(x),
    "jacfwd": lambda net, x, t: jacfwd(net)(x),
    "jacobians-of-a-parameter": jacobian_of_a_parameter,
    "jvp": lambda net, x, t: jvp(net, (x,), (t,)),
    "vjp": lambda net, x, t: vjp(net, x)[1](net(t)),
    "hessian": lambda net, x, t: hessian(scalar_of(net))(x[:1, :, :2, :2]),
    "hessian-vector": hessian_vector,
    "functionalize": lambda net, x, t: functionalize(net)(x),
}


@each_kind
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_torch_func(kind, transform):
    plain, fused = (net.eval() for net in twins(kind))
    x, t = images(), images()
    assert_same(transform(fused, x, t), transform(plain, x, t))


@pytest.mark.parametrize("kind", ["one-operator", "composed"])  # not layers that work in place
def test_linearize(kind):
    plain, fused = (net.eval() for net in twins(kind))
    x, t = images(), images()
    assert_same(linearize(fused, x)[1](t), linearize(plain, x)[1](t))


@pytest.mark.parametrize("place", [p for p in PLACES if p.backend != "eager" and p.device == "cpu"],
                         ids=lambda place: place.name)
@pytest.mark.parametrize("name", ["grad", "gradient-of-each-sample", "jacfwd", "jvp"])
@pytest.mark.parametrize("kind", ["one-operator", "composed"])
def test_forced_backend_says_which_one_to_use(kind, name, place):
    fused, x, t = twins(kind)[1].eval(), images(), images()
    with se_fused.backend(place.backend):
        message = f"backend '{place.backend}' cannot .* torch.func .* se_fused.backend..eager"
        with pytest.raises(RuntimeError, match=message):
            TRANSFORMS[name](fused, x, t)
        with se_fused.backend("eager"):
            TRANSFORMS[name](fused, x, t)


# Forward mode


def tangent(net, x, t):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(net(forward_ad.make_dual(x, t)))


def gradient_of_tangent(net, x, t):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(tangent(net, x, t).tangent.square().sum(), x)


def tangent_of_backward(net, x, t):
    """Forward mode of the backward pass alone: how dx changes with dy."""
    x = x.clone().requires_grad_()
    y = net(x)
    with forward_ad.dual_level():
        dy = forward_ad.make_dual(y.detach(), y.detach().cos())
        found = torch.autograd.grad(y, [x, *net.parameters()], dy)
        return [forward_ad.unpack_dual(gradient) for gradient in found]


TANGENTS = {of.__name__: of for of in (tangent, gradient_of_tangent, tangent_of_backward)}


@each_pair(kind=KINDS.keys(), of=TANGENTS, layout=LAYOUTS)
def test_forward_mode(kind, of, layout):
    plain, fused = (net.eval() for net in twins(kind))
    x, t = images().contiguous(memory_format=layout), images()
    expected = of(plain, x, t)
    assert not any(part is None for part in torch.utils._pytree.tree_leaves(expected))
    assert_same(of(fused, x, t), expected)


# Jacobians of torch.autograd


def batched_backward(net, x):
    x = x.clone().requires_grad_()
    y = net(x)
    each = torch.eye(y.numel(), dtype=x.dtype).view(-1, *y.shape)
    return torch.autograd.grad(y, [x, *net.parameters()], each, is_grads_batched=True)


JACOBIANS = {
    "row-by-row": functional.jacobian,
    "vectorized": lambda net, x: functional.jacobian(net, x, vectorize=True),
    "vectorized-forward-mode": lambda net, x: functional.jacobian(
        net, x, vectorize=True, strategy="forward-mode"
    ),
    "batched-backward": batched_backward,
    "hessian": lambda net, x: functional.hessian(scalar_of(net), x[:1, :, :2, :2]),
    "vectorized-hessian": lambda net, x: functional.hessian(
        scalar_of(net), x[:1, :, :2, :2], vectorize=True
    ),
    "hessian-vector": lambda net, x: functional.hvp(scalar_of(net), x, x.cos()),
    "vector-hessian": lambda net, x: functional.vhp(scalar_of(net), x, x.cos()),
}


@each_pair(kind=KINDS.keys(), jacobian=JACOBIANS, layout=LAYOUTS)
def test_autograd_functional(kind, jacobian, layout):
    plain, fused = (net.eval().to(memory_format=layout) for net in twins(kind))
    x = images(2, (4, 3)).contiguous(memory_format=layout)
    assert_same(jacobian(fused, x), jacobian(plain, x))


@each_layout
def test_batched_gradient_of_a_map_alone(place, layout):
    """The rescale's gradient of x alone, where its gate is constant."""
    x = images(2, (3, 2), device=place.device).contiguous(memory_format=layout).requires_grad_()
    gate = torch.randn(2, 3, dtype=x.dtype, device=x.device)
    y = se_fused.rescale(x, gate)
    each = torch.randn(4, *y.shape, dtype=x.dtype, device=x.device)
    (found,) = torch.autograd.grad(y, x, each, is_grads_batched=True)
    assert_same(found, each * gate[:, :, None, None])


# Gradient penalty


def wgan_gp(net, real, fake):
    """The critic's loss of WGAN-GP (arXiv 1704.00028, alg. 1) and its gradients."""
    mixing = torch.rand(len(real), 1, 1, 1, dtype=real.dtype, device=real.device)
    between = (mixing * real + (1 - mixing) * fake).requires_grad_()
    (slope,) = torch.autograd.grad(net(between)[:, 0].sum(), between, create_graph=True)
    penalty = (slope.flatten(1).norm(dim=1) - 1).square().mean()
    loss = net(fake)[:, 0].mean() - net(real)[:, 0].mean() + 10 * penalty
    net.zero_grad()
    loss.backward()
    gradients = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), "penalty": penalty.detach()} | gradients


@each_kind
def test_gradient_penalty(native_place, kind):
    device = native_place.device
    plain, fused = twins(kind, device=device)
    real, fake = images(device=device), images(device=device)
    results = []
    for net in (fused, plain):
        torch.manual_seed(7)
        results.append(wgan_gp(net, real, fake))
    assert_same(*results)
    assert results[0]["first.fc1.weight" if kind != "swapped" else "first.fc.0.weight"].any()
