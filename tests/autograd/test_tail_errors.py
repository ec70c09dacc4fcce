"""Bad input to the functions of a residual block's end: the error names the argument, no operator
has run, and the running statistics are as they were."""

import pytest
import torch
from error_checks import assert_raises_before_any_operator

from se_fused.functional import batch_norm_squeeze_excite, squeeze_excite_add_act


def tensors(training=True):
    shapes = {"x": (2, 8, 3, 3), "running_mean": (8,), "running_var": (8,), "weight": (8,),
              "bias": (8,), "w1": (4, 8), "b1": (4,), "w2": (8, 4), "b2": (8,),
              "residual": (2, 8, 3, 3)}
    return {name: torch.rand(shape) for name, shape in shapes.items()} | {"training": training}


def of(dtype):
    return torch.ones(8, dtype=dtype)


# name of the case: (arguments replaced, error, words of the message)
BAD = {
    "x-not-a-tensor": (dict(x=[1.0]), TypeError, ("x ", "tensor", "list")),
    "x-integer": (dict(x=torch.ones(2, 8, 3, 3).int()), TypeError, ("x ", "float32", "int32")),
    "x-one-dim": (dict(x=torch.ones(8)), ValueError, ("x ", "2 to 5", "(8,)")),
    "x-of-other-channels": (dict(x=torch.ones(2, 7, 3, 3)), ValueError,
                            ("running_mean", "(7,)", "(8,)")),
    "running-mean-alone": (dict(running_var=None), ValueError,
                           ("running_mean and running_var", "together")),
    "running-var-alone": (dict(running_mean=None), ValueError,
                          ("running_mean and running_var", "together")),
    "no-running-statistics-in-eval-mode": (
        dict(running_mean=None, running_var=None, training=False), ValueError,
        ("running_mean and running_var", "training is False"),
    ),
    "running-mean-wrong-length": (dict(running_mean=torch.ones(4)), ValueError,
                                  ("running_mean", "(8,)", "(4,)")),
    "running-var-a-number": (dict(running_var=1.0), TypeError, ("running_var", "tensor", "float")),
    "running-var-double": (dict(running_var=of(torch.float64)), TypeError,
                           ("running_var", "float32", "float64")),
    "weight-wrong-length": (dict(weight=torch.ones(9)), ValueError, ("weight", "(8,)", "(9,)")),
    "weight-half": (dict(weight=of(torch.float16)), TypeError, ("weight", "float32", "float16")),
    "weight-on-another-device": (dict(weight=torch.ones(8, device="meta")), ValueError,
                                 ("weight", "cpu", "meta")),
    "bias-wrong-length": (dict(bias=torch.ones(1)), ValueError, ("bias", "(8,)", "(1,)")),
    "bias-integer": (dict(bias=of(torch.int64)), TypeError, ("bias", "float32", "int64")),
    "one-value-per-channel": (
        dict(x=torch.ones(1, 8, 1, 1), residual=torch.ones(1, 8, 1, 1)), ValueError,
        ("x ", "more than one value per channel", "(1, 8, 1, 1)"),
    ),
    "one-sample-without-spatial-dims": (
        dict(x=torch.ones(1, 8), residual=None), ValueError,
        ("x ", "more than one value per channel", "(1, 8)"),
    ),
    "norm-act-unknown": (dict(norm_act="gelu"), ValueError,
                         ("norm_act", "identity, relu, silu, hardswish", "'gelu'")),
    "norm-act-none": (dict(norm_act=None), ValueError, ("norm_act", "identity", "None")),
}
# Of what both functions take.
BOTH = {
    "w1-transposed": (dict(w1=torch.ones(8, 4)), ValueError, ("w1", "(8, 8)", "(8, 4)")),
    "w2-missing": (dict(w2=None), TypeError, ("w2", "tensor", "NoneType")),
    "b1-wrong-length": (dict(b1=torch.ones(8)), ValueError, ("b1", "(4,)", "(8,)")),
    "residual-a-number": (dict(residual=1.0), TypeError, ("residual", "tensor", "float")),
    "residual-that-broadcasts": (dict(residual=torch.ones(1, 8, 1, 1)), ValueError,
                                 ("residual", "(2, 8, 3, 3)", "(1, 8, 1, 1)")),
    "residual-double": (dict(residual=torch.ones(2, 8, 3, 3).double()), TypeError,
                        ("residual", "float32", "float64")),
    "residual-on-another-device": (dict(residual=torch.ones(2, 8, 3, 3, device="meta")),
                                   ValueError, ("residual", "cpu", "meta")),
    "act-unknown": (dict(act="relu7"), ValueError, ("act", "leaky_relu, gelu", "'relu7'")),
    "gate-unknown": (dict(gate="softmax"), ValueError, ("gate", "sigmoid", "'softmax'")),
    "post-act-unknown": (dict(post_act="silu"), ValueError,
                         ("post_act", "identity, relu", "'silu'")),
    "post-act-none": (dict(post_act=None), ValueError, ("post_act", "identity, relu", "None")),
}
BAD |= BOTH


@pytest.mark.parametrize("replaced, error, words", BAD.values(), ids=BAD)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_batch_norm_squeeze_excite(replaced, error, words, training):
    if "one-" in words[0] or "more than one value per channel" in words:
        training = True
    arguments = tensors(training) | replaced
    running = [arguments[name] for name in ("running_mean", "running_var")]
    before = [t.clone() if isinstance(t, torch.Tensor) else t for t in running]
    assert_raises_before_any_operator(error, words, batch_norm_squeeze_excite, **arguments)
    for t, copy in zip(running, before):
        assert torch.equal(t, copy) if isinstance(t, torch.Tensor) else t is copy


@pytest.mark.parametrize("replaced, error, words", BOTH.values(), ids=BOTH)
def test_squeeze_excite_add_act(replaced, error, words):
    arguments = {name: t for name, t in tensors().items()
                 if name in ("x", "residual", "w1", "b1", "w2", "b2")} | replaced
    assert_raises_before_any_operator(error, words, squeeze_excite_add_act, **arguments)


def test_good_arguments_raise_nothing():
    batch_norm_squeeze_excite(**tensors())
    one = torch.ones(1, 8, 1, 1)
    batch_norm_squeeze_excite(**tensors(training=False) | dict(x=one, residual=one))
    halves = {name: torch.ones(2, 8, 3, 3).bfloat16() for name in ("x", "residual")}
    batch_norm_squeeze_excite(**tensors() | halves)


def test_error_of_a_backend_leaves_the_running_statistics(monkeypatch):
    """Whatever fails before the statistics are there."""
    from se_fused import ops

    def fail(x, *parts):
        raise RuntimeError("no memory")

    arguments = tensors()
    before = arguments["running_mean"].clone(), arguments["running_var"].clone()
    monkeypatch.setattr(ops, "reduce_forward", fail)
    with pytest.raises(RuntimeError, match="no memory"):
        batch_norm_squeeze_excite(**arguments)
    assert torch.equal(arguments["running_mean"], before[0])
    assert torch.equal(arguments["running_var"], before[1])
