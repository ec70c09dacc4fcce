"""FusedBatchNormSE in PyTorch's other modes: 16 bits, autocast, transforms, checkpoints."""

import copy

import pytest
import torch
from norm_twins import fused_calls, maps, norm_twins, step
from shapes import REDUCED
from torch.func import functional_call, grad, jacrev, jvp, vmap
from torch.utils.checkpoint import checkpoint
from twins import assert_same

import se_fused

__all__ = ["fused_calls"]  # a fixture

RESIDUAL = dict(add=True, post_act="relu")
each_mode = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
each_reduced = pytest.mark.parametrize("dtype", REDUCED.values(), ids=REDUCED)


# dtypes


def smooth_twins(dtype, device, **options):
    """Without a ReLU after the addition, whose input's sign 16 bits may change."""
    return norm_twins(dtype, device, act="silu", add=True, **options)


def assert_no_less_exact(found, plain_found, exact, dtype):
    """Than the plain module's, each in its norm."""
    for name, t in found.items():
        if t.dtype.is_floating_point:
            error, eager = ((f[name].double() - exact[name]).norm() for f in (found, plain_found))
            eps = torch.finfo(dtype).eps
            assert error <= 2 * (eager + eps * exact[name].norm()), name


def flat(found) -> dict[str, torch.Tensor]:
    dx, dresidual = found.pop("gradients")
    return found | {"dx": dx, "dresidual": dresidual}


@each_reduced
@each_mode
@pytest.mark.parametrize("how", ["converted", "autocast", "autocast-of-backward-too"])
def test_16_bit_maps(native_place, fused_calls, dtype, training, how):
    device = native_place.device
    parameters = dtype if how == "converted" else torch.float32
    nets = [m.train(training) for m in smooth_twins(parameters, device)]
    inputs = maps(8, dtype=dtype, device=device)
    exact = flat(step(copy.deepcopy(nets[0]).double(), [t.double() for t in inputs]))

    def run(module):
        if how == "converted":
            return flat(step(module, inputs))
        if how == "autocast":
            def function(*inputs):
                with torch.autocast(device, dtype=dtype):
                    return module(*inputs)
            return flat(step(module, inputs, function))
        with torch.autocast(device, dtype=dtype):
            return flat(step(module, inputs))

    expected, found = map(run, nets)
    assert len(fused_calls) == 1
    assert found["y"].dtype == found["dx"].dtype == found["dresidual"].dtype == dtype
    assert {p.dtype for p in nets[1].parameters()} == {parameters}
    assert_no_less_exact(found, expected, exact, dtype)


@each_reduced
def test_autocast_of_a_float32_map_and_a_16_bit_residual(fused_calls, dtype):
    """Which PyTorch adds in float32; such a residual is none like x."""
    plain, fused = norm_twins(torch.float32, **RESIDUAL)
    x, residual = maps(dtype=torch.float32)
    with torch.autocast("cpu", dtype=dtype):
        found, expected = (module(x, residual.to(dtype)) for module in (fused, plain))
    assert found.dtype == expected.dtype == torch.float32 and not fused_calls
    torch.testing.assert_close(found, expected, rtol=0, atol=8 * torch.finfo(dtype).eps)


# torch.func


def loss_of(module, buffers):
    return lambda p, *inputs: functional_call(module, (p, buffers), inputs).square().sum()


def parts(module):
    return {n: p.detach() for n, p in module.named_parameters()}, dict(module.named_buffers())


def gradient(module, *inputs):
    parameters, buffers = parts(module)
    return grad(loss_of(module, buffers), argnums=(0, 1, 2))(parameters, *inputs)


def gradient_of_each_sample(module, *inputs):
    parameters, buffers = parts(module)
    loss = loss_of(module, buffers)
    of_one = grad(lambda p, x, residual: loss(p, x[None], residual[None]))
    return vmap(of_one, (None, 0, 0))(parameters, *inputs)


TRANSFORMS = {
    "grad": gradient,
    "gradient-of-each-sample": gradient_of_each_sample,
    "vmap": lambda m, x, r: vmap(m)(torch.stack([x, r]), torch.stack([r, x])),
    "jacrev": lambda m, x, r: jacrev(m)(x[:1, :, :2, :2], r[:1, :, :2, :2]),
    "jvp": lambda m, x, r: jvp(m, (x, r), (r.cos(), x.sin())),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_torch_func_in_eval_mode(transform):
    plain, fused = (m.eval() for m in norm_twins(act="silu", **RESIDUAL))
    inputs = maps()
    assert_same(transform(fused, *inputs), transform(plain, *inputs))


def test_errors_of_transforms():
    plain, fused = norm_twins(**RESIDUAL)
    inputs = maps()
    for module in (plain, fused):  # PyTorch's own
        with pytest.raises(RuntimeError, match="would mutate a captured Tensor"):
            gradient(module, *inputs)
        with pytest.raises(RuntimeError, match="running_mean or running_var"):
            TRANSFORMS["vmap"](module, *inputs)
    with se_fused.backend("cpp") if not se_fused.backends.why_not("cpp", torch.device("cpu")) else (
        pytest.skip("cpp cannot run; test_transforms.py says where the message comes from")
    ):
        with pytest.raises(RuntimeError, match="'cpp' cannot .* torch.func"):
            gradient(fused.eval(), *inputs)


# Checkpoints


@pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "not-reentrant"])
@each_mode
def test_activation_checkpointing(native_place, fused_calls, use_reentrant, training):
    """The batch is counted twice and the running statistics updated twice, as PyTorch's are."""
    device = native_place.device
    nets = [m.train(training) for m in norm_twins(device=device, **RESIDUAL)]
    inputs, found = maps(device=device), []
    for module in nets:
        again = lambda *a, m=module: checkpoint(m, *a, use_reentrant=use_reentrant)
        found.append(step(module, inputs, again))
    assert_same(found[1], found[0])
    assert nets[1].bn.num_batches_tracked == 2 * training
    assert len(fused_calls) == 2


def test_inference_mode(native_place):
    plain, fused = (m.eval() for m in norm_twins(device=native_place.device, **RESIDUAL))
    inputs = maps(device=native_place.device)
    with torch.inference_mode():
        found = fused(*inputs)
        assert found.is_inference()
        assert_same(found, plain(*inputs))
