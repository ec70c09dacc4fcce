"""Before a swap: what would be lost, and whether both forms agree in float64 on random numbers."""

import copy
from operator import attrgetter

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from se_fused import ops
from se_fused.surgery.families import Family
from se_fused.surgery.swapped import swap

NO_SE = "it squeezes no feature map [N, C, *spatial]"
_SIZES = ((3, 5), (3, 5, 2), (5,))
_SEED = 1709


def obstacle(module: nn.Module, family: Family) -> str | None:
    """What a swap would lose."""
    if any("forward" in vars(m) for m in module.modules()):
        return "its forward has been patched"
    if any(parametrize.is_parametrized(m) for m in module.modules()):
        return "it is parametrized"
    if any(_has_hooks(m) for m in module.modules()):
        return "it has hooks"
    used = {slot.partition(".")[0] for slot in family.slots if isinstance(slot, str)}
    for name, child in module.named_children():
        if name not in used and name not in family.swapped.beside and child.state_dict():
            return f"its layer {name} is none of SE's"
    return None


def _has_hooks(module: nn.Module) -> bool:
    return any(value for name, value in vars(module).items() if name.endswith("_hooks"))


def difference(module: nn.Module, family: Family) -> str | None:
    """How ``module`` swapped would differ from what it is now; None if it would not.

    Copies on the CPU, with random parameters, are compared in result and gradients, in training
    and in eval mode. The module itself is not run.
    """
    with (
        torch.random.fork_rng(devices=[]),
        ops.backend("eager"),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        torch.manual_seed(_SEED)
        try:
            original = _random_copy(module).eval()
            fused = copy.deepcopy(original)
            swap(fused, family.swapped, family.slots)
            examples = [fused.example_map(size) for size in _SIZES]
        except (AttributeError, RuntimeError, TypeError, NotImplementedError) as error:
            return f"it could not be tried: {_first_line(error)}"
        squeezed = []
        first = attrgetter(family.slots.fc1)(original)
        hook = first.register_forward_pre_hook(lambda _, args: squeezed.append(args[0].numel()))
        for x in examples:
            try:
                original(x)
            except Exception:  # whatever a library's forward raises
                continue
            hook.remove()
            samples_and_channels = x.shape[0] * first.weight.shape[1]
            is_se = squeezed[-1:] == [samples_and_channels]
            return _compare(original, fused, x) if is_se else NO_SE
        return NO_SE


def _random_copy(module: nn.Module) -> nn.Module:
    twin = copy.deepcopy(module)
    tensors = [*twin.parameters(), *twin.buffers()]
    on_meta = any(t.is_meta for t in tensors)
    twin = (twin.to_empty(device="cpu") if on_meta else twin.cpu()).double()
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.normal_().mul_(2 / max(parameter[0].numel(), 1) ** 0.5)
        for buffer in twin.buffers():
            buffer.copy_(torch.rand_like(buffer) + 0.5) if buffer.is_floating_point() else None
    return twin.requires_grad_()


def _compare(original: nn.Module, fused: nn.Module, x: Tensor) -> str | None:
    for training in (True, False):
        expected = _run(original.train(training), x)
        if not isinstance(expected[0], Tensor):
            return f"it returns a {type(expected[0]).__name__}, not a tensor"
        if expected[0].shape != x.shape and expected[0].numel() == x.shape[0] * x.shape[1]:
            return "it returns the gate; its caller multiplies"
        found = _run(fused.train(training), x)
        if not all(map(_close, found, expected)):
            return "it computes something else than SE of its layers"
    return None


def _run(module: nn.Module, x: Tensor) -> list:
    """The result, and the gradients of x and of every parameter."""
    torch.manual_seed(_SEED)
    x = x.clone().requires_grad_()
    y = module(x)
    if not isinstance(y, Tensor):
        return [y]
    wanted = [x, *module.parameters()]
    return [y.detach(), *torch.autograd.grad(y.square().sum(), wanted, allow_unused=True)]


def _close(found: Tensor | None, expected: Tensor | None) -> bool:
    if found is None or expected is None:
        return found is expected
    # 1e-6: PyTorch's own hardsigmoid has a float32 1/6 in its float64 gradient.
    return found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-6, atol=1e-6)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
