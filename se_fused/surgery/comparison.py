"""Compares two forms of a module: a step of each, in float64, from the same random states."""

import copy
import random
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.parameter import is_lazy

from se_fused.surgery.attribute_reads import SavedContainers
from se_fused.surgery.report import NotFusible, is_verifying
from se_fused.tracing import plain_operators

# Random states and the hooks on all modules are shared by all threads.
_one_at_a_time = threading.RLock()


@contextmanager
def undisturbed():
    """PyTorch's own operators, with gradients, without hooks on all modules' forward, in silence;
    random states are put back if something drew."""
    with _one_at_a_time:
        before, token = RandomStates.now(), is_verifying.set(True)
        try:
            with without_global_hooks(), plain_operators(), torch.inference_mode(False):
                with torch.enable_grad():
                    yield
        finally:
            is_verifying.reset(token)
            if RandomStates.now() != before:
                before.restore()


@contextmanager
def verifying(module: nn.Module, what: str):
    """Undisturbed; raises NotFusible for all that is raised in it, and where the forwards in the
    module change lists, dicts or sets outside of it, which are put back."""
    saved, reason = SavedContainers(module), None
    try:
        with undisturbed():
            yield
    except NotFusible as error:
        reason = str(error)
    except Exception as error:  # whatever a library's code raises
        reason = f"{what} could not be tried: {first_line(error)}"
    finally:
        changed = saved.put_back()
    if changed is not None:
        whose = "its" if what == "it" else f"{what}'s"
        reason = f"{whose} forward changes {changed}"
    if reason is not None:
        raise NotFusible(reason)


def once(results: dict, key, function: Callable, *arguments):
    """What a function returns, or the NotFusible that it raises; called once for a key."""
    if key not in results:
        try:
            results[key] = function(*arguments)
        except NotFusible as reason:
            results[key] = NotFusible(str(reason))  # without the frames of its traceback
    if isinstance(results[key], NotFusible):
        raise NotFusible(str(results[key]))
    return results[key]


@contextmanager
def without_global_hooks():
    every = torch_module._global_forward_pre_hooks, torch_module._global_forward_hooks
    hooks = [[*each.items()] for each in every]
    try:
        for each in every:
            each.clear()
        yield
    finally:
        for each, items in zip(every, hooks):
            each.update(items)


class RandomStates(NamedTuple):
    """Of everything that a forward on the CPU usually draws from."""

    torch: bytes
    python: tuple
    numpy: tuple | None

    @classmethod
    def now(cls) -> "RandomStates":
        numpy = sys.modules.get("numpy")
        state = None
        if numpy is not None:
            kind, keys, *rest = numpy.random.get_state()
            state = kind, keys.tobytes(), *rest
        return cls(torch.get_rng_state().numpy().tobytes(), random.getstate(), state)

    def restore(self):
        state = torch.frombuffer(bytearray(self.torch), dtype=torch.uint8)
        torch.set_rng_state(state)
        random.setstate(self.python)
        if self.numpy is not None:
            numpy = sys.modules["numpy"]
            kind, keys, *rest = self.numpy
            numpy.random.set_state((kind, numpy.frombuffer(keys, numpy.uint32), *rest))


def attributes_of(module: nn.Module, tensors: bool = True) -> dict[tuple[str, str], object]:
    """The attributes of all modules in a module; of containers what is in them.

    tensors: with the parameters and buffers, which objects they are.
    """
    apart = {"training"} if tensors else {"training", "_parameters", "_buffers"}
    return {
        (path, name): _shallow(value)
        for path, inner in module.named_modules()
        for name, value in vars(inner).items()
        if name not in apart
    }


def changed_attribute(module: nn.Module, before: dict) -> str | None:
    """The name of an attribute that is another than before."""
    now = attributes_of(module, any(name == "_buffers" for _, name in before))
    for path, name in {**before, **now}:
        value, earlier = now.get((path, name)), before.get((path, name))
        if value is not earlier and not _same_items(value, earlier):
            return f"{path}.{name}".lstrip(".")
    return None


def _shallow(value):
    return copy.copy(value) if type(value) in (list, dict, set, OrderedDict) else value


def _same_items(value, earlier) -> bool:
    if type(value) is not type(earlier):
        return False
    if isinstance(value, dict):
        value, earlier = [*value.items()], [*earlier.items()]
        value, earlier = sum(value, ()), sum(earlier, ())
    if isinstance(value, (list, tuple)):
        return len(value) == len(earlier) and all(a is b for a, b in zip(value, earlier))
    return isinstance(value, (set, bool, int, float, str)) and value == earlier


def description(module: nn.Module) -> str:
    """Classes, arguments, names and shapes: what modules have in common that are verified once."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    shapes = {name: None if is_lazy(t) else (*t.shape,) for name, t in tensors.items()}
    return f"{module!r} {shapes}"


class Step(NamedTuple):
    """What a step gives: results, gradients of the inputs and the parameters, buffers."""

    values: list
    drawn: RandomStates
    kept: int  # elements kept for the backward pass

    @classmethod
    def of(cls, module: nn.Module, args: tuple, kwargs: dict, states: RandomStates) -> "Step":
        """Raises what the module raises; it may have changed its buffers then."""
        leaves = []
        kept = 0

        def leaf(value):
            if not isinstance(value, Tensor) or not value.is_floating_point():
                return value
            leaves.append(value.detach().clone().requires_grad_())
            return leaves[-1] * 1  # a block may write into its input

        def count(t):
            nonlocal kept
            kept += t.numel()
            return t

        args = [leaf(value) for value in args]
        kwargs = {name: leaf(value) for name, value in kwargs.items()}
        if RandomStates.now() != states:
            states.restore()
        with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
            result = module(*args, **kwargs)
        drawn = RandomStates.now()
        outputs = tensors_in(result)
        wanted = [*leaves, *module.parameters()]
        loss = sum((y * y).sum() for y in outputs if y.requires_grad and y.is_floating_point())
        gradients = [None] * len(wanted)
        if isinstance(loss, Tensor):
            gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
        values = [structure_of(result), *(y.detach() for y in outputs), *gradients]
        values += [buffer.clone() for buffer in module.buffers()]
        return cls(values, drawn, kept)

    def agrees(self, other: "Step") -> bool:
        return len(self.values) == len(other.values) and all(
            map(_same, self.values, other.values)
        )


def tensors_in(value) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return []
    return [t for each in value for t in tensors_in(each)]


def structure_of(value):
    """A result without its tensors."""
    if isinstance(value, dict):
        return {name: structure_of(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value).__name__, [structure_of(each) for each in value]
    return type(value).__name__


def _same(found, expected) -> bool:
    if not isinstance(found, Tensor) or not isinstance(expected, Tensor):
        return type(found) is type(expected) and found == expected
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    if not found.is_floating_point():
        return torch.equal(found, expected)
    if not expected.numel():
        return True
    # 1e-6: PyTorch's own hardsigmoid has a float32 1/6 in its float64 gradient.
    scale = max(expected.abs().max().item(), 1.0)
    return (found - expected).abs_().max().item() <= 1e-6 * scale


def first_line(error: BaseException) -> str:
    try:
        text = str(error).strip().splitlines()
    except Exception:  # whatever an error of a library's raises
        text = []
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
