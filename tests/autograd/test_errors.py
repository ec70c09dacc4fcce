"""Bad input: the error names the argument and what is accepted, and no operator has run."""

import pytest
import torch
from error_checks import Recorder, assert_raises_before_any_operator
from torch import nn

import se_fused
from se_fused import FusedSE


def tensors():
    shapes = {"x": (2, 8, 3, 3), "w1": (4, 8), "b1": (4,), "w2": (8, 4), "b2": (8,)}
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def test_the_recorder_sees_operators():
    with Recorder() as recorder:
        se_fused.squeeze_excite(**tensors())
    assert any("squeeze_excite" in name for name in recorder.called)


ACCEPTED_DTYPES = ("float64", "float32", "bfloat16", "float16")
# name of the case: (arguments replaced, error, words of the message)
BAD = {
    "x-not-a-tensor": (dict(x=[1.0]), TypeError, ("x ", "tensor", "list")),
    "x-integer": (dict(x=torch.ones(2, 8, 3, 3, dtype=torch.int32)), TypeError,
                  ("x ", *ACCEPTED_DTYPES, "int32")),
    "x-complex": (dict(x=torch.ones(2, 8, 3, 3, dtype=torch.complex64)), TypeError,
                  ("x ", *ACCEPTED_DTYPES, "complex64")),
    "x-bool": (dict(x=torch.ones(2, 8, 3, 3, dtype=torch.bool)), TypeError,
               ("x ", *ACCEPTED_DTYPES, "bool")),
    "x-one-dim": (dict(x=torch.ones(8)), ValueError, ("x ", "2 to 5", "(8,)")),
    "x-no-dims": (dict(x=torch.ones(())), ValueError, ("x ", "2 to 5", "()")),
    "x-six-dims": (dict(x=torch.ones(2, 8, 1, 1, 1, 1)), ValueError, ("x ", "2 to 5")),
    "x-of-other-channels": (dict(x=torch.ones(2, 7, 3, 3)), ValueError,
                            ("w1", "(4, 7)", "(2, 7, 3, 3)", "(4, 8)")),
    "w1-missing": (dict(w1=None), TypeError, ("w1", "tensor", "NoneType")),
    "w1-one-dim": (dict(w1=torch.ones(8)), ValueError, ("w1", "(8,)")),
    "w1-no-dims": (dict(w1=torch.ones(())), ValueError, ("w1", "[R, C]")),
    "w1-no-hidden-units": (dict(w1=torch.ones(0, 8)), ValueError, ("w1", "[R, C]", "(0, 8)")),
    "w1-3x3-kernel": (dict(w1=torch.ones(4, 8, 3, 3)), ValueError, ("w1", "(4, 8)", "size 1")),
    "w1-transposed": (dict(w1=torch.ones(8, 4)), ValueError, ("w1", "(8, 8)", "(8, 4)")),
    "w2-missing": (dict(w2=None), TypeError, ("w2", "tensor", "NoneType")),
    "w2-transposed": (dict(w2=torch.ones(4, 8)), ValueError, ("w2", "(8, 4)", "(4, 8)")),
    "b1-wrong-length": (dict(b1=torch.ones(8)), ValueError, ("b1", "(4,)", "(8,)")),
    "b2-wrong-length": (dict(b2=torch.ones(4)), ValueError, ("b2", "(8,)", "(4,)")),
    "b1-not-a-tensor": (dict(b1=1.0), TypeError, ("b1", "tensor", "float")),
    "w1-half-beside-float": (dict(w1=torch.ones(4, 8, dtype=torch.float16)), TypeError,
                             ("w1", "float32", "float16")),
    "w2-double-beside-float": (dict(w2=torch.ones(8, 4, dtype=torch.float64)), TypeError,
                               ("w2", "float32", "float64")),
    "b1-integer": (dict(b1=torch.ones(4, dtype=torch.int64)), TypeError, ("b1", "int64")),
    "bf16-map-half-weights": (
        dict(x=torch.ones(2, 8, 3, 3, dtype=torch.bfloat16), w1=torch.ones(4, 8).half()),
        TypeError, ("w1", "bfloat16", "float32", "float16"),
    ),
    "w1-on-another-device": (dict(w1=torch.ones(4, 8, device="meta")), ValueError,
                             ("w1", "cpu", "meta")),
    "b2-on-another-device": (dict(b2=torch.ones(8, device="meta")), ValueError,
                             ("b2", "cpu", "meta")),
    "act-unknown": (dict(act="relu7"), ValueError,
                    ("act", "relu, silu, hardswish, leaky_relu, gelu", "'relu7'")),
    "gate-unknown": (dict(gate="softmax"), ValueError,
                     ("gate", "relu, sigmoid, hardsigmoid, tanh", "'softmax'")),
    "squeeze-unknown": (dict(squeeze="mean"), ValueError,
                        ("squeeze", "avg, max, avg_max, concat", "'mean'")),
    "w1-of-the-mean-alone": (dict(squeeze="concat"), ValueError, ("w1", "(4, 16)", "(4, 8)")),
    "w1-of-mean-and-maximum": (dict(w1=torch.ones(4, 16), squeeze="max"), ValueError,
                               ("w1", "(4, 8)", "(4, 16)")),
    "maximum-of-no-positions": (dict(x=torch.ones(2, 8, 0, 3), squeeze="avg_max"), ValueError,
                                ("x ", "position", "maximum", "(2, 8, 0, 3)")),
    "act-a-gate": (dict(act="sigmoid"), ValueError, ("act", "'sigmoid'")),
    "act-a-module": (dict(act=nn.ReLU), ValueError, ("act", "relu", "ReLU")),
}


@pytest.mark.parametrize("replaced, error, words", BAD.values(), ids=BAD)
def test_squeeze_excite(replaced, error, words):
    arguments = tensors() | replaced
    assert_raises_before_any_operator(error, words, se_fused.squeeze_excite, **arguments)


MAPS = {name: case for name, case in BAD.items() if name.startswith("x-") and "other" not in name}


@pytest.mark.parametrize("replaced, error, words", MAPS.values(), ids=MAPS)
def test_squeeze_and_rescale_check_the_map(replaced, error, words):
    assert_raises_before_any_operator(error, words, se_fused.squeeze, replaced["x"])
    assert_raises_before_any_operator(error, words, se_fused.squeeze, replaced["x"], "concat")
    gate = torch.ones(2, 8)
    assert_raises_before_any_operator(error, words, se_fused.rescale, replaced["x"], gate)


SQUEEZES = {
    "unknown": ((2, 8, 3), "sum", ("kind", "avg, max, avg_max, concat", "'sum'")),
    "no-positions": ((2, 8, 3, 0), "max", ("x ", "position", "maximum", "(2, 8, 3, 0)")),
}


@pytest.mark.parametrize("shape, kind, words", SQUEEZES.values(), ids=SQUEEZES)
def test_squeeze_checks_its_kind(shape, kind, words):
    x = torch.ones(shape)
    assert_raises_before_any_operator(ValueError, words, se_fused.squeeze, x, kind)


GATES = {
    "wrong-channels": (torch.ones(2, 7), ValueError, ("gate", "(2, 8)", "(2, 7)")),
    "wrong-samples": (torch.ones(1, 8), ValueError, ("gate", "(2, 8)", "(1, 8)")),
    "spatial": (torch.ones(2, 8, 3, 3), ValueError, ("gate", "size 1", "(2, 8, 3, 3)")),
    "integer": (torch.ones(2, 8, dtype=torch.int64), TypeError, ("gate", "float32", "int64")),
    "other-device": (torch.ones(2, 8, device="meta"), ValueError, ("gate", "cpu", "meta")),
    "a-number": (0.5, TypeError, ("gate", "tensor", "float")),
}


@pytest.mark.parametrize("gate, error, words", GATES.values(), ids=GATES)
def test_rescale_checks_the_gate(gate, error, words):
    x = torch.ones(2, 8, 3, 3)
    assert_raises_before_any_operator(error, words, se_fused.rescale, x, gate)


def test_weights_on_another_device_on_a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("no GPU; w1-on-another-device covers the check with the meta device")
    arguments = tensors() | {"w2": torch.ones(8, 4, device="cuda")}
    words = ("w2", "cpu", "cuda")
    assert_raises_before_any_operator(ValueError, words, se_fused.squeeze_excite, **arguments)


@pytest.mark.parametrize("name", ["cuda", "", "Triton", 3], ids=["device", "empty", "case", "int"])
def test_unknown_backend(name):
    words = ("backend", "triton, cpp, eager", repr(name))
    assert_raises_before_any_operator(ValueError, words, se_fused.backend(name).__enter__)


MODULES = {
    "no-channels": (dict(channels=0), ValueError, ("channels", "at least 1", "0")),
    "no-hidden-channels": (dict(channels=8, rd_channels=-1), ValueError, ("rd_channels", "-1")),
    "act-unknown": (dict(channels=8, act_layer="relu7"), ValueError,
                    ("act_layer", "relu", "silu", "module class", "'relu7'")),
    "gate-unknown": (dict(channels=8, gate_layer="softmax"), ValueError,
                     ("gate_layer", "sigmoid", "hard_sigmoid", "'softmax'")),
    "act-an-instance": (dict(channels=8, act_layer=nn.ReLU()), TypeError,
                        ("act_layer", "class", "ReLU()")),
    "gate-a-number": (dict(channels=8, gate_layer=1), TypeError, ("gate_layer", "name", "1")),
    "squeeze-unknown": (dict(channels=8, squeeze="sum"), ValueError,
                        ("squeeze", "avg, max, avg_max, concat", "'sum'")),
    "add-maxpool-beside-max": (dict(channels=8, add_maxpool=True, squeeze="max"), ValueError,
                               ("add_maxpool", "avg_max", "'max'")),
    "excitation-a-class": (dict(channels=8, excitation=nn.ReLU), TypeError,
                           ("excitation", "Module", "type")),
    "excitation-beside-layers": (
        dict(channels=8, excitation=nn.ReLU(), rd_channels=4, bias=False, act_layer="silu"),
        ValueError, ("excitation", "rd_channels, bias, act_layer", "cannot"),
    ),
}


@pytest.mark.parametrize("arguments, error, words", MODULES.values(), ids=MODULES)
def test_constructor(arguments, error, words):
    with pytest.raises(error) as raised:
        FusedSE(**arguments)
    for word in words:
        assert word in str(raised.value)


CALLS = {
    "wrong-channels": (torch.ones(2, 7, 3, 3), ValueError, ("7",)),
    "one-dim": (torch.ones(8), ValueError, ("x ", "2 to 5")),
    "integer": (torch.ones(2, 8, 3, 3, dtype=torch.int64), TypeError, ("x ", "int64")),
    "other-device": (torch.ones(2, 8, 3, 3, device="meta"), ValueError, ("meta", "cpu")),
}


@pytest.mark.parametrize("x, error, words", CALLS.values(), ids=CALLS)
def test_call_of_the_module(x, error, words):
    assert_raises_before_any_operator(error, words, FusedSE(8, rd_channels=4), x)
