"""The end of a residual block: second derivatives, what is kept, what is computed for whom."""

import pytest
import torch
from gradient_checks import check_gradients
from shapes import DENSE
from tail_functions import fused
from tail_reference import RUNNING, TENSORS, check, make_tail_inputs, plain, results
from wanted_gradients import Computed

VARIANTS = {
    "train": {},
    "eval": dict(training=False),
    "train-no-add-no-relu": dict(residual=False, post_act="identity"),
    "train-no-add": dict(residual=False),
    "train-silu": dict(norm_act="silu"),
    "eval-silu-no-relu": dict(norm_act="silu", training=False, post_act="identity"),
    "train-hardswish-no-add-no-relu": dict(norm_act="hardswish", residual=False,
                                           post_act="identity"),
    "train-relu-before": dict(norm_act="relu"),
    "train-no-affine": dict(affine=False),
    "eval-no-affine": dict(affine=False, training=False),
    "train-no-running-statistics": dict(running=False),
    "train-channels-last": dict(layout="channels-last"),
    "no-norm": dict(norm=False),
    "no-norm-no-add": dict(norm=False, residual=False),
    "no-norm-channels-last": dict(norm=False, layout="channels-last"),
}
each_variant = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
each_mode = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


def leaves_of(inputs, wanted=TENSORS) -> dict[str, torch.Tensor]:
    found = {name: getattr(inputs, name) for name in TENSORS}
    return {n: t.detach().requires_grad_(n in wanted) for n, t in found.items() if t is not None}


def function_of(inputs, function=fused):
    """Of the tensors that are there."""
    names = list(leaves_of(inputs))

    def call(*tensors):
        given = dict(zip(names, tensors))
        running = (None if t is None else t.clone()
                   for t in (inputs.running_mean, inputs.running_var))
        return function(inputs, (*(given.get(name) for name in TENSORS), *running))

    return call


def small_inputs(place, **variant):
    return make_tail_inputs((3, 2, 2, 2), 2, place.device, torch.float64, **variant)


@each_variant
def test_first_and_second_derivatives(native_place, variant):
    inputs = small_inputs(native_place, **variant)
    check_gradients(native_place, function_of(inputs), list(leaves_of(inputs).values()))


@pytest.mark.parametrize("shape", [(4, 3), (3, 2, 4), (2, 2, 2, 1, 2)],
                         ids=["no-spatial-dims", "1d", "3d"])
def test_derivatives_of_other_ranks(native_place, shape):
    inputs = make_tail_inputs(shape, 2, native_place.device, torch.float64)
    check_gradients(native_place, function_of(inputs), list(leaves_of(inputs).values()))


DTYPES = {
    "float64": dict(dtype=torch.float64),
    "bfloat16": dict(dtype=torch.bfloat16),
    "bfloat16-beside-float32": dict(dtype=torch.bfloat16, weight_dtype=torch.float32),
}


@pytest.mark.parametrize("dtypes", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("norm_act", ["identity", "silu"])
def test_training_pass_between_forward_and_backward_in_eval_mode(place, norm_act, dtypes):
    """Gradients are of the statistics of the forward pass. PyTorch's are of those found later."""
    inputs = make_tail_inputs(
        (3, 5, 4, 3), 4, place.device, norm_act=norm_act, training=False, **dtypes
    )
    leaves, running = leaves_of(inputs), [getattr(inputs, name).clone() for name in RUNNING]
    tensors = *(leaves.get(name) for name in TENSORS), *running
    y = fused(inputs, tensors)
    fused(inputs._replace(training=True), tensors)
    assert not any(torch.equal(t, getattr(inputs, name)) for name, t in zip(RUNNING, running))
    gradients = torch.autograd.grad(y, list(leaves.values()), inputs.dy)
    found = {"y": y.detach()} | {f"d{name}": t for name, t in zip(leaves, gradients)}
    check(found | {name: getattr(inputs, name) for name in RUNNING}, inputs)


@each_variant
def test_differentiable_gradient_equals_the_kernel_s(place, variant):
    inputs = make_tail_inputs((3, 5, 4, 3), 4, place.device, torch.float64, **variant)
    leaves = leaves_of(inputs)
    exact = results(inputs, torch.float64)
    expected = [exact[f"d{name}"] for name in leaves]
    tensors = list(leaves.values())
    for create_graph in (False, True):
        y = function_of(inputs)(*tensors)
        found = torch.autograd.grad(y, tensors, inputs.dy, create_graph=create_graph)
        torch.testing.assert_close(list(found), expected, rtol=1e-10, atol=1e-11)


SOURCES = {
    "residual-of-x": lambda x, w1, weight: (x * 1, x.sin()),
    "residual-is-x": lambda x, w1, weight: (x * 1,) * 2,
    "both-of-w1": lambda x, w1, weight: (x * w1.sum(), x + w1.mean()),
    "both-of-weight": lambda x, w1, weight: (x * weight.sum(), x + weight.mean()),
}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
@each_mode
def test_second_gradient_counts_no_path_twice(place, source, training):
    inputs = make_tail_inputs((3, 4, 3, 3), 3, place.device, torch.float64, training=training)

    def penalty(function):
        leaves = leaves_of(inputs)
        x, _, weight, _, w1, *_ = tensors = list(leaves.values())
        made, residual = source(x, w1, weight)
        loss = function_of(inputs, function)(made, residual, *tensors[2:]).pow(2).sum()
        first = torch.autograd.grad(loss, [x, made, w1, weight], create_graph=True)
        total = sum(gradient.pow(2).sum() for gradient in first)
        wanted = [t for name, t in leaves.items() if name != "residual"]
        return first, torch.autograd.grad(total, wanted, allow_unused=True)

    for found, expected in zip(penalty(fused), penalty(plain)):
        for one, other in zip(found, expected):
            zero = torch.zeros((), dtype=torch.float64, device=place.device)
            one, other = (zero if t is None else t for t in (one, other))
            torch.testing.assert_close(one, other.expand_as(one), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("layout", DENSE)
@each_mode
def test_batched_gradient(place, layout, training):
    inputs = small_inputs(place, layout=layout, training=training)
    tensors = list(leaves_of(inputs).values())
    each = torch.randn(3, *inputs.x.shape, dtype=torch.float64, device=place.device)
    y = function_of(inputs)(*tensors)
    found = torch.autograd.grad(y, tensors, each, is_grads_batched=True, retain_graph=True)
    single = [torch.autograd.grad(y, tensors, dy, retain_graph=True) for dy in each]
    torch.testing.assert_close(list(found), [torch.stack(ts) for ts in zip(*single)],
                               rtol=1e-10, atol=1e-11)


# Wanted gradients

CHOICES = {name: (name,) for name in TENSORS} | {
    "all-but-" + name: tuple(n for n in TENSORS if n != name) for name in TENSORS
}


@pytest.mark.parametrize("wanted", CHOICES.values(), ids=CHOICES)
@pytest.mark.parametrize("options", [{}, dict(post_act="identity"), dict(training=False)],
                         ids=["train", "train-no-relu", "eval"])
def test_wanted_gradients(native_place, wanted, options):
    """The same values for any choice, and no map is computed that nobody wants."""
    inputs = make_tail_inputs((3, 9, 5, 3), 4, native_place.device, **options)
    gradients, names = {}, {}
    for some in (TENSORS, wanted):
        leaves = leaves_of(inputs, some)
        y = function_of(inputs)(*leaves.values())
        with Computed() as computed:
            y.backward(inputs.dy)
        gradients[some] = {name: t.grad for name, t in leaves.items()}
        names[some] = computed.names
        maps = computed.shapes.count(inputs.x.shape)
    for name, gradient in gradients[wanted].items():
        if name in wanted:
            assert torch.equal(gradient, gradients[TENSORS][name]), name
        else:
            assert gradient is None, name
    gradient = {"apply_backward", "squeeze_excite_backward"}
    assert gradient & set(names[TENSORS])
    assert bool(gradient & set(names[wanted])) == ("x" in wanted)
    if "x" not in wanted and "residual" not in wanted and native_place.backend != "eager":
        assert maps == 0


def test_no_residual_no_gradient_of_one(place):
    """apply_backward writes dr only with a ReLU: without, it is dy."""
    inputs = make_tail_inputs((3, 9, 5, 3), 4, place.device, post_act="identity")
    leaves = leaves_of(inputs)
    y = function_of(inputs)(*leaves.values())
    dx, dr = torch.autograd.grad(y, [leaves["x"], leaves["residual"]], inputs.dy)
    assert torch.equal(dr, inputs.dy)


# What is kept


def kept_bytes(inputs, function) -> int:
    """Of distinct storages kept for the backward pass, parameters and their like apart."""
    leaves, kept = leaves_of(inputs), {}

    def pack(t):
        storage = t.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = function_of(inputs, function)(*leaves.values())
    for name in TENSORS[2:]:
        kept.pop(leaves[name].untyped_storage().data_ptr() if name in leaves else None, None)
    assert y.requires_grad
    return sum(kept.values())


MAP = (4, 64, 56, 56)
KEPT = {
    "train": dict(),
    "eval": dict(training=False),
    "train-silu": dict(norm_act="silu"),
    "no-norm": dict(norm=False),
}


@pytest.mark.parametrize("options", KEPT.values(), ids=KEPT)
@pytest.mark.parametrize("layout", DENSE)
def test_one_map_and_a_bit_for_each_element_are_kept(native_place, options, layout):
    inputs = make_tail_inputs(MAP, 8, native_place.device, layout=layout, **options)
    x_bytes = inputs.x.untyped_storage().nbytes()
    assert x_bytes <= kept_bytes(inputs, fused) <= 1.05 * x_bytes
    eager = kept_bytes(inputs, plain) / x_bytes
    assert eager > (1.9 if "norm" in options else 2.9), "plain PyTorch keeps as little"


def test_no_bits_are_kept_without_a_relu(native_place):
    inputs = make_tail_inputs(MAP, 8, native_place.device, post_act="identity")
    assert kept_bytes(inputs, fused) <= 1.01 * inputs.x.untyped_storage().nbytes()


def test_nothing_is_kept_without_gradients(native_place):
    inputs, saved = make_tail_inputs((3, 9, 5, 3), 4, native_place.device), []
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda t: t):
        function_of(inputs)(*leaves_of(inputs, ()).values())
        with torch.no_grad():
            function_of(inputs)(*leaves_of(inputs).values())
    assert not saved
