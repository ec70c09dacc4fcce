"""Verifies an SE module before it is replaced: whether anything would be lost, and whether both
forms agree in float64 on random numbers."""

import copy

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn.utils import parametrize

from se_fused.modules.layers import LayerPaths, has_hooks, is_plain, layers_of
from se_fused.modules.se import Form
from se_fused.surgery.candidates import is_script, lazy_layer, named_modules
from se_fused.surgery.comparison import (
    RandomStates,
    Step,
    attributes_of,
    changed_attribute,
    description,
    first_line,
    once,
    verifying,
)
from se_fused.surgery.observed_run import size_text
from se_fused.surgery.random_copies import generator, random_copy
from se_fused.surgery.replaced_se import ReplacedSE, form_of, replace_forward, unfit
from se_fused.surgery.report import NotFusible, path_of

NO_SE = "it squeezes no feature map [N, C, *spatial]"
_LARGE = 30
_SIZES = ((3, 5), (4, 3)), ((3, 5, 2), (2, 3, 4)), ((5,), (8,))


def verify(
    module: nn.Module, kind: type[ReplacedSE], paths: LayerPaths, verified: dict | None = None
) -> Form:
    """What a module computes, if replacing it loses and changes nothing; else raises NotFusible.

    Copies on the CPU, with random parameters, are compared in result, gradients and buffers, in
    training and in eval mode, at two sizes. The module itself is not run.

    verified: the results of other modules, to which this one is added.
    """
    verified = {} if verified is None else verified
    try:
        reason = _loss(module, kind, paths)
        if reason is not None:
            raise NotFusible(reason)
        form = form_of(module, kind, paths)
        key = kind, type(module), paths, form.guard.signature, description(module)
    except NotFusible:
        raise
    except Exception as error:  # whatever a library's code raises
        raise NotFusible(f"it could not be looked at: {first_line(error)}") from error
    once(verified, key, _compare, module, kind, form)
    return form


def _loss(module: nn.Module, kind: type[ReplacedSE], paths: LayerPaths) -> str | None:
    """What replacing it would lose, or why its layers cannot be read."""
    modules = [m for _, m in named_modules(module)]
    if getattr(type(module), "forward", None) in (None, nn.Module.forward):
        return "it has no forward, as where torch.fx has traced it: call replace_se before"
    if isinstance(module, torch.fx.GraphModule):
        return "it is a torch.fx.GraphModule, which writes its forward itself"
    if any(is_script(m) for m in modules):
        return "it is compiled by torch.jit"
    if any("forward" in vars(m) for m in modules):
        return "its forward has been patched"
    if any(parametrize.is_parametrized(m) for m in modules):
        return "it is parametrized"
    if lazy_layer(module) is not None:
        return f"its layer {lazy_layer(module)} has no parameters yet"
    if any(has_hooks(m) for m in modules):
        return "it has hooks"
    layers = layers_of(module, paths)
    for path, layer in ((paths.fc1, layers.fc1), (paths.fc2, layers.fc2)):
        weight = layer and vars(layer)["_parameters"].get("weight")
        if path is not None and weight is None:
            return f"its layer {path}, a {path_of(type(layer))}, has no weight that se_fused knows"
    used = {path.partition(".")[0] for path in paths if isinstance(path, str)}
    for name, child in vars(module)["_modules"].items():
        if child is None:
            continue
        if name not in used and name not in kind.__other_layers__ and child.state_dict():
            return f"its layer {name} is none of SE's"
    norm, others = layers.norm, tuple(f"{name}." for name in kind.__other_layers__)
    of_norm = {id(buffer) for buffer in norm.buffers()} if isinstance(norm, nn.Module) else set()
    for name, buffer in module.named_buffers():
        if id(buffer) not in of_norm and not name.startswith(others):
            return f"its buffer {name} may change what it computes"
    for tensor in module.parameters():
        if not is_plain(tensor):
            return f"it has a {type(tensor).__name__} among its parameters"
    return None


def _compare(module: nn.Module, kind: type[ReplacedSE], form: Form):
    with verifying(module, "it"):
        _compare_copies(module, kind, form)


def _compare_copies(module: nn.Module, kind: type[ReplacedSE], form: Form):
    numbers, states = generator(), RandomStates.now()
    original = random_copy(module, numbers)
    fused = copy.deepcopy(original)
    replace_forward(fused, kind, form)
    before, errors = attributes_of(original), []
    for sizes in _SIZES:
        examples = [kind.__example_map__(original, form.paths, size, numbers) for size in sizes]
        squeezed = _squeezed(original, form, examples[0])
        if isinstance(squeezed, str):
            errors.append(f"it takes no map of {size_text(sizes[0])}: {squeezed}")
            continue
        changed = changed_attribute(original, before)
        if changed is not None:
            raise NotFusible(f"its forward sets {changed}")
        if squeezed != examples[0].shape[0] * form.channels:
            raise NotFusible(NO_SE)
        reason = form.guard.difference(fused) or unfit(kind, fused, form, examples[0])
        if reason is not None:  # it would be compared with itself
            raise NotFusible(f"in a copy of it, {reason}")
        for x in examples:
            x[1] *= _LARGE  # beyond the bounds of functions that have some
            for training in (True, False):
                _compare_once(original.train(training), fused.train(training), form, x, states)
        return
    raise NotFusible(errors[0])


def _squeezed(original: nn.Module, form: Form, x: Tensor) -> int | str:
    """How many numbers the first layer gets; an error if the module does not take the map."""
    squeezed = []
    first = layers_of(original, form.paths).fc1
    with first.register_forward_pre_hook(lambda _, args: squeezed.append(args[0].numel())):
        try:
            original.eval()(x)
        except Exception as error:  # whatever a library's forward raises
            return first_line(error)
    return squeezed[-1] if squeezed else 0


def _compare_once(original, fused, form: Form, x: Tensor, states: RandomStates):
    before = attributes_of(original, tensors=False)
    expected = Step.of(original, (x,), {}, states)
    result = expected.values[0]
    if result != "Tensor":
        kind = result[0] if isinstance(result, tuple) else result
        raise NotFusible(f"it returns a {kind}, not a tensor")
    y = expected.values[1]
    if y.shape != x.shape and y.numel() == x.shape[0] * form.channels:
        raise NotFusible("it returns the gate; its caller multiplies")
    changed = changed_attribute(original, before)
    if changed is not None:
        raise NotFusible(f"its forward sets {changed}")
    difference = form.guard.difference(fused)
    if difference is not None:
        raise NotFusible(f"in a copy of it, {difference}")
    found = Step.of(fused, (x,), {}, states)
    if "__said__" in vars(fused):
        raise NotFusible(f"in a copy of it, {vars(fused)['__said__']}")
    if not found.agrees(expected) or found.drawn != expected.drawn:
        raise NotFusible("it computes something else than SE of its layers")
